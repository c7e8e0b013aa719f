"""From an alarm to a snapshot: replay, walk, name, and copy what was seen into plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from math import isnan, prod

import torch

from ..model import BadSource, Origin, ReplayFacts, Snapshot, Symptom
from ..recording.alarm import Alarm
from ..recording.recorder import Recorder
from ..recording.tape import EXTERNAL as FROM_OUTSIDE
from ..recording.tape import GRADIENT, EngineCall, Token
from ..torch_private import sparse_values
from .environment import environment
from .examples import example_of, example_of_derivative
from .live import Explanation
from .microscope import Seen
from .naming import Namer
from .op_level import LiveMicroscope
from .optimizers import from_optimizer, optimizer_facts
from .plain import chosen_ops, expected_of, plain_edges, plain_ops, where_ran
from .replay import look_again, replay
from .run import Run
from .schema import PLUMBING
from .slicing import slice_for
from .sources import Owners, labels_for
from .summaries import describe, first_bad_element, same_bits, spread_bad_elements, value_at
from .trials.site import Site, sites_of
from .unreplayed import from_explanation, without_replay
from .walk import DECLARED, EXTERNAL, State, Verdict, Walk

Looker = Callable[[int], Seen | None]

_CHOOSING = ("where", "masked_fill")
_WRITING_NUMBERS = frozenset({"full", "full_like", "new_full", "scalar_tensor", "zeros", "ones", "arange", "linspace"})
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


@dataclass(slots=True)
class Judged:
    """A replay, and the verdict on its symptom."""

    run: Run
    owners: Owners
    walk: Walk
    start: State | None = None  # the op that wrote the symptom
    verdict: Verdict | None = None  # None: the symptom came out finite


@dataclass(frozen=True, slots=True)
class Traced:
    """The snapshot of an alarm, and what it takes to try remedies: the symptom, and where each op was called."""

    snapshot: Snapshot
    tokens: list[Token] = field(default_factory=list)
    sites: dict[int, Site] = field(default_factory=dict)


def trace(alarm: Alarm, recorder: Recorder, *, replaying: bool) -> Traced:
    """The snapshot of an alarm. What a replay meets does not raise: what was not found stands in `replay.reasons`."""
    snapshot = Snapshot(
        step=alarm.step,
        phase="",
        symptom=symptom_of(alarm),
        modules=recorder.names.types(),
        history=recorder.ring.table(alarm.step),
        optimizer=optimizer_facts(alarm),
        environment=environment(),
    )
    if alarm.kind in ("parameter", "state") or alarm.memory is not None:
        return Traced(from_optimizer(snapshot, alarm, recorder, replaying=replaying))
    live = recorder.observer
    if isinstance(live, LiveMicroscope) and live.blind:
        facts = ReplayFacts(None, (f'level="op" could not observe the whole step: {live.blind}',))
        return Traced(without_replay(snapshot, alarm, recorder, facts))
    if live is None and not replaying:
        facts = ReplayFacts(None, ("replay is switched off (replay=False)",))
        return Traced(without_replay(snapshot, alarm, recorder, facts))
    tokens = symptom_tokens(alarm, recorder)
    run = look_at(recorder, tokens, any(token.kind == GRADIENT for token in tokens))
    judged = judge(run, recorder, tokens)
    if alarm.within is not None and run.error is None:
        judged.start, judged.verdict = _within(run, judged.walk)
    snapshot = tell(snapshot, alarm, recorder, judged, tokens)
    return Traced(snapshot, tokens, sites_of(run, [op.id for op in snapshot.ops]))


def look_at(recorder: Recorder, tokens: list[Token], gradients: bool) -> Run:
    """The ops that these tokens depend on: as they were seen live, else in a replay."""
    live = recorder.observer
    if not isinstance(live, LiveMicroscope) or live.blind:
        return replay(recorder.tape, recorder.names, tokens, gradients)
    run = live.run(slice_for(recorder.tape.events, tokens, gradients))
    for token in tokens:
        tensor = token.ref()
        if tensor is not None:
            run.twins[id(token)] = run.gradients[token.owner] = tensor
    return run


def judge(run: Run, recorder: Recorder, tokens: list[Token]) -> Judged:
    """Walk back from the symptom in what was seen."""
    owners = Owners(run, recorder.names, recorder.tape.data_ops)
    owners.note_symptoms(tokens)
    walk = Walk(run.microscope, owners.declares, owners.is_number)
    return Judged(run, owners, walk, *_worst(run, walk, tokens)) if run.error is None else Judged(run, owners, walk)


def tell(snapshot: Snapshot, alarm: Alarm, recorder: Recorder, judged: Judged, tokens: list[Token]) -> Snapshot:
    """The snapshot with what was seen and what the walk found; what they did not find stands in `replay.reasons`."""
    run, verdict = judged.run, judged.verdict
    if isinstance(run.microscope, LiveMicroscope):
        return _tell_live(snapshot, alarm, recorder, judged, run.microscope)
    facts = ReplayFacts(None, (), len(run.microscope.ops), run.seconds, tuple(run.doubts))
    if run.error is not None:
        reason = f"the replay failed: {type(run.error).__name__}: {run.error}"
        return without_replay(snapshot, alarm, recorder, replace(facts, reasons=(*facts.reasons, reason)))
    if verdict is None:
        reason = "the replay came out finite"
        facts = replace(facts, reproduced=False, reasons=(*facts.reasons, reason))
        return without_replay(snapshot, alarm, recorder, facts)
    node = _unseen_node(judged, verdict)
    if node is not None:
        return _computed_unseen(snapshot, facts, node)
    looker = partial(look_again, recorder.tape, recorder.names, run)
    finding, namer = _found(snapshot, alarm, judged, verdict, looker)
    exact, doubts = _compare(run, tokens)
    told = alarm.explanation
    if not exact and isinstance(told, Explanation) and told.definite and not _agree(told.origin, finding.origin):
        other = finding.origin.op if finding.origin is not None else "nothing"
        reason = f"a replay that differs from the live run blamed {other}: this is what the live graph says"
        facts = replace(facts, reproduced=False, reasons=(*facts.reasons, *doubts, reason))
        return from_explanation(replace(snapshot, replay=facts), told)
    facts = replace(facts, reproduced=exact, doubts=facts.doubts + tuple(doubts))
    return _with_finding(replace(snapshot, replay=facts), judged, namer, finding, verdict)


def _tell_live(snapshot: Snapshot, alarm: Alarm, recorder: Recorder, judged: Judged, live: LiveMicroscope) -> Snapshot:
    """level="op": the step's ops were seen as they ran."""
    facts = ReplayFacts(None, ('every op was seen as it ran (level="op")',), len(live.ops))
    verdict = judged.verdict
    if verdict is None:
        reason = "the tensor that was noticed is gone"
        return without_replay(snapshot, alarm, recorder, replace(facts, reasons=(*facts.reasons, reason)))
    node = _unseen_node(judged, verdict)
    if node is not None:
        return _computed_unseen(snapshot, facts, node)
    finding, namer = _found(snapshot, alarm, judged, verdict, live.forward_operands)
    return _with_finding(replace(snapshot, replay=facts), judged, namer, finding, verdict)


def _unseen_node(judged: Judged, verdict: Verdict) -> str | None:
    """The node of compiled code that made the value, where it came out of such code."""
    bad = verdict.source if verdict.kind == EXTERNAL else None
    return judged.owners.unseen_node(bad) if bad is not None else None


def _found(snapshot: Snapshot, alarm: Alarm, judged: Judged, verdict: Verdict, looker: Looker) -> tuple[Finding, Namer]:
    run, walk, owners, start = judged.run, judged.walk, judged.owners, judged.start
    if alarm.kind in ("gradient", "write") and run.first_accumulation is None:
        run.first_accumulation = _last_engine_call(run)
    alarm.meant = (
        verdict.kind == DECLARED and verdict.state is not None and run.microscope.op(verdict.state.op).expected
    )
    namer = Namer(run.microscope, run.events)
    finding = _find(run, walk, owners, namer, start, verdict, looker)
    if finding.phase == "optimizer" and alarm.named and finding.origin is not None:
        path = alarm.named[0][0].rpartition(".")[0]
        finding.origin = replace(finding.origin, module=path, module_type=snapshot.modules.get(path))
    return finding, namer


def _with_finding(snapshot: Snapshot, judged: Judged, namer: Namer, finding: Finding, verdict: Verdict) -> Snapshot:
    run, owners = judged.run, judged.owners
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
        expected=expected_of(run, finding.path),
    )


def _computed_unseen(snapshot: Snapshot, facts: ReplayFacts, node: str) -> Snapshot:
    """A value made by compiled code outside the watched modules: the node is known, what it ran is not."""
    name = node.removesuffix("Backward")
    reason = f"the value came out of {name}, code outside the watched modules whose ops are not seen (torch.compile)"
    origin = Origin(op=name, module=None, autograd_node=node)
    return replace(snapshot, phase="loss", origin=origin, replay=replace(facts, reasons=(*facts.reasons, reason)))


# The symptom


def symptom_of(alarm: Alarm) -> Symptom:
    """What was noticed, as plain data."""
    name, summary = "", None
    if alarm.kind == "gradient":
        name, gradient = alarm.named[0]
        summary = describe(gradient, "grad", f"gradient of {name}")
    elif alarm.kind == "parameter":
        name, parameter = alarm.named[0]
        summary = describe(parameter.detach(), name, f"parameter {name}")
    elif alarm.within is not None:
        name = alarm.within
    elif alarm.tokens and (tensor := alarm.tokens[0].ref()) is not None:
        summary = describe(tensor.detach())
    kind = {"write": "gradient"}.get(alarm.kind, alarm.kind)
    return Symptom(kind, name or (alarm.named[0][0] if alarm.named else ""), summary, alarm.value, alarm.where)


def _last_engine_call(run: Run) -> int | None:
    """Where gradients came of `autograd.grad` alone: what ran after the last call handled them, it is no loss."""
    calls = [position for position, event in enumerate(run.events) if isinstance(event, EngineCall)]
    return calls[-1] if calls else None


def symptom_tokens(alarm: Alarm, recorder: Recorder) -> list[Token]:
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


def _within(run: Run, walk: Walk) -> tuple[State | None, Verdict | None]:
    """strict: the first NaN that an op of a module made, be it without consequences; declared ones only if all are."""
    found: list[tuple[State | None, Verdict]] = []
    for seen in run.microscope.ops:
        if seen.glue or seen.backward:
            continue
        for output in seen.bad:
            bad = first_bad_element(seen.kept_outputs[output].tensor)
            if bad is not None and isnan(bad[1]):
                state = State(seen.id, output, bad[0])
                verdict = walk.judge(state)
                found.append((state, verdict))
                if verdict.kind != DECLARED:
                    return state, verdict
    return found[0] if found else (None, None)


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


def _agree(one: Origin | None, other: Origin | None) -> bool:
    """Whether two ways of looking blame the same op."""
    return one is not None and other is not None and one.op == other.op


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
    return Finding(where_ran(run, namer, seen), _origin(run, owners, namer, state, looker), _from(path, state))


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
    A NaN is harmful in the first op that computes with it: nothing downstream can take it for a masked score.
    """
    for state in states[:3]:  # the number itself may be an op of its own, and be moved
        seen = run.microscope.ops[state.op]
        computes = seen.facts.name in _CHOOSING or seen.facts.name not in PLUMBING | _WRITING_NUMBERS
        if computes and not seen.expected and isnan(value_at(seen.kept_outputs[state.output].tensor, state.index)):
            return state
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


def bare(alarm: Alarm, recorder: Recorder, fault: Exception) -> Snapshot:
    """What is known when tracing itself failed: the symptom, the history, and the fault in a sentence."""
    snapshot = Snapshot(
        alarm.step, "", symptom_of(alarm), history=recorder.ring.table(alarm.step), environment=environment()
    )
    reason = f"tracing failed with a fault of nantrace's own: {type(fault).__name__}: {fault}"
    return without_replay(snapshot, alarm, None, ReplayFacts(None, (reason,)))
