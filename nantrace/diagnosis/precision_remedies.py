"""What to change where a small number was lost: an eps that the dtype can hold, or a finer dtype."""

from __future__ import annotations

import re
from dataclasses import replace
from math import inf, log

from ..model import Change, Op, Origin, Remedy, Snapshot
from .division import denominator
from .dtypes import finer, would_keep
from .edits import Edit
from .exponentials import for_exponential
from .keywords import keyword_edit, number_replaced
from .numbers import COARSE, inside_one, limits, number, show
from .reading import dtype_of, forward_op, makers
from .rewriting import is_number
from .spots import Spot, spot_of, spot_of_op
from .widening import as_origin, in_wider, where

_DIVIDING = frozenset({"div", "true_divide", "reciprocal"})
_EPS_TAKEN = re.compile(r"^(torch\.nn\.functional|nn\.functional|functional|F)\.(normalize|cosine_similarity)\(")
_BOUNDS = {"min": 1, "max": 2}  # where they stand in clamp(x, min, max)


def for_eps(snapshot: Snapshot, origin: Origin, op: Op, name: str) -> tuple[Remedy, ...]:
    """The larger eps in the line where the lost one stands, then that line in float32."""
    dtype = op.outputs[0].dtype
    top = name == "max"
    gap = inside_one(dtype) if top else _eps(snapshot, origin, op, dtype)
    value = 1 - float(gap) if top else float(gap)
    grain = limits(dtype)
    told = ""
    if grain is not None:
        told = (
            f" (next to 1 its grain is {show(grain.eps)})"
            if top
            else f" (its smallest positive value is {show(grain.smallest_subnormal)}, and 1 / eps must not overflow)"
        )
    text = f"Use an eps that {dtype} can hold{told}, such as {gap}."
    edit = _literal(op, name, number(op.arguments.get(name)), gap)
    change = Change("argument", op.id, name, (value,))
    advice = edit or keyword_edit(origin, "eps", gap, f"eps = {gap}") if _takes_eps(origin) else edit
    return (
        (advice or Edit(f"eps = {gap}")).remedy(text, change),
        *_in_finer(snapshot, op, dtype, 1 - value if top else None),
    )


def _takes_eps(origin: Origin) -> bool:
    """Whether the line calls a function that has the eps as an argument of its own."""
    return origin.source is not None and _EPS_TAKEN.search(origin.source.expression) is not None


def for_underflow(snapshot: Snapshot, origin: Origin, op: Op) -> tuple[Remedy, ...]:
    """The op that lost the value in float32; in float32 itself its logarithm, or a clamp."""
    dtype = op.outputs[0].dtype
    moved = as_origin(snapshot, op)
    if dtype in COARSE and moved.origin is not None:
        shift = for_exponential(moved, moved.origin) if op.name == "exp" else []
        stable = [remedy for remedy in shift if remedy.change is not None and remedy.change.act == "subtract-max"]
        return (*stable, *_in_finer(snapshot, op, dtype, None))
    return (
        Remedy(f"Keep the value from underflowing {dtype}: work with its logarithm, or with log_softmax / logsigmoid."),
        _clamped(snapshot, origin),
    )


def kept_elsewhere(op: Op) -> str | None:
    """In a sentence, which dtypes would have kept what the op lost."""
    found = op.inputs[0] if op.inputs else None
    if op.name != "exp" or found is None or found.min is None or not op.outputs or found.min < -300:
        return None
    return would_keep(10 ** (found.min / log(10)), op.outputs[0].dtype)


def for_coarse_draw(snapshot: Snapshot, origin: Origin) -> tuple[Remedy, ...]:
    """A random draw that is exactly 0: draw it in float32, or keep it away from 0."""
    return (*_in_finer(snapshot, forward_op(snapshot), dtype_of(origin), None), _clamped(snapshot, origin))


def _eps(snapshot: Snapshot, origin: Origin, op: Op, dtype: str) -> str:
    # The derivative of x / eps is 1 / eps and, where x is not 0, x / eps ** 2: float16 ends at 65504.
    if dtype == "float16":
        return "1e-3" if origin.op in _DIVIDING and not _under_a_root(snapshot, origin, op) else "1e-4"
    return "1e-6"


def _under_a_root(snapshot: Snapshot, origin: Origin, op: Op) -> bool:
    """Whether a square root stands between the constant and the division: it makes 1e-2 of 1e-4."""
    for between in makers(snapshot, denominator(origin) or "self", depth=3):
        if between.id == op.id:
            return False
        if between.name == "sqrt":
            return True
    return False


def _literal(op: Op, name: str, old: float | None, new: str) -> Edit | None:
    spot = spot_of_op(op)
    if spot is None or old is None:
        return None
    position = _position(spot, op, name)
    if position is None:
        return None
    text = spot.operand(position) or ""
    old = 1 - old if name == "max" and not is_number(text) else old
    span = spot.call.spans[position]
    found = number_replaced(spot.frame, span, old, new) or _close_number(spot, span, old, new)
    if found is not None or name == "max":
        return found
    return spot.with_operand(position, "max({}, " + new + ")") if not is_number(text) else None


def _close_number(spot: Spot, span: tuple[int, int], old: float, new: str) -> Edit | None:
    """The literal that 1 - (1 - eps) stands for: the difference is not exact."""
    shown = float(f"{old:.6g}")
    return number_replaced(spot.frame, span, shown, new)


def _position(spot: Spot, op: Op, name: str) -> int | None:
    """Which operand of the text the constant is."""
    count = len(spot.call.spans)
    if op.name.startswith("clamp"):
        position = _BOUNDS[name] if op.name == "clamp" and count > 2 else 1
    else:
        position = 0 if is_number(spot.operand(0)) else 1
    return position if position < count else None


def _in_finer(snapshot: Snapshot, op: Op | None, dtype: str, gap: float | None) -> tuple[Remedy, ...]:
    if op is None:
        return ()
    name = finer(gap, dtype) if gap is not None else "float32" if dtype in COARSE else None
    moved = as_origin(snapshot, op)
    if name is None or moved.origin is None:
        return ()
    half = "half precision (float16, fp16)" if dtype == "float16" else dtype
    text = f"Or compute {where(moved.origin)} in {name}, and keep its result in {name}; {half} is too coarse for it."
    return (replace(in_wider(moved, moved.origin, name), text=text),)


def _clamped(snapshot: Snapshot, origin: Origin) -> Remedy:
    spot, op = spot_of(origin), forward_op(snapshot)
    eps = "1e-4" if dtype_of(origin) == "float16" else "1e-8"
    divides = origin.op in ("div", "true_divide")
    edit = spot.with_operand(1 if divides else 0, "{}.clamp_min(" + eps + ")") if spot is not None else None
    name = "other" if divides else "self"
    change = Change("clamp", op.id, name, (float(eps), inf)) if op is not None else None
    text = "Or clamp it to a small eps."
    if edit is None:
        return Remedy(text, f"x.clamp_min({eps})", change=change)
    return Remedy(text, edit.code, change=change, replaces=edit.replaces)
