"""From an alarm to a snapshot: replay, walk, name, and copy what was seen into plain data."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from math import prod
from typing import Any

import torch

from .. import __version__
from ..model import BadSource, Origin, ReplayFacts, Snapshot, Symptom
from ..recording.alarm import Alarm
from ..recording.frames import innermost_outside_torch, source_at
from ..recording.recorder import Recorder
from ..recording.tape import EXTERNAL as FROM_OUTSIDE
from ..recording.tape import GRADIENT, Token
from ..torch_private import sparse_values
from .examples import example_of, example_of_derivative
from .microscope import Seen
from .naming import Namer
from .optimizers import from_optimizer, optimizer_facts
from .plain import chosen_ops, expected_of, plain_edges, plain_ops, where_ran
from .replay import look_again, replay
from .run import Run
from .schema import PLUMBING
from .sources import Owners, labels_for
from .summaries import describe, same_bits, spread_bad_elements
from .walk import DECLARED, EXTERNAL, State, Verdict, Walk

Looker = Callable[[int], Seen | None]

MAX_SYMPTOMS = 16  # of the bad gradients, how many are walked
MAX_ELEMENTS = 16  # of each, how many bad elements: they may have different origins, and the earliest one counts


@dataclass(slots=True)
class Finding:
    """What the replay and the walk found."""

    phase: str
    origin: Origin | None
    path: list[int]
    source: BadSource | None = None
    reproduced: bool | None = True


def trace(alarm: Alarm, recorder: Recorder, *, replaying: bool) -> Snapshot:
    """The snapshot of an alarm. What a replay meets does not raise: what was not found stands in `replay.reasons`."""
    snapshot = Snapshot(
        step=alarm.step,
        phase="",
        symptom=_symptom(alarm),
        modules=recorder.names.types(),
        history=recorder.ring.table(alarm.step),
        optimizer=optimizer_facts(alarm),
        environment=environment(),
    )
    if alarm.kind in ("parameter", "state") or alarm.memory is not None:
        return from_optimizer(snapshot, alarm, recorder, replaying=replaying)
    if not replaying:
        return _without_replay(snapshot, alarm, ReplayFacts(None, ("replay is switched off (replay=False)",)))
    tokens = _tokens(alarm, recorder)
    run = replay(recorder.tape, recorder.names, tokens, any(token.kind == GRADIENT for token in tokens))
    return _from_run(snapshot, alarm, recorder, run, tokens)


def _from_run(snapshot: Snapshot, alarm: Alarm, recorder: Recorder, run: Run, tokens: list[Token]) -> Snapshot:
    names = recorder.names
    facts = ReplayFacts(None, (), len(run.microscope.ops), run.seconds, tuple(run.doubts))
    if run.error is not None:
        reason = f"the replay failed: {type(run.error).__name__}: {run.error}"
        return _without_replay(snapshot, alarm, replace(facts, reasons=(*facts.reasons, reason)))
    owners = Owners(run, names, recorder.tape.data_ops)
    walk = Walk(run.microscope, owners.declares)
    start, verdict = _worst(run, walk, tokens)
    if verdict is None:
        reason = "the replay came out finite"
        return _without_replay(snapshot, alarm, replace(facts, reproduced=False, reasons=(*facts.reasons, reason)))
    namer = Namer(run.microscope, run.events)
    looker = partial(look_again, recorder.tape, names, run)
    finding = _find(run, walk, owners, namer, start, verdict, looker)
    if finding.phase == "optimizer" and alarm.named and finding.origin is not None:
        finding.origin = replace(finding.origin, module=alarm.named[0][0].rpartition(".")[0])
    exact, doubts = _compare(run, tokens)
    ops = chosen_ops(run, finding.path)
    return replace(
        snapshot,
        phase=finding.phase,
        symptom=replace(snapshot.symptom, declared=verdict.kind == DECLARED),
        origin=finding.origin,
        path=tuple(finding.path),
        source_value=finding.source,
        ops=plain_ops(run, namer, owners, ops, finding.origin.id if finding.origin else None),
        edges=plain_edges(ops),
        ops_left_out=len(run.microscope.ops) - len(ops),
        replay=replace(facts, reproduced=exact, reasons=facts.reasons + tuple(doubts)),
        expected=expected_of(ops, finding.path),
    )


# The symptom


def _symptom(alarm: Alarm) -> Symptom:
    name, summary = "", None
    if alarm.kind == "gradient":
        name, gradient = alarm.named[0]
        summary = describe(gradient, "grad", f"gradient of {name}")
    elif alarm.kind == "parameter":
        name, parameter = alarm.named[0]
        summary = describe(parameter.detach(), name, f"parameter {name}")
    elif alarm.tokens and (tensor := alarm.tokens[0].ref()) is not None:
        summary = describe(tensor.detach())
    kind = {"write": "gradient"}.get(alarm.kind, alarm.kind)
    return Symptom(kind, name or (alarm.named[0][0] if alarm.named else ""), summary, alarm.value, alarm.where)


def _tokens(alarm: Alarm, recorder: Recorder) -> list[Token]:
    """The symptom on the tape: bad gradients by their own token where glue (clipping) has written them."""
    if alarm.kind != "gradient":
        return alarm.tokens
    found: list[Token] = []
    for name, gradient in alarm.named[:MAX_SYMPTOMS]:
        known = recorder.tape.known(gradient)
        if known is None or known.kind == FROM_OUTSIDE:
            owner = _owner_of(gradient, name, alarm, recorder)
            known = recorder.tape.gradient(gradient, owner, name)
        found.append(known)
    return found


def _owner_of(gradient: torch.Tensor, name: str, alarm: Alarm, recorder: Recorder) -> torch.Tensor:
    """The parameter of a gradient: by identity, and by name where the user has dropped the gradient since."""
    parameters = recorder.names.parameters.values()
    groups = alarm.optimizer.param_groups if alarm.optimizer is not None else []
    candidates = chain((p for p, _ in parameters), (p for group in groups for p in group["params"]))
    by_identity = (parameter for parameter in candidates if parameter.grad is gradient)
    by_name = (parameter for parameter, own in parameters if own == name)
    owner: torch.Tensor = next(chain(by_identity, by_name))
    return owner


def _worst(run: Run, walk: Walk, tokens: list[Token]) -> tuple[State | None, Verdict | None]:
    """Of all bad symptoms, the verdict that goes back furthest; declared ones only where there is no other."""
    found: list[tuple[State | None, Verdict]] = []
    for token in tokens:
        twin = run.twin(token)
        if twin is not None and twin.layout is torch.sparse_coo:
            twin = sparse_values(twin)
        if twin is not None:
            bad = spread_bad_elements(twin, MAX_ELEMENTS)
            found += [walk.from_tensor(twin, index, value) for index, value in bad]
    if not found:
        return None, None
    return min(found, key=lambda pair: (pair[1].kind == DECLARED, pair[1].order))


def _compare(run: Run, tokens: list[Token]) -> tuple[bool, list[str]]:
    """Whether the symptom came out the same, NaN pattern and finite values, bit by bit."""
    for token in tokens:
        live, twin = token.ref(), run.twin(token)
        if live is None or twin is None or live is twin:
            continue
        if live.layout is torch.sparse_coo:
            live, twin = sparse_values(live), sparse_values(twin)
        if not same_bits(live.detach(), twin.detach()):
            return False, ["the replay's values differ from those of the live run"]
    return True, []


# The origin


def _find(
    run: Run, walk: Walk, owners: Owners, namer: Namer, start: State | None, verdict: Verdict, looker: Looker
) -> Finding:
    states = walk.path(verdict, start)
    path = list(dict.fromkeys(state.op for state in states))
    if verdict.kind == EXTERNAL and verdict.source is not None:
        prepared = owners.made_by_data(verdict.source)
        if prepared is not None:
            return Finding("loss", prepared, path)
        source = owners.bad_source(verdict.source)
        consumer = _first_consumer(run, states)
        origin = None if consumer is None else _origin(run, owners, namer, consumer, looker)
        phase = "parameters" if source.kind in ("parameter", "buffer") else "input"
        return Finding(phase, origin, _from(path, consumer), source)
    state = _harmful(run, states) if verdict.kind == DECLARED else verdict.state
    if state is None:
        return Finding("forward", None, path)
    seen = run.microscope.ops[state.op]
    return Finding(where_ran(run, seen), _origin(run, owners, namer, state, looker), _from(path, state))


def _from(path: list[int], state: State | None) -> list[int]:
    """The path from the origin on: what only carried the value there is no part of it."""
    return path[path.index(state.op) :] if state is not None and state.op in path else path


def _first_consumer(run: Run, states: list[State]) -> State | None:
    """The first op on the way down that is no plumbing."""
    for state in states:
        if run.microscope.ops[state.op].facts.name not in PLUMBING:
            return state
    return states[0] if states else None


def _harmful(run: Run, states: list[State]) -> State | None:
    """A declared value that became the symptom: the op that let the masked element into a smaller result.

    A sum over masked scores, or a loss that picks a masked class; ops that keep every element only carry it along.
    """
    for state in states[1:]:
        seen = run.microscope.ops[state.op]
        largest = max((prod(place.shape) for _, place in seen.places), default=0)
        if prod(seen.outputs[state.output].shape) < largest and seen.facts.name not in PLUMBING:
            return state
    return states[-1] if states else None


def _origin(run: Run, owners: Owners, namer: Namer, state: State, looker: Looker) -> Origin:
    seen = run.microscope.ops[state.op]
    named = namer.name(seen)
    shown = seen
    if named.derivative:  # the forward op was finite, so its operands were not kept: look once more
        shown = (looker(named.seen.id) if named.seen.id >= 0 else None) or named.seen
    labels = labels_for(run.microscope, owners, named.seen.id) if named.seen.id >= 0 else {}
    example = example_of_derivative(seen, state, shown) if named.derivative else example_of(seen, state)
    return Origin(
        op=named.op,
        module=named.module,
        module_type=named.module_type,
        autograd_node=seen.node or _node_made_by(seen),
        source=named.source,
        inputs=tuple(describe(kept.tensor, kept.name, labels.get(kept.name, "")) for kept in shown.kept_inputs),
        outputs=tuple(describe(kept.tensor) for kept in shown.kept_outputs) or tuple(named.seen.summaries),
        example=example,
        arguments=named.seen.arguments,
        id=state.op,
        aten=named.seen.facts.aten,
        derivative=named.derivative,
        derivative_aten=seen.facts.aten if named.derivative else "",
    )


def _node_made_by(seen: Seen) -> str | None:
    node = seen.result.grad_fn if seen.result is not None else None
    return node.name() if node is not None else None


# Without a replay


def _without_replay(snapshot: Snapshot, alarm: Alarm, facts: ReplayFacts) -> Snapshot:
    """The best answer of the ring and the live stack: the first module whose output or gradient was not finite."""
    kinds = ("forward", "gradient")
    for kind in kinds:
        for event in snapshot.history.at(snapshot.step):
            if event.kind == kind and not event.finite:
                module = event.module
                origin = Origin(
                    op=snapshot.modules.get(module, "module").lower(),
                    module=module,
                    module_type=snapshot.modules.get(module),
                )
                phase = "forward" if kind == "forward" else "backward"
                return replace(snapshot, phase=phase, origin=origin, replay=facts)
    position = innermost_outside_torch(alarm.stack)
    origin_or_none = None
    if position is not None:
        origin_or_none = Origin(op=alarm.kind, module=None, source=source_at(alarm.stack, position))
    return replace(snapshot, phase="loss" if alarm.kind == "loss" else "backward", origin=origin_or_none, replay=facts)


def bare(alarm: Alarm, recorder: Recorder, fault: Exception) -> Snapshot:
    """What is known when tracing itself failed: the symptom, the history, and the fault in a sentence."""
    snapshot = Snapshot(
        alarm.step, "", _symptom(alarm), history=recorder.ring.table(alarm.step), environment=environment()
    )
    reason = f"tracing failed with a fault of nantrace's own: {type(fault).__name__}: {fault}"
    return _without_replay(snapshot, alarm, ReplayFacts(None, (reason,)))


def environment() -> dict[str, Any]:
    """Versions, devices and time, as a report needs them."""
    return {
        "nantrace": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_initialized() else None,
        "threads": torch.get_num_threads(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "rank": _rank(),
    }


def _rank() -> int:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    return 0
