"""Least squares on points whose law is known."""

from __future__ import annotations

import pytest

from nantrace.bench.fitting import line_through, power_of


def test_a_line_is_found_again() -> None:
    """Points on y = 3 + 2x give back both numbers, and all of the variance."""
    line = line_through([(x, 3 + 2 * x) for x in (1.0, 5.0, 7.0)])

    assert line is not None
    assert (line.start, line.slope, line.r_squared) == pytest.approx((3, 2, 1))


def test_what_a_line_cannot_explain() -> None:
    """A symmetric parabola has no slope, and a line explains nothing of it."""
    line = line_through([(-1.0, 1.0), (0.0, 0.0), (1.0, 1.0)])

    assert line is not None
    assert (line.slope, line.r_squared) == pytest.approx((0, 0))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_a_power_is_found_again(power: float) -> None:
    """The slope of the logarithms is the exponent."""
    fitted = power_of([(x, 7 * x**power) for x in (10.0, 100.0, 1000.0)])

    assert fitted is not None
    assert fitted.slope == pytest.approx(power, abs=1e-9)


def test_figures_without_a_logarithm_have_no_power() -> None:
    """Nothing is fitted to what is left out."""
    assert power_of([(1.0, 2.0), (2.0, 0.0), (3.0, 4.0)]) is None


def test_one_point_has_no_line() -> None:
    """Nor have two of the same x."""
    assert line_through([(1.0, 2.0)]) is None
    assert line_through([(1.0, 2.0), (1.0, 3.0)]) is None
