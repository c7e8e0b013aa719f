"""Least squares: a line through points, and the power by which one quantity grows with another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """y = start + slope * x, and the share of the variance of y that it explains."""

    start: float
    slope: float
    r_squared: float


def line_through(points: Points) -> Line | None:
    """The least-squares line, or None where the points have fewer than two different x."""
    if len({x for x, _ in points}) < 2:
        return None
    mean_x = math.fsum(x for x, _ in points) / len(points)
    mean_y = math.fsum(y for _, y in points) / len(points)
    across = math.fsum((x - mean_x) ** 2 for x, _ in points)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / across
    start = mean_y - slope * mean_x
    total = math.fsum((y - mean_y) ** 2 for _, y in points)
    rest = math.fsum((y - start - slope * x) ** 2 for x, y in points)
    return Line(start, slope, 1 - rest / total if total else 1.0)


def power_of(points: Points) -> Line | None:
    """The line through the logarithms: its slope is p in y ~ x**p. None where a figure is not positive."""
    if any(x <= 0 or y <= 0 for x, y in points):
        return None
    return line_through([(math.log(x), math.log(y)) for x, y in points])
