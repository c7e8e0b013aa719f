"""Copy the replay's ops into plain data: the ops, their edges, what each did with non-finite values."""

from __future__ import annotations

import math
from dataclasses import replace
from math import prod

from ..model import Edge, Expected, Op, Status, TensorSummary
from ..recording.tape import EngineCall, FunctionCall, GlueOp, Update
from .microscope import Seen
from .naming import Namer
from .place import Place
from .run import Run
from .schema import has_literal, is_written
from .sources import Owners, labels_for
from .summaries import describe

MAX_OPS = 5000  # ops in a snapshot; past it those nearest to the path are kept, and the rest is counted


def chosen_ops(run: Run, path: list[int]) -> list[Seen]:
    """The ops that a snapshot keeps: all of them, or the bad ones and those nearest to the path in time."""
    ops = run.microscope.ops
    if len(ops) <= MAX_OPS:
        return ops
    centre = path[0] if path else len(ops) - 1
    forced = {*path, *(op.forward_id for i in path if (op := ops[i]).forward_id is not None)}
    ranked = sorted(ops, key=lambda op: (op.id not in forced, abs(op.id - centre)))
    return sorted(ranked[:MAX_OPS], key=lambda op: op.id)


def plain_ops(run: Run, namer: Namer, owners: Owners, ops: list[Seen], origin: int | None) -> tuple[Op, ...]:
    """The plain records of these ops."""
    return tuple(_plain_op(run, namer, owners, seen, origin) for seen in ops)


def plain_edges(ops: list[Seen]) -> tuple[Edge, ...]:
    """The tensors that went from op to op."""
    known = {op.id for op in ops}
    return tuple(
        Edge(writer, op.id, operand, output) for op in ops for writer, output, operand in op.upstream if writer in known
    )


def status_of(seen: Seen, origin: int | None) -> Status:
    """What an op did with non-finite values."""
    if seen.id == origin:
        return Status.GENERATED
    if seen.bad:
        if seen.bad_input:
            return Status.PROPAGATED
        value = math.nan if any(found.nan for found in seen.summaries) else math.inf
        return Status.DECLARED if is_written(seen.arguments, value) or seen.expected else Status.GENERATED
    return Status.KILLED if seen.bad_input else Status.CLEAN


def expected_of(run: Run, path: list[int]) -> tuple[Expected, ...]:
    """The non-finite values that the step also held and that had no part in the symptom, with the reason of each."""
    harmful = _reaching(run, path)
    found: dict[tuple[str, str, str], int] = {}
    for seen in run.microscope.ops:
        if not seen.bad or seen.bad_input or seen.id in harmful:
            continue
        where = "the loss code" if seen.glue else seen.module or "the root module"
        if seen.expected:
            reason = "declared with nantrace.expect_nonfinite()"
        elif has_literal(seen.arguments):
            reason = "written on purpose: the value stands in the program"
        else:
            reason = "it had no part in what was noticed"
        key = (f"{seen.facts.name} in {where}", reason, seen.module or "")
        found[key] = found.get(key, 0) + sum(s.nonfinite for s in seen.summaries)
    return tuple(Expected(what, reason, count) for (what, reason, _), count in found.items())


def _reaching(run: Run, path: list[int]) -> set[int]:
    """The ops whose bad values went into the path, over bad values all the way."""
    found = set(path)
    waiting = list(path)
    while waiting:
        for writer, output, _ in run.microscope.ops[waiting.pop()].upstream:
            if writer not in found and output in run.microscope.ops[writer].bad:
                found.add(writer)
                waiting.append(writer)
    return found


def where_ran(run: Run, namer: Namer, seen: Seen) -> str:
    """The phase an op ran in; what a checkpoint recomputes belongs to the phase of its first run."""
    if seen.recomputed is not None:
        first = namer.first_run(seen)
        return "forward" if first is seen else where_ran(run, namer, first)
    event = run.events[seen.event]
    if seen.backward or isinstance(event, EngineCall):
        return "backward"
    if isinstance(event, Update):
        return "optimizer"
    if isinstance(event, (GlueOp, FunctionCall)):
        after = run.first_accumulation is not None and seen.event > run.first_accumulation
        return "optimizer" if after else "loss"
    return "forward"


def _plain_op(run: Run, namer: Namer, owners: Owners, seen: Seen, origin: int | None) -> Op:
    named = namer.name(seen)
    labels = labels_for(run.microscope, owners, seen.id)
    ops = run.microscope.ops
    producers = {
        operand: ops[writer].summaries[output]
        if not seen.kept_inputs or _same_elements(ops[writer].outputs[output], seen.places[operand][1])
        else describe(seen.kept_inputs[operand].tensor)  # it read a part of what that op wrote
        for writer, output, operand in seen.upstream
    }
    inputs = tuple(
        replace(producers[i], name=name, shape=place.shape) if i in producers else _unwritten(seen, i, labels)
        for i, (name, place) in enumerate(seen.places)
    )
    return Op(
        id=seen.id,
        name=seen.facts.name,
        aten=seen.facts.aten,
        phase=where_ran(run, namer, seen),
        status=status_of(seen, origin),
        module=named.module,
        module_type=named.module_type,
        autograd_node=seen.node,
        forward_id=seen.forward_id,
        source=namer.line(named),
        inputs=inputs,
        outputs=tuple(seen.summaries),
        arguments=seen.arguments,
    )


def _same_elements(one: Place, other: Place) -> bool:
    """Whether two places of one storage hold the same elements (a transposed or reshaped view of all of it)."""
    return one.start == other.start and prod(one.shape) == prod(other.shape)


def _unwritten(seen: Seen, position: int, labels: dict[str, str]) -> TensorSummary:
    """An operand that came from outside: its shape and whose it is; its values are summarised only at the origin."""
    name, place = seen.places[position]
    like = seen.summaries[0] if seen.summaries else TensorSummary((), "", "")
    return TensorSummary(place.shape, like.dtype, like.device, name=name, label=labels.get(name, ""))
