"""The C kernel says what torch says, is built where there is a compiler, and is not missed where there is none."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nantrace.recording import kernel
from nantrace.recording.alarm import total_norm
from nantrace.recording.kernel.build import build
from nantrace.recording.statistics import Board

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [0, 1, 2, 7, 8, 15, 16, 17, 1000, 65537]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> kernel.Kernel:
    """The kernel as this machine's compiler builds it, away from the package."""
    path = tmp_path_factory.mktemp("kernel") / "library"
    outcome = build(path)
    if not outcome.built:
        pytest.skip(outcome.reason)
    loaded = kernel.load(str(path))
    assert loaded is not None
    assert [file.name for file in path.parent.iterdir()] == ["library"]
    return loaded


@pytest.fixture
def fast(built: kernel.Kernel, monkeypatch: pytest.MonkeyPatch) -> kernel.Kernel:
    """Boards and norms use the kernel, whatever this installation has."""
    monkeypatch.setattr(kernel, "loaded", lambda: built)
    return built


def values(size: int, dtype: torch.dtype) -> Tensor:
    """Numbers with a mean, so that their sum is a number to compare."""
    return (torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64) + 0.5).to(dtype)


def reduced(with_kernel: kernel.Kernel, tensor: Tensor) -> list[float]:
    """The row that the kernel itself writes."""
    row = (ctypes.c_float * 4)(*[7.0] * 4)
    with_kernel.reduce[tensor.dtype](tensor.data_ptr(), tensor.numel(), ctypes.addressof(row))
    return list(row)


def rows_of(tensors: list[Tensor]) -> Tensor:
    """What one board says of these tensors."""
    board = Board(torch.device("cpu"))
    for tensor in tensors:
        board.write(tensor)
    return board.take(len(tensors))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_equals_torch(built: kernel.Kernel, dtype: torch.dtype, size: int) -> None:
    """Minimum and maximum exactly, sum and norm as a float64 reference to float32 rounding."""
    tensor = values(size, dtype)
    low, high, total, norm = reduced(built, tensor)

    assert [low, high] == ([float(bound.float()) for bound in torch.aminmax(tensor)] if size else [0.0, 0.0])
    assert total == pytest.approx(float(tensor.double().sum()), rel=2e-6, abs=1e-6)
    assert norm == pytest.approx(float(torch.linalg.vector_norm(tensor.double())), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bad_element_anywhere(built: kernel.Kernel, dtype: torch.dtype, size: int, bad: float) -> None:
    """A NaN makes both bounds NaN and an infinity is a bound, as in torch."""
    for place in {0, size // 2, size - 1}:
        tensor = values(size, dtype)
        tensor[place] = bad
        low, high, total, norm = reduced(built, tensor)

        expected = [float(bound) for bound in torch.aminmax(tensor.float())]
        assert [low, high] == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
        assert total == pytest.approx(bad, nan_ok=True)
        assert norm == pytest.approx(abs(bad), nan_ok=True)


def test_both_infinities_are_no_nan(built: kernel.Kernel) -> None:
    """Their sum is NaN; the bounds are the infinities."""
    for size in (2, 40, 3000):
        tensor = torch.zeros(size)
        tensor[0], tensor[-1] = math.inf, -math.inf

        assert reduced(built, tensor)[:2] == [-math.inf, math.inf]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_numbers_of_every_size(built: kernel.Kernel, dtype: torch.dtype) -> None:
    """Bit patterns all over the range are read as torch reads them: subnormals, infinities and every NaN included."""
    patterns = torch.cat([torch.arange(-(1 << 15), 1 << 15, 7), torch.arange(-1100, 1100)]).to(torch.int16).view(dtype)
    for numbers in patterns.repeat_interleave(16).reshape(-1, 16):  # enough of each for the vectors
        low, high, *_ = reduced(built, numbers)
        expected = float(numbers[0])
        assert low == high == expected or (math.isnan(low) and math.isnan(high) and math.isnan(expected))


def test_squares_that_overflow_float_are_summed_in_double(built: kernel.Kernel) -> None:
    """Large finite numbers have a finite norm, and no number is lost in a long sum."""
    large = torch.full((5000,), 1e30)
    many = torch.full((3_000_000,), 0.1)

    assert reduced(built, large)[3] == pytest.approx(1e30 * 5000**0.5, rel=1e-6)
    assert reduced(built, many)[2] == pytest.approx(float(many.double().sum()), rel=2e-6)


@pytest.mark.usefixtures("fast")
def test_a_board_says_the_same_with_and_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of every kind in turn: read by the kernel, and in layouts that it leaves to torch."""
    whole = values(240, torch.float32).reshape(4, 5, 3, 4)
    tensors = [
        whole,
        whole.to(memory_format=torch.channels_last),
        whole.transpose(1, 2),
        whole[:, ::2],
        whole[:1, 0, :1].expand(6, 3, 4),
        torch.complex(whole, whole).conj().imag,  # a negative view
        torch.nn.Parameter(whole.clone()),
        whole.clone().requires_grad_() * 2,
        torch.empty(0, 3),
        torch.tensor(5.0),
        torch.tensor([1.0, math.nan]),
        *(whole.to(dtype) for dtype in DTYPES),
    ]
    tensors *= 12  # the board grows on the way
    with_kernel = rows_of(tensors)
    monkeypatch.setattr(kernel, "loaded", lambda: None)
    without = rows_of(tensors)

    torch.testing.assert_close(with_kernel[:, :2], without[:, :2], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(with_kernel[:, 2:], without[:, 2:], rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda x: x, True, id="contiguous"),
        pytest.param(lambda x: x.permute(2, 0, 1), True, id="permuted"),
        pytest.param(lambda x: x[1:], True, id="rows"),
        pytest.param(lambda x: x[:, 1:], False, id="columns"),
        pytest.param(lambda x: x[..., ::2], False, id="every-other"),
        pytest.param(lambda x: x[:, :1].expand(-1, 3, -1), False, id="expanded"),
        pytest.param(lambda x: torch.diag_embed(x[0, 0]).diagonal(), False, id="diagonal"),
        pytest.param(lambda x: x.to_sparse(), False, id="sparse"),
    ],
)
def test_what_lies_in_memory_without_gaps(make: object, expected: bool) -> None:
    """Any order of the dimensions will do; gaps and elements shown twice will not."""
    assert kernel.in_memory(make(torch.ones(2, 3, 4))) is expected


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_norm_over_a_list(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """One number over all tensors, as a float64 reference has it."""
    tensors = [values(size, dtype) for size in SIZES[1:]] + [values(12, dtype).reshape(3, 4).t()]
    expected = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))
    fast = kernel.total_norm(tensors)

    assert fast == pytest.approx(expected, rel=1e-6)
    assert total_norm(tensors) == fast
    monkeypatch.setattr(kernel, "loaded", lambda: None)
    assert total_norm(tensors) == pytest.approx(expected, rel=1e-2)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_element_trips_the_norm(bad: float) -> None:
    """Not finite exactly where an element is not; large float32 numbers trip nothing."""
    tensors = [torch.full((70,), 1e30), torch.ones(70), torch.ones(3)]
    assert math.isfinite(total_norm(tensors))

    for tensor, place in ((tensors[1], 5), (tensors[1], 69), (tensors[2], 0)):
        tensor[place] = bad
        assert not math.isfinite(total_norm(tensors))
        tensor[place] = 1.0


@pytest.mark.usefixtures("fast")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: torch.ones(2, dtype=torch.float64), id="mixed-dtypes"),
        pytest.param(lambda: torch.ones(4)[::2], id="gaps"),
        pytest.param(lambda: torch.empty(0), id="empty"),
        pytest.param(lambda: torch.ones(2, device="meta"), id="meta"),
        pytest.param(lambda: torch.ones(2).to_sparse(), id="sparse"),
        pytest.param(lambda: torch.ones(2, 2).to_sparse_csr(), id="csr"),
        pytest.param(lambda: torch.ones(2).to_mkldnn(), id="mkldnn"),
    ],
)
def test_lists_that_torch_must_read(make: object) -> None:
    """Mixed dtypes, gaps, and tensors without memory are left to torch ops."""
    assert kernel.total_norm([torch.ones(3), make()]) is None
    assert kernel.total_norm([make(), torch.ones(3)]) is None


def test_without_a_compiler_the_build_says_so(tmp_path: Path) -> None:
    """A missing compiler and one that fails are a clear no, and leave nothing behind."""
    missing = build(tmp_path / "library", compiler="/nowhere/cc")
    failing = build(tmp_path / "library", compiler="cc --no-such-option")

    assert not missing.built
    assert "/nowhere/cc" in missing.reason
    assert not failing.built
    assert failing.reason
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_missing_or_not_ours_is_not_used(tmp_path: Path) -> None:
    """Whatever lies where the library should be: torch ops do it then."""
    (tmp_path / "text").write_text("no library")

    assert kernel.load(str(tmp_path / "missing")) is None
    assert kernel.load(str(tmp_path / "text")) is None


def test_the_environment_switches_the_kernel_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """NANTRACE_KERNEL=0, read once per process."""
    monkeypatch.setenv("NANTRACE_KERNEL", "0")

    assert kernel.loaded.__wrapped__() is None
