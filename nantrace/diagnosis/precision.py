"""A number that matters was too small for the dtype: an eps that rounded away, a denominator that underflowed."""

from __future__ import annotations

from collections.abc import Iterator

from ..model import Cause, Op, Origin, Snapshot
from .division import denominator, zero_division
from .dtypes import would_keep, would_resolve
from .finding import Finding
from .logarithms import log_domain
from .numbers import COARSE, limits, number, plural, rounded, show
from .precision_remedies import for_coarse_draw, for_eps, for_underflow, kept_elsewhere
from .reading import dtype_of, holds_zero, lacks_zero, makers

_EPS_AT_MOST = 1e-3
_DRAWS = ("rand", "rand_like", "uniform")
_MULTIPLYING = ("mul", "pow", "square", "exp", "prod", "div", "sigmoid", "softmax", "cumprod")


def vanished_eps(snapshot: Snapshot) -> Finding | None:
    """A small constant meant to keep the operand from 0 rounds away in its dtype, and the operand is 0.

    Certain: the divisor or the operand of the logarithm was read and is 0, and above it an op with a constant of at
    most 1e-3, which its dtype rounds away, made a 0.
    Likely: the same, where only the operand's range is known.
    """
    found = zero_division(snapshot) or log_domain(snapshot)
    origin = snapshot.origin
    if found is None or origin is None:
        return None
    for op in _above(snapshot, origin):
        lost = _lost(op)
        if lost is not None:
            told, name, better = lost
            evidence = (told, *found.evidence, *([better] if better is not None else []))
            return Finding(Cause.PRECISION, found.confidence, evidence, for_eps(snapshot, origin, op, name))
    return None


def underflowed_denominator(snapshot: Snapshot) -> Finding | None:
    """In half precision, an op turned non-zero values into the exact 0 that was divided by.

    Likely: the divisor is 0 in float16 or bfloat16, and a product, power, exponential or quotient above it made
    that 0 of operands without zeros.
    """
    found = zero_division(snapshot)
    origin = snapshot.origin
    if found is None or origin is None or dtype_of(origin) not in COARSE:
        return None
    return _lost_to_underflow(snapshot, origin, found)


def underflowed_operand(snapshot: Snapshot) -> Finding | None:
    """An op turned non-zero values into the exact 0 whose logarithm or reciprocal was taken.

    Likely: the operand is 0, and a product, power, exponential or quotient above it made that 0 of operands without
    zeros; or it is a random draw in half precision, which is exactly 0 once in a while.
    """
    found = zero_division(snapshot) or log_domain(snapshot)
    origin = snapshot.origin
    if found is None or origin is None:
        return None
    underflow = _lost_to_underflow(snapshot, origin, found)
    if underflow is not None or not origin.op.startswith("log"):
        return underflow
    told = _coarse_draw(snapshot, origin)
    if told is None:
        return None
    return Finding(Cause.PRECISION, "likely", (told, *found.evidence), for_coarse_draw(snapshot, origin))


def _lost_to_underflow(snapshot: Snapshot, origin: Origin, found: Finding) -> Finding | None:
    lost = _underflow(snapshot, origin)
    if lost is None:
        return None
    told, op = lost
    better = kept_elsewhere(op)
    evidence = (told, *found.evidence, *([better] if better is not None else []))
    return Finding(Cause.PRECISION, "likely", evidence, for_underflow(snapshot, origin, op))


def _coarse_draw(snapshot: Snapshot, origin: Origin) -> str | None:
    for op in _above(snapshot, origin):
        grain = limits(op.outputs[0].dtype) if op.outputs else None
        if op.name in _DRAWS and grain is not None and grain.dtype in COARSE:
            digits = grain.mantissa + 1
            return f"{grain.dtype} has {digits} binary digits: one random draw in about {2**digits} is exactly 0"
    return None


def _above(snapshot: Snapshot, origin: Origin) -> Iterator[Op]:
    # Three ops up: sqrt(s + eps) is two, a product with a temperature one more.
    return makers(snapshot, denominator(origin) or ("other" if "xlog" in origin.op else "self"), depth=3)


def _lost(op: Op) -> tuple[str, str, str | None] | None:
    """What rounded away, which argument it is, and which dtype would have kept it."""
    dtype = op.outputs[0].dtype if op.outputs else ""
    grain = limits(dtype)
    if grain is None:
        return None
    # Without a zero in its result the constant has done its work.
    if holds_zero(op.outputs[0]) and op.name in ("add", "sub", "clamp", "clamp_min", "maximum"):
        for name in ("other", "min"):
            eps = number(op.arguments.get(name))
            if eps is not None and 0 < abs(eps) <= _EPS_AT_MOST and rounded(eps, dtype) == 0:
                told = f"eps={show(eps)} rounds to 0 in {dtype} (smallest positive value "
                return f"{told}{show(grain.smallest_subnormal)}){_at(op)}", name, would_keep(eps, dtype)
    if op.name in ("clamp", "clamp_max"):
        top = number(op.arguments.get("max"))
        if top is not None and top != 1 and abs(1 - top) <= _EPS_AT_MOST and rounded(top, dtype) == 1:
            told = f"the bound 1 - {show(1 - top)} rounds to 1 in {dtype} (eps {show(grain.eps)}){_at(op)}"
            return told, "max", would_resolve(1 - top, dtype)
    return None


def _at(op: Op) -> str:
    return f", in `{op.source.code}`" if op.source is not None and op.source.code else ""


def _underflow(snapshot: Snapshot, origin: Origin) -> tuple[str, Op] | None:
    for op in _above(snapshot, origin):
        if op.name not in _MULTIPLYING or not op.outputs or not holds_zero(op.outputs[0]):
            continue
        made, given = op.outputs[0], [found for found in op.inputs if limits(found.dtype)]
        grain = limits(made.dtype)
        if grain is None or not given or any(not lacks_zero(found) or found.nonfinite for found in given):
            continue
        zeros = plural(made.zero, "exact zero") if made.zero else "exact zeros"
        told = (
            f"{op.name} made {zeros} of operands without zeros{_at(op)}: they underflowed "
            f"{made.dtype}, whose smallest positive value is {show(grain.smallest_subnormal)}"
        )
        return told, op
    return None
