"""Statistics on the device equal a float64 reference, and flag NaN and infinities exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nantrace.recording.statistics import Board, is_finite, readable

from ..references import reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]
SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4, 5), (300,)]


def row_of(tensor: Tensor) -> list[float]:
    """What a board says of a tensor: min, max, sum, 2-norm."""
    board = Board(tensor.device)
    values = readable(tensor)
    assert values is not None
    board.write(values)
    return board.rows()[0].tolist()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_equal_a_float64_reference(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Minimum and maximum are exact (to float32), sum and norm to rounding."""
    tensor = (torch.randn(shape, dtype=torch.complex128 if dtype.is_complex else torch.float64) * 3).to(dtype)
    low, high, total, norm = row_of(tensor)
    expected = reference(tensor)

    assert (low, high) == (expected.min, expected.max)
    assert total == pytest.approx(expected.total, rel=1e-5, abs=1e-5)
    assert norm == pytest.approx(expected.norm, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 17, 299])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e5m2], ids=str)
def test_one_bad_element_is_flagged(dtype: torch.dtype, where: int, bad: float) -> None:
    """A single NaN or infinity anywhere shows in minimum or maximum."""
    tensor = torch.ones(300, dtype=torch.complex64 if dtype.is_complex else torch.float32)
    tensor[where] = complex(1.0, bad) if dtype.is_complex else bad
    tensor = tensor.to(dtype)
    low, high, *_ = row_of(tensor)

    assert not (math.isfinite(low) and math.isfinite(high))
    assert not is_finite(tensor)
    if not math.isnan(bad):
        assert bad in (low, high)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_finite_tensors_whose_sums_overflow_are_finite(dtype: torch.dtype) -> None:
    """The largest numbers of a dtype are finite, whatever their sum and norm are."""
    tensor = torch.full((50,), min(torch.finfo(dtype).max, 3e38), dtype=torch.float64).to(dtype)
    low, high, *_ = row_of(tensor)

    assert math.isfinite(low)
    assert math.isfinite(high)
    assert is_finite(tensor)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: torch.randn(6, 8).t(), id="transposed"),
        pytest.param(lambda: torch.randn(6, 8)[::2, 1:-1], id="slice"),
        pytest.param(lambda: torch.randn(4, 1).expand(4, 5), id="expanded"),
        pytest.param(lambda: torch.randn(4, 3, dtype=torch.complex64).conj(), id="conjugate"),
        pytest.param(lambda: torch.randn(5, requires_grad=True) * 2, id="with-a-graph"),
        pytest.param(lambda: torch.nn.Parameter(torch.randn(3)), id="parameter"),
    ],
)
def test_every_layout_of_a_strided_tensor(make: object) -> None:
    """Strides, expansion and conjugation change nothing."""
    tensor = make()
    low, high, total, _ = row_of(tensor)
    expected = reference(tensor)

    assert (low, high) == (expected.min, expected.max)
    assert total == pytest.approx(expected.total, rel=1e-5, abs=1e-5)


def test_an_empty_tensor_is_finite_and_zero() -> None:
    """Nothing is summed to 0."""
    assert row_of(torch.empty(0, 3)) == [0.0, 0.0, 0.0, 0.0]
    assert is_finite(torch.empty(0))


def test_a_sparse_tensor_is_read_by_its_values() -> None:
    """Of a sparse tensor the stored values count."""
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 3]]), torch.tensor([2.0, -5.0]), (9,), check_invariants=True)
    bad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.tensor([math.nan]), (9,), check_invariants=True)

    assert row_of(sparse)[:2] == [-5.0, 2.0]
    assert not is_finite(bad)


@pytest.mark.parametrize(
    "tensor", [torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool), torch.ones(2, device="meta")]
)
def test_what_has_no_floating_values_is_not_read(tensor: Tensor) -> None:
    """Integers, booleans and meta tensors have nothing to read."""
    assert readable(tensor) is None
    assert is_finite(tensor)


def test_a_board_grows_and_is_taken_row_by_row() -> None:
    """Rows past the first chunk are kept, and what is not taken moves to the front."""
    board = Board(torch.device("cpu"))
    for i in range(600):
        board.write(torch.tensor([float(i)]))
    first = board.take(590)
    rest = board.rows()

    assert first[:, 0].tolist() == list(range(590))
    assert rest[:, 0].tolist() == list(range(590, 600))
    assert board.used == 10


def test_writing_does_not_touch_the_tensor() -> None:
    """Statistics bump no version and make no graph."""
    tensor = torch.randn(5, requires_grad=True)
    version = tensor._version
    Board(tensor.device).write(tensor)

    assert tensor._version == version
    assert tensor.grad_fn is None
