"""Values that the loop's own data code made: a target of log(0), a normalisation by a zero deviation.

Ops on data alone are not replayed. They were noted with weak references to their operands: where these are still
alive, or can be computed again, the op that made the bad value out of finite ones is known all the same.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch

from ..model import Origin
from ..recording.flatten import replace_leaves, tensors_in
from ..recording.frames import innermost_outside_torch, source_at
from ..recording.statistics import is_finite
from ..recording.tape import DataOp, version_of
from .examples import example_of
from .microscope import Kept, Seen
from .place import place_of
from .reach import Index, broadcast
from .schema import PLUMBING, OpFacts, facts_of, is_written, operands, scalars
from .summaries import describe, first_bad_element, value_at
from .walk import State


@dataclass(slots=True)
class Prepared:
    """A data op with its operands, alive or computed again; None stands for one that is lost."""

    facts: OpFacts
    note: DataOp
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[torch.Tensor]
    lost: bool


class _Lost(Exception):
    """An operand is gone, and cannot be computed again."""


def origin_in_data(tensor: torch.Tensor, index: Index, notes: list[DataOp]) -> Origin | None:
    """The data op that generated this element from finite operands, or None where that cannot be shown.

    A NaN that an op made of infinities which the program wrote itself belongs to that op.
    """
    seen_before = len(notes)
    mixed: Origin | None = None
    again: dict[int, tuple[torch.Tensor, int]] = {}  # what was computed again, and the number of its op
    while True:
        found = _writer(tensor, index, notes[:seen_before], again)
        if found is None:
            return None
        op, output, at, seen_before = found
        inputs = list(operands(op.facts, op.args, op.kwargs))
        if op.facts.uninitialised or any(operand is op.outputs[output] for _, operand in inputs):
            return None  # written in place: what stood there before is gone
        bad = [operand for _, operand in inputs if not is_finite(operand)]
        if not bad and op.lost and not _divides_by_zero(op, inputs, at):
            return None
        if not bad:
            return _origin(op, inputs, output, at) or mixed
        first = first_bad_element(bad[0])
        if first is None:
            return None
        if math.isnan(value_at(op.outputs[output], at)) and not any(bool(torch.isnan(x).any()) for x in bad):
            mixed = _origin(op, inputs, output, at)
        tensor, index = bad[0], first[0]


def _writer(
    tensor: torch.Tensor, index: Any, notes: list[DataOp], again: dict[int, tuple[torch.Tensor, int]]
) -> tuple[Prepared, int, Any, int] | None:
    """The newest noted op whose result covers this element, with its operands."""
    if id(tensor) in again:
        number = again[id(tensor)][1]
        return _prepared(notes, number, tensor, again), 0, index, number
    place = place_of(tensor)
    address = place.address(index)
    for number in range(len(notes) - 1, -1, -1):
        note = notes[number]
        if facts_of(note.func).is_view:
            continue
        for reference, storage in zip(note.outputs, note.storages, strict=True):
            if storage != place.storage or not place.storage:
                continue
            made = reference()
            if made is None:
                return None  # a view of this memory that is gone was written: by what is not known any more
            at = place_of(made).index_of(address)
            if at is not None:
                return _prepared(notes, number, made, again), 0, at, number
    return None


def _prepared(
    notes: list[DataOp], number: int, output: torch.Tensor, again: dict[int, tuple[torch.Tensor, int]]
) -> Prepared:
    note = notes[number]
    lost: list[Any] = []
    versions = iter(note.versions)

    def operand(reference: weakref.ref[torch.Tensor]) -> torch.Tensor | None:
        try:
            return _alive(notes[:number], reference, next(versions), again)
        except (_Lost, RuntimeError):  # a second run may fail where the first did not, for memory
            lost.append(reference)
            return None

    args, kwargs = replace_leaves(note.args, weakref.ref, operand)
    return Prepared(facts_of(note.func), note, args, kwargs, [output], bool(lost))


def _alive(
    notes: list[DataOp],
    reference: weakref.ref[torch.Tensor],
    version: int,
    again: dict[int, tuple[torch.Tensor, int]],
) -> torch.Tensor:
    """The operand as the op read it: itself, or a second result of the op that made it."""
    tensor = reference()
    if tensor is not None:
        if version_of(tensor) != version:
            raise _Lost  # it has been written since
        return tensor
    for number in range(len(notes) - 1, -1, -1):
        for position, made in enumerate(notes[number].outputs):
            if made is reference:
                tensor = _computed_again(notes, number, position, again)
                again[id(tensor)] = (tensor, number)
                return tensor
    raise _Lost


def _computed_again(
    notes: list[DataOp], number: int, position: int, again: dict[int, tuple[torch.Tensor, int]]
) -> torch.Tensor:
    note, facts = notes[number], facts_of(notes[number].func)
    if facts.written or facts.uninitialised or torch.Tag.nondeterministic_seeded in note.func.tags:
        raise _Lost
    versions = iter(note.versions)
    args, kwargs = replace_leaves(
        note.args, weakref.ref, lambda reference: _alive(notes[:number], reference, next(versions), again)
    )
    with torch.no_grad():
        made = [tensor for tensor in tensors_in(note.func(*args, **kwargs)) if tensor.is_floating_point()]
    return made[position]


def _divides_by_zero(op: Prepared, inputs: list[tuple[str, torch.Tensor]], index: Any) -> bool:
    """Whether the denominator alone proves it, whatever was divided."""
    other = dict(inputs).get("other") if op.facts.name in ("div", "true_divide") else None
    return other is not None and bool(other[broadcast(index, tuple(other.shape))] == 0)


def _origin(op: Prepared, inputs: list[tuple[str, torch.Tensor]], output: int, index: Any) -> Origin | None:
    position = innermost_outside_torch(op.note.stack)
    seen = Seen(
        id=-1,
        facts=op.facts,
        event=-1,
        glue=True,
        backward=False,
        recomputed=None,
        module=None,
        module_type=None,
        node=None,
        forward_id=None,
        stack=op.note.stack,
        arguments=scalars(op.facts, op.args, op.kwargs),
        kept_inputs=[Kept(name, tensor) for name, tensor in inputs],
        kept_outputs=[Kept("", tensor) for tensor in op.outputs],
        func=op.note.func,
        args=op.args,
        kwargs=op.kwargs,
    )
    value = value_at(op.outputs[output], index)
    if is_written(seen.arguments, value) or op.facts.name in PLUMBING:
        return None
    return Origin(
        op=op.facts.name,
        module=None,
        source=source_at(op.note.stack, position) if position is not None else None,
        inputs=tuple(describe(tensor, name) for name, tensor in inputs),
        outputs=tuple(describe(tensor) for tensor in op.outputs),
        example=example_of(seen, State(-1, 0, index)),
        arguments=seen.arguments,
        aten=op.facts.aten,
    )
