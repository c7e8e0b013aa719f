"""The spelling of numbers, shapes and counts."""

from __future__ import annotations

import pytest

from nantrace.rendering import numbers

from .builders import INF, NAN, tensor


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        (4.9e39, "4.9e+39"),
        (0.0, "0"),
        (-0.0, "-0"),
        (-INF, "-inf"),
        (NAN, "nan"),
        (1.0, "1.0"),
        (65504.0, "65504.0"),
        (0.1234567, "0.1235"),
        (1e-8, "1e-08"),
        (6403.1242, "6403"),
        (None, "?"),
        (7, "7"),
    ],
)
def test_number(value: float | None, spelled: str) -> None:
    """Short, with every special value in its usual spelling."""
    assert numbers.number(value) == spelled


def test_number_next_to_one_is_not_one() -> None:
    """acos(0.99999994) is fine where acos'(1) is not: rounding must not hide the difference."""
    assert numbers.number(0.99999994) == "0.99999994"


def test_shape() -> None:
    """Dtype and shape, as one word."""
    assert numbers.shape(tensor((8, 10))) == "float32[8, 10]"


def test_share() -> None:
    """A part of the elements, or all of them."""
    assert numbers.share(2, 16) == "2 of 16 elements"
    assert numbers.share(16, 16) == "all 16 elements"


def test_nonfinite_counts_kinds_apart() -> None:
    """NaN and the two infinities are different findings."""
    assert numbers.nonfinite(tensor((9,), nan=3, pos_inf=1, neg_inf=2)) == "3 nan 1 inf 2 -inf"


def test_values_of_a_slice() -> None:
    """A slice is its range and its first values."""
    assert numbers.values((1.0, 2.5, 0.0, 4.0)) == "0 .. 4.0 over 4 values, first 1.0, 2.5, 0, ..."


def test_values_all_equal() -> None:
    """A row that is all -inf is said once."""
    assert numbers.values((-INF,) * 12) == "-inf in all 12 values"


def test_values_of_a_longer_slice_come_from_its_summary() -> None:
    """At most 64 values are kept; the range is that of all of them."""
    told = numbers.values((1.0, 2.0), tensor((500,), min=-7.0, max=9.0))

    assert told == "-7.0 .. 9.0 over 500 values, first 1.0, 2.0, ..."
