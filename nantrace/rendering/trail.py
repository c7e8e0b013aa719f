"""The path from the origin to where the value was noticed, folded to a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..model import Op, Snapshot
from .limits import ROOMY, Limits
from .numbers import counted
from .spelling import source_name
from .story import Fold, PathLine, Trail
from .words import holding, name, noticed, place, state


def trail(snapshot: Snapshot, path: Sequence[Op], limits: Limits = ROOMY) -> Trail:
    """The stops: where the value came in or was born, every change of module, and the end."""
    lines: list[PathLine | Fold] = []
    source = snapshot.source_value
    if source is not None:
        lines.append(PathLine("origin", f"{source.kind} {name(source_name(snapshot))}", state=holding(source.summary)))
    origin_id = snapshot.origin.id if snapshot.origin is not None and source is None else None
    forward = {op.id: op for op in snapshot.ops}
    before: tuple[str | None, bool] | None = None
    for stop in _folded(_once(path), limits.path_head, limits.path_tail):
        if isinstance(stop, Fold):
            lines.append(stop)
            continue
        here = (stop.module, stop.phase == "backward")
        kind = "origin" if stop.id == origin_id else "step"
        owner = _owner(stop.module, outside="the loss" if stop.phase == "loss" else "") if here != before else ""
        kind_of_owner = name(stop.module_type or "", 40) if owner else ""
        lines.append(PathLine(kind, _what(stop, forward), owner, kind_of_owner, place(stop.source), state(stop)))
        before = here
    if not lines and snapshot.origin is not None:
        lines.append(_origin_alone(snapshot))
    return Trail((*lines, PathLine("end", noticed(snapshot.symptom))))


def _once(path: Sequence[Op]) -> list[Op]:
    """The path with one stop for the several ops of one derivative, where they hold the same."""
    told: list[Op] = []
    for op in path:
        last = told[-1] if told else None
        same = last is not None and op.phase == "backward" == last.phase and op.forward_id == last.forward_id
        if last is None or not same or op.forward_id is None or state(op) != state(last):
            told.append(op)
    return told


def _what(op: Op, ops: Mapping[int, Op]) -> str:
    """The op's name; for one of the backward pass, of which op it is the derivative."""
    if op.phase != "backward":
        return name(op.name, 24)
    differentiated = ops.get(op.forward_id) if op.forward_id is not None else None
    if differentiated is None or differentiated.name == op.name:
        return f"{name(op.name, 24)} backward"
    # One derivative takes several ops: sqrt backward (mul), sqrt backward (div).
    return f"{name(differentiated.name, 16)} backward ({name(op.name, 12)})"


def _origin_alone(snapshot: Snapshot) -> PathLine:
    """The origin where the ops between it and the symptom are not known."""
    origin = snapshot.origin
    assert origin is not None
    held = next((holding(output) for output in origin.outputs if output.nonfinite), "")
    kind = name(origin.module_type or "", 40)
    return PathLine("origin", name(origin.op, 24), _owner(origin.module), kind, place(origin.source), held)


def _owner(path: str | None, outside: str = "") -> str:
    return outside if path is None else name(path) or "the root module"


def _folded(path: Sequence[Op], head: int, tail: int) -> list[Op | Fold]:
    """The first and the last stops of a long path; a fold of one or two would save no line."""
    if len(path) <= head + tail + 2:
        return list(path)
    hidden = path[head : len(path) - tail]
    return [*path[:head], Fold(len(hidden), _note(hidden)), *path[len(path) - tail :]]


def _note(hidden: Sequence[Op]) -> str:
    finite = sum(not any(output.nonfinite for output in op.outputs) for op in hidden)
    held = "all non-finite" if not finite else f"{finite} of them finite"
    modules = list(dict.fromkeys(op.module for op in hidden if op.module is not None))
    if not modules:
        return held
    if len(modules) == 1:
        return f"{held}, in {name(modules[0], 40) or 'the root module'}"
    return f"{held}, through {counted(len(modules), 'module')}"
