"""The ends of the picture: the origin's facts, what came in from outside, and the symptom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..model import Snapshot, TensorSummary
from . import numbers
from .codeblock import operand_lines
from .harmless import cut, shorten
from .limits import TIGHT
from .picture import Box, Link
from .spelling import source_name
from .words import expression, holding, module, name, noticed, place

_FACT = 46  # columns of a line in a box
_MOST_FACTS = 5  # the last one is the result


@dataclass(slots=True)
class Ends:
    """The boxes that are no ops, and their links."""

    boxes: list[Box] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)


def ends_of(snapshot: Snapshot, box_of: Mapping[int, str]) -> Ends:
    """The value that came in, the origin's parameters and inputs, and where it all was noticed."""
    ends = Ends()
    path = [box_of[one] for one in snapshot.path if one in box_of]
    first = _origin(snapshot, box_of, ends) if not path else box_of.get(_origin_id(snapshot), path[0])
    if snapshot.source_value is not None:
        first = _source(snapshot, path[0] if path else first, ends)
    elif snapshot.origin is not None and not snapshot.origin.derivative:
        _leaves(snapshot, first, ends)
    _symptom(snapshot, path[-1] if path else first, ends)
    return ends


def origin_lines(snapshot: Snapshot) -> tuple[str, ...]:
    """What the origin's box says below its name."""
    origin = snapshot.origin
    assert origin is not None
    operands = operand_lines(snapshot, TIGHT)
    facts = [f"{line.name} = {line.value}" for line in (operands.lines if operands else ()) if line.value]
    facts = [*facts[: _MOST_FACTS - 1], *facts[-1:]] if len(facts) > _MOST_FACTS else facts
    made = "ORIGIN: raised here" if snapshot.exception is not None else "ORIGIN: generated here"
    lines = [made, *facts, expression(origin.source, _FACT), place(origin.source)]
    return tuple(cut(line, _FACT) for line in lines if line)


def tensor_lines(tensor: TensorSummary | None) -> tuple[str, ...]:
    """What a link says: dtype and shape, the largest magnitude, and what is not finite."""
    if tensor is None:
        return ()
    largest = f"max {numbers.number(tensor.absmax)}" if tensor.absmax is not None else ""
    return tuple(line for line in (numbers.shape(tensor), largest, numbers.nonfinite(tensor)) if line)


def kind_of(tensor: TensorSummary | None) -> str:
    """The kind of the link that carries the tensor."""
    if tensor is None or not tensor.nonfinite:
        return "finite"
    infinite = tensor.pos_inf + tensor.neg_inf
    return "both" if tensor.nan and infinite else "nan" if tensor.nan else "inf"


def _origin_id(snapshot: Snapshot) -> int:
    return snapshot.origin.id if snapshot.origin is not None and snapshot.origin.id is not None else -1


def _origin(snapshot: Snapshot, box_of: Mapping[int, str], ends: Ends) -> str:
    """The origin's box; one of its own where no recorded op is the origin. Empty where there is none."""
    origin = snapshot.origin
    if origin is None or _origin_id(snapshot) in box_of:
        return box_of.get(_origin_id(snapshot), "")
    owner = module(origin.module, origin.module_type)
    guilty = snapshot.source_value is None
    lines = origin_lines(snapshot) if guilty else ()
    look = "generated" if guilty else "propagated"
    ends.boxes.append(Box("origin", name(origin.op, 30), lines, owner, look, origin=guilty))
    return "origin"


def _source(snapshot: Snapshot, first: str, ends: Ends) -> str:
    source = snapshot.source_value
    assert source is not None
    held = f"{numbers.shape(source.summary)}, {holding(source.summary)}"
    called = source_name(snapshot)
    spelled = f"{name(called, 36)}{numbers.element(source.index)} = {numbers.number(source.value)}"
    lines = ("ORIGIN: not finite when it came in", spelled, held)
    ends.boxes.append(Box("source", f"{source.kind} {name(called, 40)}", lines, look="generated", origin=True))
    if first:
        ends.links.append(Link("source", first, (), kind_of(source.summary)))
    return first or "source"


def _leaves(snapshot: Snapshot, first: str, ends: Ends) -> None:
    assert snapshot.origin is not None
    for number, summary in enumerate(summary for summary in snapshot.origin.inputs if summary.label):
        ends.boxes.append(Box(f"leaf{number}", name(summary.label, 44), look="outside"))
        if first:
            ends.links.append(Link(f"leaf{number}", first, tensor_lines(summary), kind_of(summary)))


def _symptom(snapshot: Snapshot, last: str, ends: Ends) -> None:
    told = name(snapshot.exception.type) if snapshot.exception is not None else noticed(snapshot.symptom)
    ends.boxes.append(Box("symptom", shorten(told, 60), ("noticed here",), look="symptom"))
    if last:
        by_id = {op.id: op for op in snapshot.ops}
        final = by_id[snapshot.path[-1]] if snapshot.path and snapshot.path[-1] in by_id else None
        outputs = final.outputs if final is not None else ()
        tensor = next((one for one in (*outputs, snapshot.symptom.summary) if one is not None and one.nonfinite), None)
        ends.links.append(Link(last, "symptom", (), kind_of(tensor)))
