"""Values that the loop's own data code made: a target of log(0), a normalisation by a zero deviation.

Ops on data alone are not replayed. They were noted with weak references to their operands: where these are still
alive, the op that made the bad value out of finite ones is known all the same.
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
from .reach import Index
from .schema import PLUMBING, OpFacts, facts_of, has_literal, operands, scalars
from .summaries import describe, first_bad_element, value_at
from .walk import State


@dataclass(slots=True)
class Prepared:
    """A data op with its operands, alive."""

    facts: OpFacts
    note: DataOp
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[torch.Tensor]


def origin_in_data(tensor: torch.Tensor, index: Index, notes: list[DataOp]) -> Origin | None:
    """The data op that generated this element from finite operands, or None where that cannot be shown.

    A NaN that an op made of infinities which the program wrote itself belongs to that op.
    """
    seen_before = len(notes)
    mixed: Origin | None = None
    while True:
        found = _writer(tensor, index, notes[:seen_before])
        if found is None:
            return None
        op, output, at, seen_before = found
        inputs = list(operands(op.facts, op.args, op.kwargs))
        if op.facts.uninitialised or any(operand is op.outputs[output] for _, operand in inputs):
            return None  # written in place: what stood there before is gone
        bad = [operand for _, operand in inputs if not is_finite(operand)]
        if not bad:
            return _origin(op, inputs, output, at) or mixed
        first = first_bad_element(bad[0])
        if first is None:
            return None
        if math.isnan(value_at(op.outputs[output], at)) and not any(bool(torch.isnan(x).any()) for x in bad):
            mixed = _origin(op, inputs, output, at)
        tensor, index = bad[0], first[0]


def _writer(tensor: torch.Tensor, index: Any, notes: list[DataOp]) -> tuple[Prepared, int, Any, int] | None:
    """The newest noted op whose result covers this element, with its operands; None where any of them has died."""
    place = place_of(tensor)
    address = place.address(index)
    for number in range(len(notes) - 1, -1, -1):
        note = notes[number]
        facts = facts_of(note.func)
        if facts.is_view:
            continue
        for reference, storage in zip(note.outputs, note.storages, strict=True):
            if storage != place.storage or not place.storage:
                continue
            made = reference()
            if made is None:
                return None  # a view of this memory that is gone was written: by what is not known any more
            at = place_of(made).index_of(address)
            if at is None:
                continue
            args, kwargs = replace_leaves(note.args, weakref.ref, lambda ref: ref())
            operands_now = tensors_in((args, kwargs))
            if len(operands_now) != _references(note.args):
                return None
            if note.versions[: len(operands_now)] != [version_of(tensor) for tensor in operands_now]:
                return None  # an operand has been written since: what the op read is gone
            return Prepared(facts, note, args, kwargs, [made]), 0, at, number
    return None


def _references(value: Any) -> int:
    found: list[Any] = []
    replace_leaves(value, weakref.ref, found.append)
    return len(found)


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
    if has_literal(seen.arguments) or op.facts.name in PLUMBING:
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
