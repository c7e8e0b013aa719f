"""Finite gradients, a non-finite parameter after the update."""

from __future__ import annotations

from math import isfinite, log10, sqrt

from ..model import Cause, OptimizerFacts, Origin, Remedy, Snapshot
from .division import zero_division
from .dtypes import would_hold, would_keep
from .finding import Finding
from .numbers import limits, log_of, number, rounded, show, show_index, show_limit, show_power
from .optimizer_remedies import for_broken_setting, for_eps, for_large_update, uncentered
from .reading import dtype_of, element, operand
from .updates import divides

_SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "sum", "max_exp_avg_sq", "v")


def optimizer_precision(snapshot: Snapshot) -> Finding | None:
    """The optimizer's eps rounds to 0 in the parameter's dtype, and the second moment is 0.

    Certain: the second moment at the failing element was read, and is 0 in the dtype of the parameter.
    Likely: that element's second moment is not known.
    """
    found = _at_optimizer(snapshot)
    if found is None:
        return None
    origin, facts = found
    eps, dtype = number(facts.settings.get("eps")), facts.parameter_dtype or dtype_of(origin)
    end = limits(dtype)
    if end is None or not eps or rounded(eps, dtype) != 0 or not divides(facts):
        return None
    moment = _second_moment(origin)
    if moment is not None and rounded(moment[1], dtype) != 0:
        return None
    evidence = [f"eps={show(eps)} rounds to 0 in {dtype} (smallest positive value {show(end.smallest_subnormal)})"]
    if moment is not None:
        gradient = element(origin, "grad")
        grad = f" (gradient {show(gradient)})" if gradient is not None else ""
        evidence.append(
            f"{moment[0]} = {show(moment[1])} at {_where(origin, facts)}{grad}, so the update divides by sqrt(0) + 0"
        )
    kept = would_keep(eps, dtype)
    evidence += [kept] if kept is not None else []
    return Finding(
        Cause.PRECISION, "certain" if moment is not None else "likely", tuple(evidence), for_eps(facts, dtype)
    )


def optimizer(snapshot: Snapshot) -> Finding | None:
    """The gradients were finite, the update made a parameter non-finite.

    Certain: the values at the failing element prove it: a setting that is not finite, an update past the end of the
    dtype, a second moment that is negative, or is 0 with eps=0, or a state that was not finite.
    Likely: parameter, gradient and state are known, but none of these explains the result.
    """
    found = _at_optimizer(snapshot)
    if found is None:
        return None
    origin, facts = found
    gradient = element(origin, "grad")
    if gradient is not None and not isfinite(gradient):
        return None
    broken = _broken_setting(facts)
    if broken is not None:
        text = f"{facts.type} stepped with {broken}={show(_setting(facts, broken))}"
        return Finding(Cause.OPTIMIZER, "certain", (text,), for_broken_setting(snapshot, facts, broken))
    overflowing = update_overflow(snapshot)
    if overflowing is not None:
        return Finding(Cause.OPTIMIZER, overflowing.confidence, overflowing.evidence, overflowing.remedies)
    moment, dtype = _second_moment(origin), facts.parameter_dtype or dtype_of(origin)
    eps = number(facts.settings.get("eps"))
    where = _where(origin, facts)
    if moment is not None and moment[1] < 0:
        text = f"{moment[0]} = {show(moment[1])} at {where}: a sum of squares cannot be negative, and its root is NaN"
        advice = Remedy(
            f"Reset the state of {facts.type}: it was loaded or changed wrongly.", "optimizer.state.clear()"
        )
        return Finding(Cause.OPTIMIZER, "certain", (text,), (advice,))
    if (
        moment is not None
        and eps is not None
        and divides(facts)
        and rounded(sqrt(moment[1]), dtype) + rounded(eps, dtype) == 0
    ):
        text = f"{moment[0]} = {show(moment[1])} at {where} and eps={show(eps)}: the update divides by 0"
        return Finding(Cause.OPTIMIZER, "certain", (text,), for_eps(facts, dtype))
    bad = _bad_state(origin)
    if bad is not None:
        text = f"the state {bad[0]} of {facts.type} was {show(bad[1])} at {where} although the gradient is finite"
        advice = Remedy(
            "Reset the optimizer's state, or load it from a checkpoint in which it is finite.",
            "optimizer.state.clear()",
        )
        return Finding(Cause.OPTIMIZER, "certain", (text,), (advice,))
    if gradient is None:
        return None
    spread = _cancelled_variance(origin, facts)
    if spread is not None:
        return Finding(Cause.OPTIMIZER, "likely", (f"at {where}, {spread}", *_states(origin)), (uncentered(facts),))
    settings = ", ".join(f"{name}={value}" for name, value in facts.settings.items())
    text = f"{facts.type}({settings}) made {where} non-finite of the finite gradient {show(gradient)}"
    advice = Remedy(
        "Check eps, lr and weight_decay of the optimizer against the state values above.",
        f"{facts.type}(..., eps=1e-8, lr=...)",
    )
    return Finding(Cause.OPTIMIZER, "likely", (text, *_states(origin)), (advice,))


def update_overflow(snapshot: Snapshot) -> Finding | None:
    """The update lr * (gradient + weight decay) is past the end of the parameter's dtype."""
    found = _at_optimizer(snapshot)
    if found is None:
        return None
    origin, facts = found
    dtype = facts.parameter_dtype or dtype_of(origin)
    end, rate = limits(dtype), number(facts.settings.get("lr"))
    before, gradient = element(origin, "param"), element(origin, "grad")
    if (
        end is None
        or rate is None
        or not isfinite(rate)
        or gradient is None
        or not isfinite(gradient)
        or divides(facts)
    ):
        return None
    momentum = element(origin, "momentum_buffer")
    decay = number(facts.settings.get("weight_decay")) or 0.0
    direction = momentum if momentum is not None and isfinite(momentum) and abs(momentum) > abs(gradient) else gradient
    pieces = [(abs(direction), rate), (abs(before or 0.0), rate * decay)]
    size, factor = max(pieces, key=lambda pair: log_of(pair[0]) + log_of(pair[1]))
    power = log_of(size) + log_of(factor)
    if power < log10(end.max) and not (before is not None and rounded(before - rate * direction, dtype) in _INFINITE):
        return None
    product = f"{show(factor)} * {show(size)} = {show_power(power)}"
    text = f"the update of {_where(origin, facts)} is {product}, {show_limit(dtype)}"
    advice = for_large_update(snapshot, facts, rate, abs(direction) or 1.0)
    held = would_hold(power, dtype)
    return Finding(Cause.OVERFLOW, "certain", (text, held) if held is not None else (text,), advice)


def _cancelled_variance(origin: Origin, facts: OptimizerFacts) -> str | None:
    """The variance of a centered RMSprop where rounding has eaten it: its root is NaN, before eps is added."""
    square, mean = element(origin, "square_avg"), element(origin, "grad_avg")
    grain = limits(facts.parameter_dtype or dtype_of(origin))
    if not facts.settings.get("centered") or square is None or mean is None or grain is None:
        return None
    if square - mean**2 > 16 * grain.eps * abs(square):
        return None
    return (
        f"square_avg - grad_avg ** 2 = {show(square)} - ({show(mean)}) ** 2 is 0 but for rounding, and where it comes "
        "out negative its root is NaN"
    )


_INFINITE = (float("inf"), float("-inf"))


def inner_eps(snapshot: Snapshot) -> Finding | None:
    """An op inside the step divides by 0, and the optimizer's eps, which was to prevent that, rounds to 0.

    Certain: the divisor inside the step was read and is 0, and the eps of the optimizer rounds to 0 in that dtype.
    Likely: the same, where only the divisor's range is known.
    """
    origin, facts = snapshot.origin, snapshot.optimizer
    if snapshot.phase != "optimizer" or origin is None or facts is None or origin.id is None:
        return None
    found = zero_division(snapshot)
    eps, dtype = number(facts.settings.get("eps")), facts.parameter_dtype or dtype_of(origin)
    end = limits(dtype)
    if found is None or end is None or not eps or rounded(eps, dtype) != 0:
        return None
    text = f"eps={show(eps)} rounds to 0 in {dtype} (smallest positive value {show(end.smallest_subnormal)})"
    return Finding(Cause.PRECISION, found.confidence, (text, *found.evidence), for_eps(facts, dtype))


def inner_op(snapshot: Snapshot) -> Finding | None:
    """An op inside the step of an optimizer that is not torch's made the value, and no rule knows how.

    Likely: the op inside the step is known, its gradients were finite, and no rule says more.
    """
    origin, facts = snapshot.origin, snapshot.optimizer
    if snapshot.phase != "optimizer" or origin is None or facts is None or origin.id is None:
        return None
    where = facts.parameter or "a parameter"
    if facts.spoiled_state is not None and facts.spoiled_in is None:
        text = f"the state {facts.spoiled_state} of {facts.type} was not finite before the step that spoiled {where}"
    else:
        text = f"{origin.op} inside the step of {facts.type} made {where} non-finite out of finite gradients"
    told = ", ".join(f"{found.name}={show(found.value)}" for found in facts.state if found.value is not None)
    advice = Remedy(
        f"Check the settings of {facts.type} against these values; a larger eps, a lower lr, or float32 parameters and "
        "state most often heal it.",
        f"{facts.type}(model.parameters(), ...)",
    )
    return Finding(Cause.OPTIMIZER, "likely", (text, *((f"after the step: {told}",) if told else ())), (advice,))


def _at_optimizer(snapshot: Snapshot) -> tuple[Origin, OptimizerFacts] | None:
    if snapshot.phase != "optimizer" or snapshot.origin is None or snapshot.optimizer is None:
        return None
    if snapshot.origin.id is not None:  # the op inside the step is known: its operands say more than the state does
        return None
    if snapshot.source_value is not None or snapshot.exception is not None:
        return None
    return snapshot.origin, snapshot.optimizer


def _second_moment(origin: Origin) -> tuple[str, float] | None:
    for name in _SECOND_MOMENTS:
        found = operand(origin, name)
        if found is not None and found.value is not None:
            return name, found.value
    return None


def _bad_state(origin: Origin) -> tuple[str, float] | None:
    known = origin.example.operands if origin.example is not None else ()
    for found in known:
        if found.name not in ("param", "grad") and found.value is not None and not isfinite(found.value):
            return found.name, found.value
    return None


def _states(origin: Origin) -> tuple[str, ...]:
    known = origin.example.operands if origin.example is not None else ()
    told = ", ".join(f"{found.name}={show(found.value)}" for found in known if found.value is not None)
    return (f"at that element: {told}",) if told else ()


def _setting(facts: OptimizerFacts, name: str) -> float:
    value = number(facts.settings.get(name))
    return float("nan") if value is None else value


def _broken_setting(facts: OptimizerFacts) -> str | None:
    for name, value in facts.settings.items():
        known = number(value)
        if known is not None and not isfinite(known):
            return name
    return None


def _where(origin: Origin, facts: OptimizerFacts) -> str:
    return (
        f"{facts.parameter or 'the parameter'}{show_index(origin.example.index) if origin.example is not None else ''}"
    )
