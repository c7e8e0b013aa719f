/* Four numbers of a contiguous array in one pass, and the 2-norm over many arrays in one call.
 *
 * A row is (min, max, sum, 2-norm) as float. min and max are NaN where any element is NaN, and carry infinities.
 * Plain C without torch or Python, so that one build serves every version of both.
 *
 * The loops keep LANES independent accumulators: a compiler can turn them into vectors without being allowed to
 * reorder floating-point additions. Within a block of BLOCK elements sums are kept in the element's own precision
 * (half types: float), across blocks in double, so large arrays stay accurate. A sum of squares is NaN exactly where
 * an element is NaN, since squares are never negative: NaN needs no test of its own in the loop. A block whose squares
 * overflow float is summed again in double.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* One machine-code version per instruction set, chosen when the library is loaded. Needs glibc's ifunc. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define CLONES
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

#define LANES 16
#define BLOCK 2048 /* a multiple of LANES */

INLINE float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float read_float(float value) { return value; }
INLINE double read_double(double value) { return value; }
INLINE float read_bfloat16(uint16_t half) { return from_bits((uint32_t)half << 16); }

/* The exponent is moved from bias 15 to bias 127 by a multiplication, which is exact and normalises subnormals.
 * An exponent of all ones (infinity, NaN) then becomes all ones again. */
INLINE float read_float16(uint16_t half) {
    uint32_t bits = half;
    uint32_t special = (uint32_t)0 - (uint32_t)((bits & 0x7c00u) == 0x7c00u);
    uint32_t magnitude = to_bits(from_bits((bits & 0x7fffu) << 13) * 0x1p112f);
    return from_bits(magnitude | (special & 0x7f800000u) | ((bits & 0x8000u) << 16));
}

#define DEFINE(NAME, TYPE, REAL, READ)                                                                                 \
    /* Sum and sum of squares of a block in double, where the fast way has overflowed. */                              \
    static void NAME##_carefully(const TYPE *data, long long count, double *sum, double *squares) {                    \
        *sum = *squares = 0;                                                                                           \
        for (long long i = 0; i < count; i++) {                                                                        \
            double x = READ(data[i]);                                                                                  \
            *sum += x;                                                                                                 \
            *squares += x * x;                                                                                         \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    CLONES EXPORT void nantrace_##NAME(const TYPE *data, long long count, float *row) {                                \
        REAL low[LANES], high[LANES];                                                                                  \
        double sum = 0, squares = 0;                                                                                   \
        long long whole = count - count % LANES;                                                                       \
        for (int j = 0; j < LANES; j++) {                                                                              \
            low[j] = (REAL)INFINITY;                                                                                   \
            high[j] = (REAL)-INFINITY;                                                                                 \
        }                                                                                                              \
        for (long long start = 0; start < whole; start += BLOCK) {                                                     \
            long long end = whole - start < BLOCK ? whole : start + BLOCK;                                             \
            REAL some[LANES] = {0}, some_squares[LANES] = {0};                                                         \
            double block = 0, block_squares = 0;                                                                       \
            for (long long i = start; i < end; i += LANES) {                                                           \
                for (int j = 0; j < LANES; j++) {                                                                      \
                    REAL x = READ(data[i + j]);                                                                        \
                    low[j] = x < low[j] ? x : low[j];                                                                  \
                    high[j] = x > high[j] ? x : high[j];                                                               \
                    some[j] += x;                                                                                      \
                    some_squares[j] += x * x;                                                                          \
                }                                                                                                      \
            }                                                                                                          \
            for (int j = 0; j < LANES; j++) {                                                                          \
                block += some[j];                                                                                      \
                block_squares += some_squares[j];                                                                      \
            }                                                                                                          \
            if (!(block_squares < INFINITY))                                                                           \
                NAME##_carefully(data + start, end - start, &block, &block_squares);                                   \
            sum += block;                                                                                              \
            squares += block_squares;                                                                                  \
        }                                                                                                              \
        REAL least = (REAL)INFINITY, most = (REAL)-INFINITY;                                                           \
        for (int j = 0; j < LANES; j++) {                                                                              \
            least = low[j] < least ? low[j] : least;                                                                   \
            most = high[j] > most ? high[j] : most;                                                                    \
        }                                                                                                              \
        for (long long i = whole; i < count; i++) {                                                                    \
            REAL x = READ(data[i]);                                                                                    \
            least = x < least ? x : least;                                                                             \
            most = x > most ? x : most;                                                                                \
            sum += x;                                                                                                  \
            squares += (double)x * x;                                                                                  \
        }                                                                                                              \
        int empty = count == 0, nan = isnan(squares);                                                                  \
        row[0] = empty ? 0 : nan ? NAN : (float)least;                                                                 \
        row[1] = empty ? 0 : nan ? NAN : (float)most;                                                                  \
        row[2] = (float)sum;                                                                                           \
        row[3] = (float)sqrt(squares);                                                                                 \
    }                                                                                                                  \
                                                                                                                       \
    /* The sum of the squares of all elements of `n` arrays. */                                                        \
    CLONES EXPORT void nantrace_norms_##NAME(const void *const *arrays, const long long *counts, int n,                \
                                             double *total) {                                                          \
        double squares = 0;                                                                                            \
        for (int k = 0; k < n; k++) {                                                                                  \
            const TYPE *data = arrays[k];                                                                              \
            long long count = counts[k], whole = count - count % LANES;                                                \
            for (long long start = 0; start < whole; start += BLOCK) {                                                 \
                long long end = whole - start < BLOCK ? whole : start + BLOCK;                                         \
                REAL some[LANES] = {0};                                                                                \
                double block = 0, unused;                                                                              \
                for (long long i = start; i < end; i += LANES) {                                                       \
                    for (int j = 0; j < LANES; j++) {                                                                  \
                        REAL x = READ(data[i + j]);                                                                    \
                        some[j] += x * x;                                                                              \
                    }                                                                                                  \
                }                                                                                                      \
                for (int j = 0; j < LANES; j++)                                                                        \
                    block += some[j];                                                                                  \
                if (!(block < INFINITY))                                                                               \
                    NAME##_carefully(data + start, end - start, &unused, &block);                                      \
                squares += block;                                                                                      \
            }                                                                                                          \
            for (long long i = whole; i < count; i++) {                                                                \
                double x = READ(data[i]);                                                                              \
                squares += x * x;                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
        *total = squares;                                                                                              \
    }

DEFINE(float32, float, float, read_float)
DEFINE(float64, double, double, read_double)
DEFINE(bfloat16, uint16_t, float, read_bfloat16)
DEFINE(float16, uint16_t, float, read_float16)
