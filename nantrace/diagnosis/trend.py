"""What the loss did until the failing step: rising, flat, or falling and then suddenly not finite.

A loss that fell until it was NaN points away from the learning rate, to the loss itself or to one batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from statistics import median

from ..model import Cause, History, Remedy, Snapshot
from .finding import Finding
from .growth import first_growing_module, gradient_norm_growth, loss_growth
from .numbers import plural, show
from .outlier import outlier
from .rates import clipping

_LEAST = 5  # steps that make a trend
_FROM_WEIGHTS = frozenset({Cause.OVERFLOW, Cause.INF_ARITHMETIC, Cause.UNDETERMINED})  # what spoiled weights end in
_OF_ONE_STEP = frozenset(
    {
        Cause.OVERFLOW,
        Cause.LOG_DOMAIN,
        Cause.ZERO_DIVISION,
        Cause.SQRT_DOMAIN,
        Cause.POW_DOMAIN,
        Cause.DOMAIN,
        Cause.INF_ARITHMETIC,
        Cause.SINGULAR_GRADIENT,
        Cause.MASKED_GRADIENT,
        Cause.UNDETERMINED,
    }
)


@dataclass(frozen=True, slots=True)
class Trend:
    """The loss over the steps before the failing one."""

    way: str  # "rising" | "flat" | "falling"
    first: float
    last: float
    steps: int


def loss_trend(history: History, failing: int) -> Trend | None:
    """The way of the loss, from the medians of its first and its last third."""
    losses = [s.loss for s in history.steps if s.step < failing and s.loss is not None and isfinite(s.loss)]
    if len(losses) < _LEAST:
        return None
    third = max(1, len(losses) // 3)
    first, last = median(losses[:third]), median(losses[-third:])
    scale = max(abs(first), abs(last))
    way = "flat" if abs(last - first) <= 0.2 * scale else "falling" if last < first else "rising"
    return Trend(way, first, last, len(losses))


def with_trend(snapshot: Snapshot, finding: Finding) -> Finding:
    """The finding with what the steps before say about it: where nothing grew, the learning rate is not to blame."""
    if finding.cause not in _OF_ONE_STEP or snapshot.exception is not None:
        return finding
    found = outlier(snapshot)
    if found is not None and finding.cause in _FROM_WEIGHTS:
        clip = clipping(snapshot, found.usual)
        advice = Remedy(f"{clip.text} And look at the batch of step {found.step}.", clip.code, change=clip.change)
        remedies = (advice, *finding.remedies)
        return Finding(finding.cause, finding.confidence, (*finding.evidence, found.told), remedies)
    sentence = _sudden(snapshot)
    evidence = (*finding.evidence, sentence) if sentence else finding.evidence
    return Finding(finding.cause, finding.confidence, evidence, finding.remedies)


def _sudden(snapshot: Snapshot) -> str:
    history = snapshot.history
    trend = loss_trend(history, snapshot.step)
    if trend is None or trend.way == "rising" or loss_growth(history) is not None:
        return ""
    if gradient_norm_growth(history) is not None or first_growing_module(history) is not None:
        return ""
    return (
        f"the loss was finite and {trend.way} over the {plural(trend.steps, 'step')} before ({show(trend.first)} -> "
        f"{show(trend.last)}), and nothing grew: that points to this op or this batch, not to the learning rate"
    )
