"""What a dtype can hold, and how numbers are written in evidence."""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp, isfinite, isinf, isnan, log10


@dataclass(frozen=True, slots=True)
class Limits:
    """The range and the grain of one floating-point dtype."""

    dtype: str
    max: float
    mantissa: int  # stored bits
    min_exponent: int  # of the smallest normal number

    @property
    def eps(self) -> float:
        """The distance from 1 to the next larger number."""
        return 2.0**-self.mantissa

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number with all its digits."""
        return 2.0**self.min_exponent

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive number."""
        return 2.0 ** (self.min_exponent - self.mantissa)


_LIMITS = {
    limits.dtype: limits
    for limits in (
        Limits("float64", 1.7976931348623157e308, 52, -1022),
        Limits("float32", 3.4028234663852886e38, 23, -126),
        Limits("bfloat16", 3.3895313892515355e38, 7, -126),
        Limits("float16", 65504.0, 10, -14),
        Limits("float8_e5m2", 57344.0, 2, -14),
        Limits("float8_e5m2fnuz", 57344.0, 2, -15),
        Limits("float8_e4m3fn", 448.0, 3, -6),
        Limits("float8_e4m3fnuz", 240.0, 3, -7),
    )
}
_PARTS = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}

COARSE = frozenset({"float16", "bfloat16", "float8_e5m2", "float8_e5m2fnuz", "float8_e4m3fn", "float8_e4m3fnuz"})


def limits(dtype: str) -> Limits | None:
    """The limits of a floating-point or complex dtype; None for any other."""
    return _LIMITS.get(_PARTS.get(dtype, dtype))


def rounded(value: float, dtype: str) -> float:
    """The value as the dtype holds it: rounded to nearest, infinite past the largest number."""
    found = limits(dtype)
    if found is None or not isfinite(value) or value == 0:
        return value
    exponent = max(frexp(value)[1] - 1, found.min_exponent)
    quantum = 2.0 ** (exponent - found.mantissa)
    result = round(value / quantum) * quantum if quantum >= 5e-324 else value
    return float("inf") * (1 if value > 0 else -1) if abs(result) > found.max else result


def number(value: object) -> float | None:
    """The value as a float where it is a plain number (a bool is none)."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def show(value: float) -> str:
    """A number as evidence writes it: "0", "65504", "91.4", "3.4e+38", "1.00000012"."""
    if isnan(value):
        return "nan"
    if isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2g}"
    text = f"{value:.4g}"
    # Digits that tell the value from a whole number are the evidence itself: acos(1.00000012).
    if float(text) != round(float(text)):
        return text
    return f"{value:.9g}" if abs(value) < 100 else f"{value:.6g}"


def show_power(log: float) -> str:
    """10**log as evidence writes it, also past what a Python float can hold."""
    if not isfinite(log):
        return show(0.0 if log < 0 else log)
    whole = int(log // 1)
    if -300 < whole < 300:
        return show(10.0**log)
    return f"{10 ** (log - whole):.1f}e{whole:+d}"


def show_index(index: tuple[int, ...] | None) -> str:
    """An index as a subscript: "[3, 17]"; nothing for a scalar or an unknown index."""
    return f"[{', '.join(str(i) for i in index)}]" if index else ""


def show_limit(dtype: str) -> str:
    """The end of the dtype's range as evidence says it: "float32 ends at 3.4e+38"."""
    found = limits(dtype)
    return f"{dtype} ends at {show(found.max)}" if found else f"{dtype} cannot hold it"


def power(base: float, exponent: float) -> float:
    """base ** exponent for a base that is not negative; infinite where no Python float can hold it."""
    try:
        return float(base**exponent)
    except (OverflowError, ZeroDivisionError):
        return float("inf")


def fractional(value: float) -> bool:
    """Whether the value is finite and no whole number."""
    return isfinite(value) and value != int(value)


def log_of(value: float) -> float:
    """The decimal logarithm of the magnitude; -inf for zero."""
    return log10(abs(value)) if value else float("-inf")


def plural(count: int, word: str, words: str = "") -> str:
    """A count with its noun: "1 label", "12 labels"."""
    return f"{count} {word if count == 1 else words or word + 's'}"


def margin(dtype: str) -> str:
    """A small constant that the dtype can hold and that an eps may be."""
    return {"float64": "1e-12", "float32": "1e-8", "bfloat16": "1e-6"}.get(_PARTS.get(dtype, dtype), "1e-4")


def inside_one(dtype: str) -> str:
    """A small constant that is still seen when it is taken from 1."""
    return {"float64": "1e-12", "float32": "1e-6", "bfloat16": "1e-2"}.get(_PARTS.get(dtype, dtype), "1e-3")
