"""Where a series of magnitudes is going: whether it leaves a dtype's range soon, if it goes on as it does.

Works on logarithms. A window of the newest points is cut into five blocks and judged by the blocks' medians: they must
rise every time, by far more than the noise from point to point, and the rise is continued as it bends: one that gets
slower from block to block is continued ever slower, and mostly ends before the limit. No trend is continued more than
a few times as far as it was seen. What rises from healthy values is not judged at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite, log, log2, sqrt
from statistics import median

WINDOWS = (5, 10, 20, 50)  # points; the shortest sees a run that diverges in ten steps, the longest one that takes 300
_BLOCKS = 5
LEAST_FACTOR = 4.0  # that a series must have grown by, over a window
_LEAST_RISE_TO_NOISE = 8.0
_REACH = 3  # how many times as far as a trend was seen it is continued
_FALLEN = 0.95  # of what it was
_HEALTHY = 1e6  # magnitudes up to here are left alone, where the dtype does not end
_NEAR_THE_END = 32  # before


@dataclass(frozen=True, slots=True)
class Trend:
    """A rise that leaves the range."""

    since: int  # the first step of the window it was seen in
    value: float  # the newest magnitude
    factor: float  # the growth per step
    steps_left: int  # from the newest step on, until the limit is passed


def worth_judging(limit: float) -> float:
    """The magnitude from which on a series is judged: a million, or what is near the end of a smaller range."""
    return min(_HEALTHY, limit / _NEAR_THE_END)


def leaving_range(series: Sequence[tuple[int, float]], limit: float) -> Trend | None:
    """The trend with which a series of (step, magnitude) leaves the range within sight, or None where it stays.

    The steps ascend. What is zero or not finite is left out; the newest value must be within the range.
    """
    if not series or not worth_judging(limit) <= series[-1][1] < limit:
        return None
    points = [(step, log2(value)) for step, value in series if value > 0 and isfinite(value)]
    noise = _noise([level for _, level in points])
    for size in WINDOWS:
        if len(points) < size:
            break
        found = _continued(points[-size:], noise, log2(limit))
        if found is not None:
            rate, steps_left = found
            return Trend(points[-size][0], series[-1][1], 2**rate, steps_left)
    return None


def falls(series: Sequence[tuple[int, float]], *, since: int) -> bool:
    """Whether a series of (step, magnitude) has come down since that step: its last fifth lies below its first."""
    values = [value for step, value in series if step >= since and value == value]
    some = max(1, len(values) // _BLOCKS)
    return len(values) > 1 and median(values[-some:]) < _FALLEN * median(values[:some])


def _noise(levels: Sequence[float]) -> float:
    """The standard deviation around the trend, robustly, from the changes from point to point."""
    changes = [after - before for before, after in pairwise(levels)]
    if not changes:
        return 0.0
    usual = median(changes)
    return 1.4826 / sqrt(2) * median(abs(change - usual) for change in changes)


def _continued(points: Sequence[tuple[int, float]], noise: float, end: float) -> tuple[float, int] | None:
    """The rise per step of a window in bits, and the steps until `end`; None where it does not rise or get there."""
    per_block = len(points) // _BLOCKS
    blocks = [points[start : start + per_block] for start in range(0, len(points), per_block)]
    middles = [(median(step for step, _ in block), median(level for _, level in block)) for block in blocks]
    newest = points[-1][1]
    rise, span = middles[-1][1] - middles[0][1], middles[-1][0] - middles[0][0]
    if newest < middles[-1][1] or rise < max(log2(LEAST_FACTOR), _LEAST_RISE_TO_NOISE * noise / sqrt(per_block)):
        return None
    rates = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairwise(middles)]
    if min(rates) <= 0:
        return None
    half = len(rates) // 2
    early, late = sum(rates[:half]) / half, sum(rates[half:]) / half
    bend = min(1.0, sqrt(late / early))  # the halves are two blocks apart
    rate = min(late, rise / span)
    blocks_left = _terms(end - newest, rate * span / len(rates), bend)
    steps_left = blocks_left * span / len(rates)
    return (rate, max(1, round(steps_left))) if steps_left <= _REACH * (points[-1][0] - points[0][0]) else None


def _terms(total: float, last: float, ratio: float) -> float:
    """How many terms of a geometric series, going on after `last`, add up to the total; infinite where none do."""
    if ratio > 0.999:  # as good as none; the formula below would divide rounding errors
        return total / last
    missing = 1 - total * (1 - ratio) / (last * ratio)
    return log(missing) / log(ratio) if missing > 0 else inf
