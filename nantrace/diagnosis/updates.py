"""How large the updates were against the weights: what a learning rate that is too high shows first.

SGD moves the weights by lr * gradient; an optimizer that divides by the root of a second moment (Adam) moves each of
them by about lr, whatever the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import median

from ..model import OptimizerFacts, Snapshot, StepRecord
from .numbers import number, show

SGD_RATIO = 0.1  # updates as large as this, step after step, throw the weights about; healthy ones are near 0.001
ADAM_RATIO = 1.0  # a few large steps do Adam no harm: each is a fraction of this
REPLACED = 1.0  # an update as long as the weights leaves nothing of what they were
_RECENT = 10  # steps
_SWAMPED = 1e3  # an update as long as this that makes up the weights
_LEAP = 1e3  # times larger outputs or weights
_FIRST = 10  # updates: later ones have had their history
_DIVIDING = frozenset(
    {"adam", "adamw", "nadam", "radam", "adamax", "adagrad", "adadelta", "rmsprop", "sparseadam", "adafactor"}
)


@dataclass(frozen=True, slots=True)
class Update:
    """One step's update against the weights that it changed."""

    step: int
    rate: float
    moved: float  # the 2-norm of the update
    before: float | None  # that of the weights
    after: float | None
    told: str  # how `moved` was found: "lr * gradient norm = 5 * 0.9"

    @property
    def ratio(self) -> float:
        """The update as a part of the weights, where these are known; infinite where they were zero."""
        if self.before is None:
            return float("nan")
        return self.moved / self.before if self.before > 0 else float("inf")


def divides(facts: OptimizerFacts) -> bool:
    """Whether the optimizer divides by the root of a second moment."""
    return facts.type.lower() in _DIVIDING or "adam" in facts.type.lower()


def rate_of(snapshot: Snapshot) -> float | None:
    """The learning rate of the last steps."""
    known = number(snapshot.optimizer.settings.get("lr")) if snapshot.optimizer is not None else None
    rates = [step.lr for step in snapshot.history.steps if step.lr is not None and isfinite(step.lr)]
    return known if known is not None else (rates[-1] if rates else None)


def updates(snapshot: Snapshot) -> list[Update]:
    """The updates that are known, oldest first; that of the failing step is none, it was not made or broke."""
    facts = snapshot.optimizer
    if facts is None or facts.type not in ("SGD",) and not divides(facts):
        return []
    steps = snapshot.history.steps
    after = [*(step.weight_norm for step in steps[1:]), None]
    pairs = zip(steps[:-1], after[:-1], strict=True)
    return [update for step, norm in pairs if (update := _update(snapshot, facts, step, norm)) is not None]


def too_large(snapshot: Snapshot) -> Update | None:
    """The largest of the last updates, where most of them were too large; None where one of many stands out."""
    recent = [update for update in updates(snapshot) if update.before is not None][-_RECENT:]
    facts = snapshot.optimizer
    if facts is None or len(recent) < 2:
        return None
    bound = ADAM_RATIO if divides(facts) else SGD_RATIO
    if median(update.ratio for update in recent) < bound or recent[-1].ratio < bound:
        return None
    return max(recent, key=lambda update: update.ratio)


def swamped(snapshot: Snapshot) -> Update | None:
    """The first update that made the weights what they are, where the outputs are out of all proportion since then."""
    known = updates(snapshot)
    if not known or len(known) > _FIRST:
        return None
    if known[-1].before is None:
        return known[-1] if _is_what_it_moved(known[-1], _largest_parameter(snapshot)) else None
    first = next((update for update in known if update.ratio >= REPLACED), None)
    if first is None or not (_outputs_leapt(snapshot) or _weights_leapt(snapshot, known)):
        return None
    return first


def large_before(snapshot: Snapshot, step: int) -> bool | None:
    """Whether an update before this step was too large; None where no update is known."""
    known = [update for update in updates(snapshot) if update.step < step and update.before is not None]
    facts = snapshot.optimizer
    if facts is None or (not known and step > min((one.step for one in snapshot.history.steps), default=step)):
        return None
    bound = ADAM_RATIO if divides(facts) else SGD_RATIO
    return any(update.ratio >= bound for update in known)


def told_update(update: Update, optimizer: OptimizerFacts) -> str:
    """The update as a sentence, the learning rate first."""
    size = f"{100 * update.ratio:.2g}% of" if update.ratio < 1 else f"{_times(update.ratio)} as long as"
    rate = f"the learning rate is {show(update.rate)} ({optimizer.type})"
    if update.before is None:
        return f"{rate}: the update of step {update.step} made the weights what they are ({update.told})"
    if update.before == 0 or update.ratio > 1e6:
        size = "longer by far than"
    return (
        f"{rate}: the update of step {update.step} was {size} the weights themselves ({update.told}; the weights' norm "
        f"was {show(update.before)})"
    )


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times" if ratio < 1e4 else f"{ratio:.0e} times"


def _update(snapshot: Snapshot, facts: OptimizerFacts, step: StepRecord, after: float | None) -> Update | None:
    rate = step.lr if step.lr is not None and isfinite(step.lr) else number(facts.settings.get("lr"))
    before = step.weight_norm
    if rate is None or not isfinite(rate):
        return None
    if before is not None and not isfinite(before):
        before = None
    if divides(facts):
        if not facts.elements:
            return None
        moved = rate * sqrt(facts.elements)
        return Update(step.step, rate, moved, before, after, f"about lr for each of {facts.elements} numbers")
    if step.grad_norm is None or not isfinite(step.grad_norm):
        return None
    momentum = number(facts.settings.get("momentum")) or 0.0
    inertia = (
        f", and up to {1 / (1 - momentum):.3g} times that with momentum {show(momentum)}" if 0 < momentum < 1 else ""
    )
    moved = rate * step.grad_norm
    text = f"lr * gradient norm = {show(rate)} * {show(step.grad_norm)} = {show(moved)}"
    return Update(step.step, rate, moved, before, after, text + inertia)


def _is_what_it_moved(update: Update, parameter: float | None) -> bool:
    """Of weights whose norm is not known: whether the largest that is known is most of one very long update."""
    if parameter is None or update.moved < _SWAMPED:
        return False
    return 0.01 * update.moved <= parameter <= 2 * update.moved


def told_leap(snapshot: Snapshot) -> tuple[str, ...]:
    """How the outputs stand to those of the first recorded step, where they are out of all proportion."""
    if not _outputs_leapt(snapshot):
        return ()
    first = snapshot.history.steps[0].step
    before, after = largest_output(snapshot, first), largest_output(snapshot, snapshot.step)
    if before is None or after is None or not isfinite(after):
        return ()
    return (f"the largest output was {show(before)} in step {first} and is {show(after)} in step {snapshot.step}",)


def _outputs_leapt(snapshot: Snapshot) -> bool:
    """Whether the failing step's outputs are out of all proportion to those of the first one."""
    if not snapshot.history.steps:
        return False
    first = snapshot.history.steps[0].step
    before, after = largest_output(snapshot, first), largest_output(snapshot, snapshot.step)
    return before is not None and after is not None and not after <= _LEAP * before


def _weights_leapt(snapshot: Snapshot, known: list[Update]) -> bool:
    """The same of the weights, where no outputs were recorded."""
    now = known[-1].after
    first = known[0].before
    if now is None or first is None or largest_output(snapshot, snapshot.step) is not None:
        return False
    return not now <= _LEAP * first


def largest_output(snapshot: Snapshot, step: int) -> float | None:
    """The largest magnitude that any module gave out in a step; infinite where one was not finite."""
    values = [event.absmax for event in snapshot.history.at(step) if event.kind == "forward"]
    if not values:
        return None
    return max(values) if all(isfinite(value) for value in values) else float("inf")


def _largest_parameter(snapshot: Snapshot) -> float | None:
    known = snapshot.origin.inputs if snapshot.origin is not None else ()
    return max((one.absmax for one in known if one.label.startswith("parameter") and one.absmax), default=None)
