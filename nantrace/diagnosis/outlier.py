"""One batch that threw the weights off: a gradient out of line with those before it, at weights that were sound."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from statistics import median

from ..model import Snapshot
from .numbers import plural, show
from .updates import REPLACED, large_before, largest_output, updates

_TIMES = 100.0  # the usual gradient norm
_LEAST_KNOWN = 5  # steps that make a norm usual, where what came before them is no longer recorded
_SAME_OUTPUTS = 10.0  # times those of the steps before: the weights were still what they had been


@dataclass(frozen=True, slots=True)
class Outlier:
    """The step whose gradient stood out."""

    step: int
    norm: float
    usual: float
    before: int  # how many steps make the usual norm

    @property
    def told(self) -> str:
        """The step as a sentence."""
        return (
            f"the gradient norm of step {self.step} was {show(self.norm)}, against {show(self.usual)} in the "
            f"{plural(self.before, 'step')} before: one batch threw the weights off, not the learning rate"
        )


def outlier(snapshot: Snapshot) -> Outlier | None:
    """The first step whose gradient jumped although neither the updates nor the outputs before it had grown."""
    norms = [
        (step.step, step.grad_norm)
        for step in snapshot.history.steps
        if step.step < snapshot.step and step.grad_norm is not None and isfinite(step.grad_norm)
    ]
    least = _LEAST_KNOWN if snapshot.history.evicted_steps else 1
    for position, (step, norm) in enumerate(norms[least:], start=least):
        usual = median(known for _, known in norms[:position])
        if 0 < usual * _TIMES <= norm:
            found = Outlier(step, norm, usual, position)
            return found if _weights_were_sound(snapshot, step, norms[0][0]) else None
    return None


def _weights_were_sound(snapshot: Snapshot, step: int, first: int) -> bool:
    if large_before(snapshot, step) is False:
        return True
    if any(update.step < step and update.ratio >= REPLACED for update in updates(snapshot)):
        return False  # whatever the outputs: those weights are not the ones that gave the usual gradients
    before, at = largest_output(snapshot, first), largest_output(snapshot, step)
    return before is not None and at is not None and at <= _SAME_OUTPUTS * before
