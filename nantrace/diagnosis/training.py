"""Values that grew until they overflowed: over the steps, or through the depth of one backward."""

from __future__ import annotations

from math import sqrt

from ..model import Cause, Origin, Remedy, Snapshot
from .finding import Finding
from .growth import (
    Growth,
    first_growing_module,
    gradient_growth_in_step,
    gradient_norm_growth,
    healthy_gradient_norm,
    loss_growth,
    told,
)
from .numbers import limits, number, show
from .optimizers import update_overflow
from .overflow import overflow, overflow_in_backward
from .reading import dtype_of

_BOUNDED = 1e6  # forward values up to here are no sign of divergence
_MILLION = 1e6


def learning_rate(snapshot: Snapshot) -> Finding | None:
    """Loss, activations or gradients grew over the recorded steps until something overflowed.

    Likely: something overflowed at last, and before that the loss or a module's output rose over three steps
    or more by a factor of 30, and of 10 without its largest jump; or one SGD update, lr * gradient norm, made up
    most of a parameter.
    """
    end = _overflow(snapshot)
    if end is None:
        return None
    history = snapshot.history
    loss, module, gradient = loss_growth(history), first_growing_module(history), gradient_norm_growth(history)
    evidence = []
    if loss is not None:
        evidence.append(told("loss", loss, history))
    if module is not None:
        evidence.append(
            "the first module to grow: " + told(f"the output of {module[0] or 'the model'}", module[1], history)
        )
    if not evidence and snapshot.phase == "backward":
        return None
    leap = _leap(snapshot) if not evidence and gradient is None else None
    if leap is not None:
        evidence.append(leap)
    if not evidence and gradient is None:
        return None
    rate = _rate(snapshot)
    last = [f"the learning rate is {show(rate)}"] if rate is not None else []
    if gradient is not None:
        last.append(told("the gradient norm", gradient, history))
    return Finding(Cause.LEARNING_RATE, "likely", (*evidence, *end.evidence, *last), _for_rate(snapshot, loss, rate))


def divergence(snapshot: Snapshot) -> Finding | None:
    """The loss or a module's output grew a million-fold over the recorded steps, whatever op came first.

    Likely: the growth was recorded, whatever op came first, and nothing bad came in from outside.
    """
    history = snapshot.history
    loss, module = loss_growth(history), first_growing_module(history)
    evidence = []
    if loss is not None and loss.last / loss.first > _MILLION:
        evidence.append(told("loss", loss, history))
    if module is not None and module[1].last / module[1].first > _MILLION:
        evidence.append(told(f"the output of {module[0] or 'the model'}", module[1], history))
    if not evidence or snapshot.source_value is not None or snapshot.exception is not None:
        return None
    return Finding(Cause.LEARNING_RATE, "likely", tuple(evidence), _for_rate(snapshot, loss, _rate(snapshot)))


def exploding_gradient(snapshot: Snapshot) -> Finding | None:
    """The gradient grew geometrically through depth or time in backward, while forward values stayed bounded.

    Certain: the gradient's growth inside the backward was read from the ops of the replay, the forward values
    stayed below 1e6, the history does not grow, and the overflow at the end is itself certain.
    Likely: the same, where the growth is known only over the steps, or the overflow at the end is likely.
    """
    end = _overflow(snapshot)
    if end is None or snapshot.phase not in ("backward", "optimizer"):
        return None
    history = snapshot.history
    if loss_growth(history) is not None or first_growing_module(history) is not None:
        return None
    forward = [event.absmax for event in history.at(snapshot.step) if event.kind == "forward"]
    if any(not value <= _BOUNDED for value in forward):
        return None
    evidence = []
    found = gradient_growth_in_step(history, snapshot.step, snapshot.ops)
    if found is not None:
        grown, unit = found
        evidence.append(
            f"in the backward of step {snapshot.step} the gradient grew {grown.per(unit)}, {grown.points} of them in "
            "a row "
            f"({show(grown.first)} -> {show(grown.last)})"
        )
    over_steps = gradient_norm_growth(history)
    if over_steps is not None:
        evidence.append(told("the gradient norm", over_steps, history))
    if not evidence:
        return None
    calls = _calls(snapshot)
    if calls is not None:
        evidence.append(
            f"{calls[0]} was called {calls[1]} times in this step, so its Jacobian is multiplied {calls[1]} times"
        )
    if forward:
        evidence.append(f"the forward values stayed bounded: at most {show(max(forward))}")
    confidence = "certain" if found is not None and end.confidence == "certain" else "likely"
    return Finding(Cause.EXPLODING_GRADIENT, confidence, (*evidence, *end.evidence), _for_explosion(snapshot, calls))


def _overflow(snapshot: Snapshot) -> Finding | None:
    return overflow(snapshot) or overflow_in_backward(snapshot) or update_overflow(snapshot)


def _leap(snapshot: Snapshot) -> str | None:
    """One plain SGD update so large that the parameter it made is most of that update."""
    steps = snapshot.history.steps
    facts = snapshot.optimizer
    if len(steps) < 2 or facts is None or facts.type != "SGD" or snapshot.origin is None:
        return None
    before = steps[-2]
    rate = before.lr if before.lr is not None else number(facts.settings.get("lr"))
    if rate is None or before.grad_norm is None:
        return None
    moved = rate * before.grad_norm
    sizes = [found.absmax for found in snapshot.origin.inputs if found.label.startswith("parameter") and found.absmax]
    if not sizes or moved < 1e3 or not 0.01 * moved <= max(sizes) <= 2 * moved:
        return None
    return (
        f"the update of step {before.step} moved the parameters by lr * gradient norm = {show(rate)} * "
        f"{show(before.grad_norm)} = {show(moved)}; a parameter here is now as large as {show(max(sizes))}"
    )


def _rate(snapshot: Snapshot) -> float | None:
    rates = [step.lr for step in snapshot.history.steps if step.lr is not None]
    if rates:
        return rates[-1]
    return number(snapshot.optimizer.settings.get("lr")) if snapshot.optimizer is not None else None


def _for_rate(snapshot: Snapshot, loss: Growth | None, rate: float | None) -> tuple[Remedy, ...]:
    name = snapshot.optimizer.type if snapshot.optimizer is not None else "optimizer"
    advice = []
    if rate is not None and loss is not None and loss.factor < 1e6:
        # On a quadratic the loss grows by (lr * curvature - 1) ** 2 per step, and lr * curvature = 1 converges fastest.
        lower = rate / (1 + sqrt(loss.factor))
        advice.append(
            Remedy(
                f"Lower the learning rate: a loss that grows {loss.factor:.2g}x per step says that lr={show(rate)} is "
                f"{(1 + sqrt(loss.factor)) / 2:.2g} times the largest stable one; start at {lower:.1g}.",
                f"torch.optim.{name}(model.parameters(), lr={lower:.1g})",
            )
        )
    else:
        advice.append(
            Remedy(
                "Lower the learning rate by a factor of 10 or more.",
                f"torch.optim.{name}(model.parameters(), lr={rate / 10:.1g})" if rate else None,
            )
        )
    norm = healthy_gradient_norm(snapshot.history)
    advice.append(_clip(norm))
    advice.append(
        Remedy(
            "Warm the learning rate up over the first steps, and normalise (scale) inputs and targets to about unit "
            "size.",
            "torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=500)",
        )
    )
    return tuple(advice)


def _clip(norm: float | None) -> Remedy:
    usable = norm is not None and 1e-6 < norm < 1e6
    told_norm = f" (healthy steps had a norm of {show(norm)})" if usable and norm is not None else ""
    bound = f"{norm:.1g}" if usable else "1.0"
    return Remedy(
        f"Clip the gradient norm before the step{told_norm}.",
        f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={bound})",
    )


def _calls(snapshot: Snapshot) -> tuple[str, int] | None:
    """The module of the origin, where it was called several times in the step."""
    origin = snapshot.origin
    if origin is None or origin.module is None:
        return None
    events = [e for e in snapshot.history.at(snapshot.step) if e.kind == "forward" and e.module == origin.module]
    counted = (
        len(events)
        if events
        else sum(op.phase == "forward" and op.module == origin.module and op.name == origin.op for op in snapshot.ops)
    )
    return (origin.module or "the model", counted) if counted > 1 else None


def _for_explosion(snapshot: Snapshot, calls: tuple[str, int] | None) -> tuple[Remedy, ...]:
    end = limits(_dtype(snapshot.origin))
    clip = _clip(healthy_gradient_norm(snapshot.history))
    advice = [
        Remedy(
            "Initialise the weights so that their largest singular value (spectral radius) is about 1: orthogonal "
            "initialisation, or spectral_norm; a gated cell (LSTM, GRU) or a residual connection bounds the product "
            "too.",
            f"nn.init.orthogonal_(model.{snapshot.origin.module}.weight)"
            if snapshot.origin and snapshot.origin.module
            else None,
        ),
        Remedy(
            f"{clip.text} It keeps moderate growth from doing harm; a gradient that has overflowed cannot be clipped "
            "any more" + (f" ({end.dtype} ends at {show(end.max)})." if end is not None else "."),
            clip.code,
        ),
    ]
    if calls is not None:
        advice.insert(
            1,
            Remedy(
                f"Truncate the backward through time: detach the state every few of the {calls[1]} steps.",
                "h = h.detach()  # every k steps",
            ),
        )
    return tuple(advice)


def _dtype(origin: Origin | None) -> str:
    return dtype_of(origin) if origin is not None else ""
