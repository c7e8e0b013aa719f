"""A number that matters was too small for the dtype: an eps that rounded away, a denominator that underflowed."""

from __future__ import annotations

from collections.abc import Iterator

from ..model import Cause, Op, Origin, Remedy, Snapshot
from .division import denominator, zero_division
from .finding import Finding
from .logarithms import log_domain
from .numbers import COARSE, limits, number, plural, rounded, show
from .reading import dtype_of, holds_zero, lacks_zero, makers
from .rewriting import call_of
from .widening import device_of, where

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
        told = _lost(op)
        if told is not None:
            return Finding(Cause.PRECISION, found.confidence, (told, *found.evidence), _for_eps(snapshot, origin, op))
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
    told = _underflow(snapshot, origin)
    return (
        Finding(Cause.PRECISION, "likely", (told, *found.evidence), _in_float32(origin)) if told is not None else None
    )


def underflowed_operand(snapshot: Snapshot) -> Finding | None:
    """An op turned non-zero values into the exact 0 whose logarithm or reciprocal was taken.

    Likely: the operand is 0, and a product, power, exponential or quotient above it made that 0 of operands without
    zeros; or it is a random draw in half precision, which is exactly 0 once in a while.
    """
    found = zero_division(snapshot) or log_domain(snapshot)
    origin = snapshot.origin
    if found is None or origin is None:
        return None
    told = _underflow(snapshot, origin)
    if told is None and origin.op.startswith("log"):
        told = _coarse_draw(snapshot, origin)
    return (
        Finding(Cause.PRECISION, "likely", (told, *found.evidence), _in_float32(origin)) if told is not None else None
    )


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


def _lost(op: Op) -> str | None:
    dtype = op.outputs[0].dtype if op.outputs else ""
    grain = limits(dtype)
    if grain is None:
        return None
    # Without a zero in its result the constant has done its work.
    if holds_zero(op.outputs[0]) and op.name in ("add", "sub", "clamp", "clamp_min", "maximum"):
        for name in ("other", "min"):
            eps = number(op.arguments.get(name))
            if eps is not None and 0 < abs(eps) <= _EPS_AT_MOST and rounded(eps, dtype) == 0:
                return (
                    f"eps={show(eps)} rounds to 0 in {dtype} (smallest positive value {show(grain.smallest_subnormal)})"
                    f"{_at(op)}"
                )
    if op.name in ("clamp", "clamp_max"):
        top = number(op.arguments.get("max"))
        if top is not None and top != 1 and abs(1 - top) <= _EPS_AT_MOST and rounded(top, dtype) == 1:
            return f"the bound 1 - {show(1 - top)} rounds to 1 in {dtype} (eps {show(grain.eps)}){_at(op)}"
    return None


def _at(op: Op) -> str:
    return f", in `{op.source.code}`" if op.source is not None and op.source.code else ""


def _underflow(snapshot: Snapshot, origin: Origin) -> str | None:
    for op in _above(snapshot, origin):
        if op.name not in _MULTIPLYING or not op.outputs or not holds_zero(op.outputs[0]):
            continue
        made, given = op.outputs[0], [found for found in op.inputs if limits(found.dtype)]
        grain = limits(made.dtype)
        if grain is None or not given or any(not lacks_zero(found) or found.nonfinite for found in given):
            continue
        zeros = plural(made.zero, "exact zero") if made.zero else "exact zeros"
        return (
            f"{op.name} made {zeros} of operands without zeros{_at(op)}: they underflowed "
            f"{made.dtype}, whose smallest positive value is {show(grain.smallest_subnormal)}"
        )
    return None


def _for_eps(snapshot: Snapshot, origin: Origin, op: Op) -> tuple[Remedy, ...]:
    dtype = op.outputs[0].dtype
    grain = limits(dtype)
    eps = {"float16": "1e-5", "float32": "1e-6", "bfloat16": "1e-2" if op.name.startswith("clamp") else "1e-6"}.get(
        dtype, "1e-3"
    )
    told = f" (its smallest positive value is {show(grain.smallest_subnormal)})" if grain is not None else ""
    advice = Remedy(f"Use an eps that {dtype} can hold{told}, such as {eps}.", f"eps = {eps}")
    return (advice, *_in_float32(origin)) if dtype in COARSE else (advice,)


def _in_float32(origin: Origin) -> tuple[Remedy, ...]:
    dtype = dtype_of(origin)
    call = call_of(origin)
    inner = call.text if call is not None else f"{origin.op}(...)"
    if dtype not in COARSE:
        return (
            Remedy(
                f"Keep the value from underflowing {dtype}: work with its logarithm, or with log_softmax / logsigmoid.",
                None,
            ),
            Remedy("Or clamp it to a small eps.", "x.clamp_min(1e-8)"),
        )
    half = "half precision (fp16)" if dtype == "float16" else dtype
    return (
        Remedy(
            f"Compute {where(origin)} in float32 and cast the result back; {half} is too coarse for it.",
            f'with torch.autocast("{device_of(origin)}", enabled=False):\n    out = {inner}  # on .float() operands',
        ),
    )
