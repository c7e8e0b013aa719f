"""Reading a snapshot: the origin's operands at the failing element, and the ops that made them.

Nothing here concludes anything; rules ask, this answers or says None.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import isfinite

from ..model import Example, Op, OperandValue, Origin, Snapshot, TensorSummary
from .numbers import number, show, show_index

# Ops that move or cast values without making new ones: looked through when walking upstream.
PLUMBING = frozenset(
    {
        "view",
        "reshape",
        "unsafe_view",
        "expand",
        "expand_as",
        "broadcast_to",
        "unsqueeze",
        "squeeze",
        "transpose",
        "permute",
        "t",
        "movedim",
        "diagonal",
        "alias",
        "clone",
        "contiguous",
        "to",
        "to_copy",
        "copy",
        "detach",
        "lift_fresh",
        "slice",
        "select",
        "narrow",
        "chunk",
        "split",
        "split_with_sizes",
        "unbind",
        "flatten",
        "unflatten",
        "as_strided",
        "repeat",
        "cat",
        "stack",
        "index",
        "index_select",
        "gather",
    }
)


def generated_at(snapshot: Snapshot, *ops: str) -> Origin | None:
    """The origin, where it is one of these ops and computed the value in its own right.

    None for a derivative (the forward op was fine) and for a value that came in from outside.
    """
    origin = snapshot.origin
    if origin is None or origin.derivative or snapshot.source_value is not None or snapshot.exception is not None:
        return None
    return origin if not ops or origin.op in ops else None


def derivative_at(snapshot: Snapshot) -> Origin | None:
    """The origin, where it is the derivative of an op that made the value."""
    origin = snapshot.origin
    return origin if origin is not None and origin.derivative and snapshot.source_value is None else None


def dtype_of(origin: Origin) -> str:
    """The dtype that the op's result has, or "" when nothing is known."""
    known = origin.outputs or origin.inputs
    floats = [summary.dtype for summary in known if "float" in summary.dtype or "complex" in summary.dtype]
    return floats[0] if floats else (known[0].dtype if known else "")


def operand(origin: Origin, *names: str) -> OperandValue | None:
    """The operand of the failing element under the first of these names that is there."""
    if origin.example is None:
        return None
    found = (origin.example.operand(name) for name in names)
    return next((value for value in found if value is not None), None)


def main_operand(origin: Origin) -> OperandValue | None:
    """The operand that a function of one tensor was applied to."""
    named = operand(origin, "self", "input", "x")
    if named is not None or origin.example is None:
        return named
    others = [value for value in origin.example.operands if value.name != "grad"]
    return others[0] if len(others) == 1 else None


def element(origin: Origin, *names: str) -> float | None:
    """The one value of an operand at the failing element, be it a tensor's or a plain number."""
    found = operand(origin, *names)
    if found is not None:
        return found.value
    plain = (number(origin.arguments.get(name)) for name in names)
    return next((value for value in plain if value is not None), None)


def main_element(origin: Origin) -> float | None:
    """The one value that a function of one tensor was applied to."""
    found = main_operand(origin)
    return found.value if found is not None else None


def summary(origin: Origin, *names: str) -> TensorSummary | None:
    """The statistics of the input under the first of these names that is there."""
    by_name = {found.name: found for found in origin.inputs}
    return next((by_name[name] for name in names if name in by_name), None)


def main_summary(origin: Origin) -> TensorSummary | None:
    """The statistics of the input that a function of one tensor was applied to."""
    return summary(origin, "self", "input", "x") or (origin.inputs[0] if len(origin.inputs) == 1 else None)


def holds_zero(found: TensorSummary) -> bool:
    """Whether the tensor is known to hold an exact zero: by count, or else as its smallest or largest value."""
    return found.zero > 0 if found.zero is not None else 0 in (found.min, found.max)


def lacks_zero(found: TensorSummary) -> bool:
    """Whether the tensor is known to hold no exact zero: by count, or else because its range leaves it out."""
    if found.zero is not None:
        return found.zero == 0
    return found.min is not None and found.max is not None and (found.min > 0 or found.max < 0)


def finite_inputs(origin: Origin) -> bool:
    """Whether the op's inputs are known and hold nothing but finite values."""
    return bool(origin.inputs) and all(found.nonfinite == 0 for found in origin.inputs)


def made_infinity(origin: Origin) -> bool:
    """Whether the failing element, or without one any element of the result, is infinite."""
    if origin.example is not None and origin.example.value == origin.example.value:
        return not isfinite(origin.example.value)
    return any(found.pos_inf or found.neg_inf for found in origin.outputs)


def made_nan(origin: Origin) -> bool:
    """Whether the failing element, or without one any element of the result, is NaN."""
    if origin.example is not None:
        return origin.example.value != origin.example.value
    return any(found.nan for found in origin.outputs)


def place(example: Example | None) -> str:
    """The failing element as evidence names it: "out[3, 17]"."""
    return f"out{show_index(example.index)}" if example is not None else "out"


def equation(origin: Origin, right: str) -> str:
    """A sentence of the kind "out[3, 17] = log(0) = -inf"."""
    value = f" = {show(origin.example.value)}" if origin.example is not None else ""
    return f"{place(origin.example)} = {right}{value}"


def op_by_id(snapshot: Snapshot, id: int | None) -> Op | None:
    """The executed op of that id, or None."""
    return next((op for op in snapshot.ops if op.id == id), None) if id is not None else None


def forward_op(snapshot: Snapshot) -> Op | None:
    """The origin's own record; for a derivative that of the forward op."""
    if snapshot.origin is None:
        return None
    found = op_by_id(snapshot, snapshot.origin.id)
    if found is not None and snapshot.origin.derivative and found.forward_id is not None:
        return op_by_id(snapshot, found.forward_id)
    return found


def makers(snapshot: Snapshot, name: str, *, depth: int = 6) -> Iterator[Op]:
    """The ops upstream of the origin's operand of that name, nearest first."""
    start = forward_op(snapshot)
    if start is None:
        return
    positions = {i for i, found in enumerate(start.inputs) if found.name == name}
    if not positions and len(start.inputs) == 1 and name not in start.arguments:
        positions = {0}
    yield from upstream(snapshot, start.id, positions, depth=depth)


def upstream(snapshot: Snapshot, start: int, positions: set[int], *, depth: int) -> Iterator[Op]:
    """The ops upstream of an op's inputs at these positions, nearest first, each once."""
    ops = {op.id: op for op in snapshot.ops}
    into: dict[int, list[tuple[int, int]]] = {}
    for edge in snapshot.edges:
        into.setdefault(edge.downstream, []).append((edge.operand, edge.upstream))
    waiting = deque((id, 1) for position, id in into.get(start, ()) if position in positions)
    seen: set[int] = set()
    while waiting:
        id, distance = waiting.popleft()
        if id in seen or id not in ops:
            continue
        seen.add(id)
        yield ops[id]
        # What only moves values costs no depth, so that views do not hide the op that computed.
        further = distance if ops[id].name in PLUMBING else distance + 1
        if further <= depth:
            waiting.extend((above, further) for _, above in into.get(id, ()))


def maker(snapshot: Snapshot, name: str) -> Op | None:
    """The nearest op upstream of the origin's operand that computed rather than moved values."""
    return next((op for op in makers(snapshot, name, depth=2) if op.name not in PLUMBING), None)


def readers(snapshot: Snapshot, *, depth: int = 4) -> Iterator[Op]:
    """The ops downstream of the origin's forward op, nearest first, each once."""
    start = forward_op(snapshot)
    if start is None:
        return
    ops = {op.id: op for op in snapshot.ops}
    out: dict[int, list[int]] = {}
    for edge in snapshot.edges:
        out.setdefault(edge.upstream, []).append(edge.downstream)
    waiting = deque((id, 1) for id in out.get(start.id, ()))
    seen: set[int] = set()
    while waiting:
        id, distance = waiting.popleft()
        if id in seen or id not in ops or ops[id].phase == "backward":
            continue
        seen.add(id)
        yield ops[id]
        if distance < depth:
            waiting.extend((below, distance + 1) for below in out.get(id, ()))
