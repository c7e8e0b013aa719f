"""Growth in a series of recorded magnitudes: how fast, since when, and which module was first.

One outlier is no growth: with its largest jump taken out, a series must still have risen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, log10
from statistics import median

from ..model import History, Op
from .numbers import show, show_power

_LEAST_TOTAL = 1.5  # decades from the start to the end
_LEAST_WITHOUT_JUMP = 1.0  # decades that must remain without the largest jump
_LEAST_SHORT = 2.0  # the same, of a series of only three points
_LEAST_RISING = 0.6  # of the single changes


@dataclass(frozen=True, slots=True)
class Growth:
    """A rise that went on until the series ended."""

    since: int  # the step (or call) at which it began
    until: int
    points: int
    first: float
    last: float

    @property
    def factor(self) -> float:
        """The growth per step."""
        return float(10 ** min(300.0, (log10(self.last) - log10(self.first)) / max(1, self.until - self.since)))

    def per(self, unit: str) -> str:
        """The growth in words: "1.9x per step"."""
        rate = (log10(self.last) - log10(self.first)) / max(1, self.until - self.since)
        return f"{show_power(rate) if rate > 3 else f'{10**rate:.2g}'}x per {unit}"


def growth(series: Iterable[tuple[int, float]]) -> Growth | None:
    """The rise with which the series ends, or None where it did not grow or only jumped."""
    points = [(at, abs(value)) for at, value in series if isfinite(value) and value != 0]
    if len(points) < 3:
        return None
    least = min(value for _, value in points)
    begin = max(i for i, (_, value) in enumerate(points) if value <= 2 * least)
    if len(points) - begin < 3:
        begin = max(i for i, (_, value) in enumerate(points) if value == least)
    rise = points[begin:]
    if len(rise) < 3:
        return None
    logs = [log10(value) for _, value in rise]
    changes = [after - before for before, after in pairwise(logs)]
    total = logs[-1] - logs[0]
    remaining = total - max(changes)
    rising = sum(change > 0 for change in changes) / len(changes)
    needed = _LEAST_SHORT if len(rise) == 3 else _LEAST_WITHOUT_JUMP
    if total < _LEAST_TOTAL or remaining < needed or rising < _LEAST_RISING or logs[-1] < max(logs) - 1:
        return None
    return Growth(rise[0][0], rise[-1][0], len(rise), rise[0][1], rise[-1][1])


def loss_growth(history: History) -> Growth | None:
    """The growth of the loss over the recorded steps."""
    return growth((step.step, step.loss) for step in history.steps if step.loss is not None)


def gradient_norm_growth(history: History) -> Growth | None:
    """The growth of the gradient's norm over the recorded steps."""
    return growth((step.step, step.grad_norm) for step in history.steps if step.grad_norm is not None)


def first_growing_module(history: History) -> tuple[str, Growth] | None:
    """The module whose output began to grow first; of several, the first that was called."""
    grown = [(module, found) for module in history.modules() if (found := growth(history.series(module))) is not None]
    return min(grown, key=lambda pair: pair[1].since, default=None)


def gradient_growth_in_step(history: History, step: int, ops: Sequence[Op]) -> tuple[Growth, str] | None:
    """The growth of the gradient inside one step's backward, and what was counted.

    Read from the ops of the replay where they are known, else from the recorded events.
    """
    best: tuple[Growth, str] | None = None
    groups: dict[tuple[str, tuple[int, ...]], list[float]] = {}
    for op in ops:
        if op.phase == "backward" and op.outputs and op.outputs[0].absmax is not None and op.outputs[0].nonfinite == 0:
            groups.setdefault((op.name, op.outputs[0].shape), []).append(op.outputs[0].absmax)
    for (name, _), values in groups.items():
        found = growth(enumerate(values)) if len(values) >= 5 else None
        if found is not None and (best is None or found.points > best[0].points):
            best = found, name
    if best is not None:
        return best
    gradients = [event for event in history.at(step) if event.kind == "gradient" and event.finite]
    found = growth(enumerate(event.absmax for event in gradients)) if len(gradients) >= 4 else None
    return (found, "module call") if found is not None else None


def healthy_gradient_norm(history: History) -> float | None:
    """The usual gradient norm: the median over the recorded steps before the failing one."""
    rises = [loss_growth(history), gradient_norm_growth(history)]
    module = first_growing_module(history)
    since = min([found.since for found in (*rises, module[1] if module else None) if found is not None], default=None)
    norms = [
        step.grad_norm
        for step in history.steps[:-1]
        if step.grad_norm is not None and isfinite(step.grad_norm) and (since is None or step.step <= since)
    ]
    return median(norms) if norms else None


def told(what: str, found: Growth, history: History) -> str:
    """The growth over the steps as a sentence: "loss grew 1.9x per step since step 12 (0.4 -> 2.1e+36)"."""
    oldest = history.steps[0].step if history.steps else found.since
    since = (
        f"since at least step {found.since}"
        if history.evicted_steps and found.since == oldest
        else (f"since step {found.since}")
    )
    return f"{what} grew {found.per('step')} {since} ({show(found.first)} -> {show(found.last)})"
