"""What a dtype can hold, and how numbers are written."""

from __future__ import annotations

import math
import random

import pytest

from nantrace.diagnosis.numbers import limits, rounded, show, show_power


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "float8_e5m2", "float8_e4m3fn"])
def test_limits_are_those_of_torch(dtype: str) -> None:
    """The largest number, the grain and the smallest numbers are what torch.finfo says."""
    torch = pytest.importorskip("torch")
    known, expected = limits(dtype), torch.finfo(getattr(torch, dtype))

    assert known is not None
    assert (known.max, known.eps, known.smallest_normal) == (expected.max, expected.eps, expected.smallest_normal)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rounding_is_that_of_torch(dtype: str) -> None:
    """A value is rounded as a cast rounds it, subnormal and overflowing values included."""
    torch = pytest.importorskip("torch")
    generator = random.Random(0)
    values = [generator.uniform(-2, 2) * 10.0 ** generator.randint(-46, 40) for _ in range(500)]
    values += [1e-12, 1e-8, 65504.0, 65519.0, 65520.0, 1 - 1e-12, 6e-8, 2.9e-8, 3e-8]

    assert [rounded(value, dtype) for value in values] == [
        torch.tensor(value, dtype=torch.float64).to(getattr(torch, dtype)).item() for value in values
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (65504.0, "65504"),
        (91.4, "91.4"),
        (3.4028234663852886e38, "3.4e+38"),
        (5.96e-8, "6e-08"),
        (1.0000001192092896, "1.00000012"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_are_short_and_say_what_matters(value: float, text: str) -> None:
    """Few digits, except where they tell the value from a whole number."""
    assert show(value) == text


def test_a_power_beyond_any_float_can_be_shown() -> None:
    """exp(2400) has no Python float, but it has a magnitude."""
    assert show_power(1042.3) == "2.0e+1042"
