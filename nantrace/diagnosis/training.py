"""Values that grew until they overflowed: over the steps, or through the calls of one step."""

from __future__ import annotations

from ..model import Cause, Remedy, Snapshot
from .explosion import Explosion, explosion, explosion_over_steps, for_explosion
from .finding import Finding
from .growth import (
    Growth,
    first_growing_module,
    gradient_norm_growth,
    healthy_gradient_norm,
    loss_growth,
    module_growth,
    told,
)
from .numbers import show
from .optimizers import update_overflow
from .outlier import outlier
from .overflow import overflow, overflow_in_backward
from .rates import clipping, lowering
from .trend import loss_trend
from .unexplained import known_of
from .updates import Update, divides, large_before, rate_of, swamped, told_leap, told_update, too_large

_MILLION = 1e6
_FIRST = 100  # iterations: where a learning rate that is too high shows itself


def learning_rate(snapshot: Snapshot) -> Finding | None:
    """Loss, activations or gradients grew over the recorded steps until something overflowed.

    Likely: something overflowed at last, and before that the loss or a module's output rose over three steps
    or more by a factor of 30, and of 10 without its largest jump; or an update as large as the weights themselves
    made the outputs a thousand times larger. One batch whose gradient stands out does not count.
    """
    end = _overflow(snapshot)
    if end is None or _began_inside_a_step(snapshot) is not None:
        return None
    one = outlier(snapshot)
    history = snapshot.history if one is None else snapshot.history.until(one.step)  # what one batch did is no growth
    loss, module, gradient = loss_growth(history), first_growing_module(history), gradient_norm_growth(history)
    if loss is None and module is not None and _fell(snapshot):
        return None  # outputs that grow while the loss falls are what was learned
    first = swamped(snapshot) if one is None else None
    if loss is None and module is None and first is None and (gradient is None or snapshot.phase == "backward"):
        return None
    update = first or too_large(snapshot)
    evidence = [*_rate_and_growth(snapshot, update, loss, module), *_at_the_origin(snapshot, module), *end.evidence]
    rate = rate_of(snapshot)
    if update is None and rate is not None:
        evidence.append(f"the learning rate is {show(rate)}")
    if gradient is not None:
        evidence.append(told("the gradient norm", gradient, history))
    evidence += _early(snapshot)
    return Finding(Cause.LEARNING_RATE, "likely", tuple(evidence), _for_rate(snapshot, loss))


def divergence(snapshot: Snapshot) -> Finding | None:
    """The loss or a module's output grew a million-fold, or an update as long as the weights blew the outputs up.

    Likely: it was recorded, whatever op came first, and nothing bad came in from outside. One batch whose gradient
    stands out does not count.
    """
    if snapshot.source_value is not None or snapshot.exception is not None:
        return None
    one = outlier(snapshot)
    history = snapshot.history if one is None else snapshot.history.until(one.step)
    loss, module = loss_growth(history), first_growing_module(history)
    update = swamped(snapshot) if one is None else None
    grown = [told("loss", loss, history)] if loss is not None and loss.last / loss.first > _MILLION else []
    if module is not None and module[1].last / module[1].first > _MILLION:
        grown.append(told(f"the output of {module[0] or 'the model'}", module[1], history))
    if not grown and update is None:
        return None
    first = [told_update(update, snapshot.optimizer)] if update is not None and snapshot.optimizer is not None else []
    evidence = (*first, *grown, *told_leap(snapshot), *(known_of(snapshot.origin) if snapshot.origin else ()))
    return Finding(Cause.LEARNING_RATE, "likely", (*evidence, *_early(snapshot)), _for_rate(snapshot, loss))


def exploding_gradient(snapshot: Snapshot) -> Finding | None:
    """Gradients or values grew geometrically through time or depth inside a step, at weights that were still sound.

    Certain: the gradient grew so in the failing step's own backward, and the overflow at its end is itself certain.
    Likely: values grew so in the forward pass (a module called 8 times or more), or an earlier step's gradient did and
    its update spoiled the weights, or the overflow at the end is likely. No update before was a tenth of the weights.
    """
    end = _overflow(snapshot)
    if end is None:
        return None
    found = _began_inside_a_step(snapshot) or _through_depth(snapshot)
    if found is None:
        return None
    over = gradient_norm_growth(snapshot.history)
    evidence = [*found.evidence, *((told("the gradient norm", over, snapshot.history),) if over is not None else ())]
    inside = found.through.step == snapshot.step and found.through.kind == "gradient"
    proven = inside and end.confidence == "certain"
    confidence = "certain" if proven and snapshot.phase == "backward" else "likely"
    return Finding(Cause.EXPLODING_GRADIENT, confidence, (*evidence, *end.evidence), for_explosion(snapshot, found))


def _began_inside_a_step(snapshot: Snapshot) -> Explosion | None:
    """An explosion through time at weights that no large update had touched: the recurrence, not the learning rate."""
    found = explosion(snapshot)
    if found is None or found.through.module is None:
        return None
    if large_before(snapshot, found.through.step) is not False:
        grown = [one.since for one in (loss_growth(snapshot.history), _module(snapshot)) if one is not None]
        if large_before(snapshot, found.through.step) or any(since < found.through.step for since in grown):
            return None
    return found


def _through_depth(snapshot: Snapshot) -> Explosion | None:
    """An explosion through the depth of the failing backward, or over the steps, in a run that did not diverge."""
    if snapshot.phase not in ("backward", "optimizer"):
        return None
    if loss_growth(snapshot.history) is not None or first_growing_module(snapshot.history) is not None:
        return None
    found = explosion(snapshot)
    if found is not None:
        return found if found.bounded is not None or _owed_to_no_update(snapshot, found) else None
    over = gradient_norm_growth(snapshot.history)
    return explosion_over_steps(snapshot, over) if over is not None else None


def _owed_to_no_update(snapshot: Snapshot, found: Explosion) -> bool:
    """Whether the gradient grew a million-fold at weights that no large update had touched."""
    grown = found.through.growth
    return grown.last / grown.first > _MILLION and large_before(snapshot, found.through.step) is False


def _module(snapshot: Snapshot) -> Growth | None:
    found = first_growing_module(snapshot.history)
    return found[1] if found is not None else None


def _overflow(snapshot: Snapshot) -> Finding | None:
    return overflow(snapshot) or overflow_in_backward(snapshot) or update_overflow(snapshot)


def _fell(snapshot: Snapshot) -> bool:
    trend = loss_trend(snapshot.history, snapshot.step)
    return trend is not None and trend.way == "falling"


def _rate_and_growth(
    snapshot: Snapshot, update: Update | None, loss: Growth | None, module: tuple[str, Growth] | None
) -> list[str]:
    """The chain from its deepest link on: the rate, what it did to the loss, which module went first."""
    links = []
    if update is not None and snapshot.optimizer is not None:
        links.append(told_update(update, snapshot.optimizer))
    if loss is not None:
        links.append(told("loss", loss, snapshot.history))
    if module is not None:
        name = module[0] or "the model"
        links.append("the first module to grow: " + told(f"the output of {name}", module[1], snapshot.history))
    return links


def _at_the_origin(snapshot: Snapshot, first: tuple[str, Growth] | None) -> list[str]:
    """How the module grew in which the value was born, where another one went first."""
    origin = snapshot.origin
    if first is None or origin is None or origin.module is None or origin.module == first[0]:
        return []
    found = module_growth(snapshot.history, origin.module)
    name = origin.module or "the model"
    return [told(f"where it overflowed, the output of {name}", found, snapshot.history)] if found is not None else []


def _early(snapshot: Snapshot) -> list[str]:
    if snapshot.step >= _FIRST or snapshot.history.evicted_steps:
        return []
    return [f"it came in step {snapshot.step}, within the first {_FIRST}: no warm-up, or a rate that never was right"]


def _for_rate(snapshot: Snapshot, loss: Growth | None) -> tuple[Remedy, ...]:
    facts = snapshot.optimizer
    scale_free = facts is not None and divides(facts)  # such an optimizer does not notice that gradients were clipped
    return (
        lowering(snapshot, loss),
        *(() if scale_free else (clipping(snapshot, healthy_gradient_norm(snapshot.history)),)),
        Remedy(
            "Warm the learning rate up over the first steps, and normalise (scale) inputs and targets to about unit "
            "size.",
            "torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=500)",
        ),
    )
