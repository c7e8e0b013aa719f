"""Born in backward: derivatives that are infinite, and masks that do not protect them."""

from __future__ import annotations

from math import isfinite

from ..model import Cause, Origin, Remedy, Snapshot, Status
from .division import denominator
from .domains import domain_remedies
from .finding import Finding
from .gradient_remedies import double_where, for_root, root_above, separated
from .hidden import mask_after
from .numbers import plural, show, show_index
from .reading import derivative_at, element, holds_zero, main_operand, op_by_id, readers
from .rewriting import atom, operand_text
from .slopes import Slope, slope

_DIVIDING = ("div", "true_divide", "reciprocal", "rsqrt")
_POLES_AT_ZERO = (*_DIVIDING, "pow", "log", "log2", "log10")
_FORWARD_CAUSES = {
    **dict.fromkeys(("log", "log2", "log10", "log1p", "logit", "xlogy"), Cause.LOG_DOMAIN),
    **dict.fromkeys(("div", "true_divide", "reciprocal", "rsqrt"), Cause.ZERO_DIVISION),
    **dict.fromkeys(("exp", "exp2", "expm1"), Cause.OVERFLOW),
    **dict.fromkeys(("atanh", "erfinv"), Cause.DOMAIN),
}
_SPECTRAL = ("linalg_eigh", "linalg_eig", "linalg_svd", "svd", "symeig", "eigh")


def singular_gradient(snapshot: Snapshot) -> Finding | None:
    """The forward value is finite, but its derivative there is infinite or undefined.

    Certain: the operand was read and is a point at which the op's derivative is infinite or undefined while its
    value is finite; or the backward divides by that operand, which is 0.
    Likely: the backward divided by a tensor that holds zeros, such as the differences of equal eigenvalues.
    """
    origin = derivative_at(snapshot)
    if origin is None:
        return None
    local = slope(origin)
    if local is not None:
        if local.value is not None or not local.forward_finite:
            return None
        found = main_operand(origin)
        at = (
            f"{atom(operand_text(origin, 0, found.name))}{show_index(found.index)} = {show(found.value)}: "
            if (found is not None and found.value is not None)
            else ""
        )
        evidence = (f"{at}{local.text}", *_revived(origin, local))
        return Finding(Cause.SINGULAR_GRADIENT, "certain", evidence, _for_slope(snapshot, origin))
    return _zero_vector(snapshot, origin) or _divided_by_zero(snapshot, origin)


def masked_gradient(snapshot: Snapshot) -> Finding | None:
    """A mask hides a bad branch in forward, and 0 * inf revives it in backward.

    Certain: the derivative at the operand that was read is infinite or undefined, and the gradient that arrives
    there is exactly 0.
    Likely: the forward value was not finite either, and something downstream took it out: a mask, an index, a
    clamp.
    """
    origin = derivative_at(snapshot)
    local = slope(origin) if origin is not None else None
    if origin is None or local is None or local.value is not None:
        return None
    gradient = element(origin, "grad")
    mask = mask_after(snapshot)
    if local.forward_finite and not (gradient == 0 and mask is not None):
        return None
    if gradient is not None and gradient != 0 and mask is None:
        return None
    if tamed_value(snapshot) is not None:
        return None
    evidence = [f"{local.text}", *_revived(origin, local)]
    if mask is not None:
        line = f" in `{mask.source.code}`" if mask.source is not None and mask.source.code else ""
        evidence.append(f"{mask.name}{line} takes the value out in forward, but only after {origin.op} computed it")
    elif not local.forward_finite:
        evidence.append("the bad forward value did not reach the loss: something downstream took it out")
    confidence = "certain" if gradient == 0 else "likely"
    advice = (*root_above(snapshot, origin), double_where(snapshot, origin), *_for_slope(snapshot, origin))
    return Finding(Cause.MASKED_GRADIENT, confidence, tuple(evidence), tuple(dict.fromkeys(advice))[:2])


def tamed_value(snapshot: Snapshot) -> Finding | None:
    """The forward value is not finite either, and a later op made a finite one of it, as exp(-inf) = 0 does.

    Likely: the derivative at the operand that was read is infinite or undefined, and so was the op's value; no mask
    stands after it, and an op there took an infinite value and gave a finite one.
    """
    origin = derivative_at(snapshot)
    local = slope(origin) if origin is not None else None
    cause = _FORWARD_CAUSES.get(origin.op) if origin is not None else None
    if origin is None or local is None or cause is None or local.value is not None or local.forward_finite:
        return None
    op = next((op for op in readers(snapshot) if op.status is Status.KILLED), None)
    if op is None or mask_after(snapshot) is not None:
        return None
    line = f" in `{op.source.code}`" if op.source is not None and op.source.code else ""
    hidden = f"the forward value there is not finite either; {op.name}{line} made a finite one of it again"
    evidence = (local.text, *_revived(origin, local), hidden)
    return Finding(cause, "likely", evidence, _for_slope(snapshot, origin))


def _revived(origin: Origin, local: Slope) -> tuple[str, ...]:
    gradient = element(origin, "grad")
    if gradient is None:
        return ()
    if gradient == 0:
        return (f"the gradient that arrives at {origin.op} is 0, and 0 * inf = nan",)
    made = (
        f" = {show(origin.example.value)}" if origin.example is not None and not isfinite(origin.example.value) else ""
    )
    return (
        f"the gradient that arrives at {origin.op} is {show(gradient)}; times that "
        f"derivative{made or ' it is not finite'}",
    )


def _zero_vector(snapshot: Snapshot, origin: Origin) -> Finding | None:
    found = main_operand(origin)
    if (
        origin.op not in ("norm", "linalg_vector_norm", "dist", "cdist_dist", "pairwise_distance", "std", "var")
        or found is None
    ):
        return None
    whole = found.summary
    values = (
        (whole.min, whole.max)
        if whole is not None
        else (min(found.values), max(found.values))
        if found.values
        else (None, None)
    )
    if values[0] is None or values[0] != values[1] or values[0] != 0 and "norm" in origin.op:
        return None
    kind = "a zero vector" if values[0] == 0 else "equal values"
    text = f"{origin.op} of {kind}: its derivative is x / {origin.op}(x) = 0 / 0"
    return Finding(Cause.SINGULAR_GRADIENT, "certain", (text,), for_root(snapshot, origin, origin.op))


def _divided_by_zero(snapshot: Snapshot, origin: Origin) -> Finding | None:
    """The backward itself divided: by an operand that is 0 at the element, or by a tensor with zeros."""
    derivative = op_by_id(snapshot, origin.id)
    name = origin.derivative_aten.partition("::")[2].partition(".")[0].strip("_") or (
        derivative.name if derivative else ""
    )
    if name not in _POLES_AT_ZERO:
        return None
    found = main_operand(origin)
    if found is not None and found.value == 0:
        at = f"{found.name}{show_index(found.index)}"
        does = f"divides ({name}) by a value" if name in _DIVIDING else f"takes the {name} of a value"
        text = f"{at} = 0, and the backward of {origin.op} {does} that is 0 there"
        return Finding(
            Cause.SINGULAR_GRADIENT, "certain", (text, *_gradient_told(origin)), for_root(snapshot, origin, origin.op)
        )
    if derivative is None or derivative.phase != "backward" or name not in _DIVIDING:
        return None
    divisor = next(
        (given for given in derivative.inputs if given.name == (denominator(_named(origin, name)) or "other")), None
    )
    if divisor is None or not holds_zero(divisor):
        return None
    zeros = (
        f"{plural(divisor.zero, 'exact zero')} of {divisor.numel} values"
        if divisor.zero
        else "exact zeros, its least value"
    )
    text = f"the backward of {origin.op} divides by a tensor with {zeros}"
    if origin.op in _SPECTRAL:
        text += ": two eigenvalues (or singular values) are equal, and their difference is the divisor"
        advice = separated(snapshot, origin)
    else:
        advice = for_root(snapshot, origin, origin.op)
    return Finding(Cause.SINGULAR_GRADIENT, "likely", (text, *_gradient_told(origin)), advice)


def _named(origin: Origin, name: str) -> Origin:
    return Origin(op=name, module=origin.module)


def _gradient_told(origin: Origin) -> tuple[str, ...]:
    gradient = element(origin, "grad")
    return (f"the gradient that arrives there is {show(gradient)}",) if gradient is not None else ()


def _for_slope(snapshot: Snapshot, origin: Origin) -> tuple[Remedy, ...]:
    op = origin.op.removeprefix("special_")
    if op in ("acos", "asin", "acosh", "atanh", "erfinv"):
        return domain_remedies(snapshot, origin)
    root = for_root(snapshot, origin, op)
    masked = mask_after(snapshot)
    if masked is not None and masked.name == "where" and element(origin, "grad") == 0:
        return (double_where(snapshot, origin), *root)
    return root
