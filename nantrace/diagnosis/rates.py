"""Numbers for the remedies of training: a learning rate and a clipping norm, taken from the healthy steps."""

from __future__ import annotations

from math import floor, isfinite, log10, sqrt
from statistics import median

from ..model import Change, History, Remedy, Snapshot
from .growth import Growth, steady
from .numbers import number, show
from .updates import divides, rate_of

_SGD_PART = 0.01  # of the weights: a first update as large as this is stable on everything that was tried
_ADAM_PART = 0.01
_LEAST_CUT = 1e-9  # of the rate: where less would be left, it is the gradient that is out of line
_ADAM_USUAL = 1e-3


def round_down(value: float) -> float:
    """The next number of the kind 1, 2 or 5 times a power of ten that is not larger."""
    if not isfinite(value) or value <= 0:
        return value
    power = floor(log10(value))
    digit = next(one for one in (5, 2, 1) if value / 10.0**power >= one * (1 - 1e-9) or one == 1)
    return float(f"{digit}e{power}")


def round_near(value: float) -> float:
    """The nearest number of the kind 1, 2 or 5 times a power of ten."""
    if not isfinite(value) or value <= 0:
        return value
    low = round_down(value)
    above = round_down(low * 2.5)
    return above if value > sqrt(low * above) else low


def spelled(value: float) -> str:
    """A rounded number as code writes it: 0.05, 200, 5e-06."""
    return f"{value:g}"


def lower_rate(snapshot: Snapshot, loss: Growth | None) -> tuple[float, str] | None:
    """A learning rate that should be stable, and why; None where the present one is not known.

    A loss that grows by the same factor each step is a quadratic one: the factor is (lr * curvature - 1) ** 2, and
    lr = 1 / curvature converges fastest. Else the first update is made a small part of the weights.
    """
    rate = rate_of(snapshot)
    facts = snapshot.optimizer
    if rate is None or not isfinite(rate) or rate <= 0:
        return None
    if facts is not None and divides(facts):
        return _for_adam(snapshot, rate)
    momentum = number(facts.settings.get("momentum")) or 0.0 if facts is not None else 0.0
    if loss is not None and steady(snapshot.history, loss):
        times = 1 + momentum + sqrt(loss.factor)
        return round_down(rate / times), (
            f"a loss that grows steadily by {loss.factor:.2g}x per step says that lr={show(rate)} is "
            f"{times / (2 * (1 + momentum)):.2g} times the largest stable one"
        )
    part = _part_of_weights(snapshot.history, momentum, loss)
    if part is not None and _LEAST_CUT * rate < part < rate / 2:
        return round_down(part), (
            f"with lr={spelled(round_down(part))} the first update is about 1% of the weights; with lr={show(rate)} it "
            f"was {100 * _SGD_PART * rate / part:.3g}%"
        )
    return round_down(rate / 10), f"a tenth of lr={show(rate)}, to begin with"


def clip_norm(norm: float | None) -> float:
    """The bound for the gradient norm: that of the healthy steps, or 1 where it is not known."""
    return round_near(norm) if norm is not None and 1e-6 < norm < 1e6 else 1.0


def clipping(snapshot: Snapshot, norm: float | None) -> Remedy:
    """Clip the gradients to the norm that healthy steps had; tried where the update itself overflowed."""
    usable = norm is not None and 1e-6 < norm < 1e6
    told = f" (the healthy steps had a norm of {show(norm)})" if usable and norm is not None else ""
    bound = clip_norm(norm)
    return Remedy(
        f"Clip the gradient norm before the step{told}.",
        f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={spelled(bound)})",
        change=Change("clip", values=(bound,)) if snapshot.phase == "optimizer" else None,
    )


def lowering(snapshot: Snapshot, loss: Growth | None) -> Remedy:
    """Lower the learning rate, to a number where it is known; tried where the update itself overflowed."""
    found = lower_rate(snapshot, loss)
    if found is None:
        return Remedy("Lower the learning rate by a factor of 10 or more.")
    lower, why = found
    name = snapshot.optimizer.type if snapshot.optimizer is not None else "optimizer"
    return Remedy(
        f"Lower the learning rate to {spelled(lower)}: {why}.",
        f"torch.optim.{name}(model.parameters(), lr={spelled(lower)})",
        change=Change("setting", name="lr", values=(lower,)) if snapshot.phase == "optimizer" else None,
    )


def _for_adam(snapshot: Snapshot, rate: float) -> tuple[float, str]:
    facts = snapshot.optimizer
    norms = [step.weight_norm for step in snapshot.history.steps if step.weight_norm and isfinite(step.weight_norm)]
    usual = _ADAM_USUAL
    told = f"{facts.type if facts is not None else 'Adam'} moves each weight by about lr a step"
    if norms and facts is not None and facts.elements:
        size = norms[0] / sqrt(facts.elements)
        usual = min(usual, _ADAM_PART * size)
        told += f", and the weights began at {show(size)} (root mean square)"
    return round_down(min(usual, rate / 3)), told


def _part_of_weights(history: History, momentum: float, loss: Growth | None) -> float | None:
    """The rate at which a healthy step's update is a hundredth of the weights."""
    known = [
        (step.step, step.weight_norm / step.grad_norm)
        for step in history.steps
        if step.weight_norm and step.grad_norm and isfinite(step.weight_norm) and isfinite(step.grad_norm)
    ]
    if not known:
        return None
    # In a divergence both norms run away: the healthy steps are those before it, and the very first one.
    until = loss.since if loss is not None else known[0][0]
    healthy = [quotient for step, quotient in known if step <= until] or [known[0][1]]
    return _SGD_PART * (1 - momentum) * median(healthy)
