"""Growth in a series of recorded magnitudes: how fast, since when, and which module was first.

One outlier is no growth: with its largest jump taken out, a series must still have risen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, log10
from statistics import mean, median, pstdev

from ..model import History
from .numbers import show, show_power

_LEAST_TOTAL = 1.5  # decades from the start to the end
_LEAST_WITHOUT_JUMP = 1.0  # decades that must remain without the largest jump
_LEAST_SHORT = 2.0  # the same, of a series of only three points
_LEAST_RISING = 0.6  # of the single changes
_LEAST_END = 1.0  # a loss that ends below has not diverged
_LEAST_OUTPUT = 30.0  # nor have outputs: those of a layer that began at zero grow to about 1 in every healthy run
_STEADY = 0.4  # the spread of the single changes, as a part of their mean


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
    before = max((log10(value) for _, value in points[:begin]), default=logs[-1])
    if logs[-1] < before:  # it has come from there: a recovery, or the noise at the end of a fall
        return None
    if total < _LEAST_TOTAL or remaining < needed or rising < _LEAST_RISING or logs[-1] < max(logs) - 1:
        return None
    return Growth(rise[0][0], rise[-1][0], len(rise), rise[0][1], rise[-1][1])


def loss_growth(history: History) -> Growth | None:
    """The growth of the loss over the recorded steps."""
    found = growth((step.step, step.loss) for step in history.steps if step.loss is not None)
    return found if found is not None and found.last >= _LEAST_END else None


def steady(history: History, loss: Growth) -> bool:
    """Whether the loss grew by about the same factor each step: a quadratic loss, or close to one."""
    logs = [
        log10(abs(step.loss))
        for step in history.steps
        if step.step >= loss.since and step.loss is not None and isfinite(step.loss) and step.loss != 0
    ]
    changes = [after - before for before, after in pairwise(logs)]
    return len(changes) >= 4 and mean(changes) > 0 and pstdev(changes) <= _STEADY * mean(changes)


def gradient_norm_growth(history: History) -> Growth | None:
    """The growth of the gradient's norm over the recorded steps."""
    return growth((step.step, step.grad_norm) for step in history.steps if step.grad_norm is not None)


def first_growing_module(history: History) -> tuple[str, Growth] | None:
    """The module whose output began to grow first; of several, the first that was called."""
    outputs = _outputs(history)
    grown = [(module, found) for module in outputs if (found := _output_growth(outputs[module])) is not None]
    return min(grown, key=lambda pair: pair[1].since, default=None)


def module_growth(history: History, module: str) -> Growth | None:
    """The growth of one module's output over the recorded steps."""
    return _output_growth(dict(history.series(module)))


def _outputs(history: History) -> dict[str, dict[int, float]]:
    """The largest output of each module in each step, read in one pass: a history may hold a million events."""
    found: dict[str, dict[int, float]] = {}
    for event in history.events:
        if event.kind == "forward":
            series = found.setdefault(event.module, {})
            value, known = event.absmax, series.get(event.step)
            series[event.step] = value if known is None or value != value or value > known else known
    return found


def _output_growth(series: dict[int, float]) -> Growth | None:
    found = growth(sorted(series.items()))
    return found if found is not None and found.last >= _LEAST_OUTPUT else None


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
