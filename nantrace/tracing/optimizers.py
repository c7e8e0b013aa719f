"""A value born in an optimizer's step: which parameter, which settings, which of its state values, and by which op.

For torch's own optimizers the origin is the line that stepped. Others are run once more, and the origin is the op
inside their `step`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from ..model import Example, OperandValue, OptimizerFacts, Origin, ReplayFacts, Snapshot
from ..recording.alarm import Alarm
from ..recording.frames import innermost_outside_torch, source_at
from ..recording.names import ModuleNames
from ..recording.recorder import Recorder
from ..torch_private import is_torch_optimizer
from .definitions import construction_of
from .examples import element, example_of
from .naming import Namer
from .place import place_of
from .plain import chosen_ops, plain_edges, plain_ops
from .schema import PLUMBING, facts_of, operands, scalars
from .sources import Owners
from .stepping import SteppedAgain, step_again
from .summaries import describe, dtype_name, first_bad_element, spread_bad_elements
from .walk import EXTERNAL, State, Verdict, Walk

MAX_TENSORS = 16  # of those that came out bad, how many are walked
MAX_ELEMENTS = 16  # of each, how many bad elements


def optimizer_facts(alarm: Alarm) -> OptimizerFacts | None:
    """The optimizer's settings as numbers; the first bad parameter where the step made one."""
    optimizer = alarm.optimizer
    if optimizer is None:
        return None
    name, tensor = alarm.named[0] if alarm.named else (None, None)
    bad = alarm.kind == "parameter"
    group = _group_of(optimizer, tensor) if bad else optimizer.param_groups[0]
    settings = {key: _plain(value) for key, value in group.items() if key != "params" and _plain(value) is not None}
    return OptimizerFacts(
        type(optimizer).__name__,
        settings,
        name if bad else None,
        dtype_name(tensor) if bad and tensor is not None else None,
        elements=sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"]),
        made=construction_of(optimizer, alarm.stack),
    )


def from_optimizer(snapshot: Snapshot, alarm: Alarm, recorder: Recorder, *, replaying: bool) -> Snapshot:
    """The snapshot of a parameter (or a state) that a step made non-finite out of finite gradients."""
    if alarm.written is not None:
        reason = "the hand-written update is not replayed: the weights from before it are gone"
        origin = origin_of_write(alarm, recorder.names)
        return replace(snapshot, phase="optimizer", origin=origin, replay=ReplayFacts(None, (reason,)))
    snapshot = replace(snapshot, phase="optimizer", origin=origin_in_optimizer(alarm, recorder.names))
    if not replaying:
        return replace(snapshot, replay=ReplayFacts(None, ("replay is switched off (replay=False)",)))
    if alarm.optimizer is None or all(is_torch_optimizer(kind) for kind in type(alarm.optimizer).__mro__[:-1]):
        reason = "the optimizer's step is not replayed: the weights from before it are gone"
        return replace(snapshot, replay=ReplayFacts(None, (reason,)))
    with step_again(alarm, recorder.names) as again:  # the values that the walk reads are there only inside
        if again is None or again.run.error is not None or not again.bad:
            why = "it came out finite" if again is None or again.run.error is None else repr(again.run.error)
            return replace(snapshot, replay=ReplayFacts(None, (f"the optimizer's step was run again: {why}",)))
        return _from_second_run(snapshot, alarm, recorder, again)


def _from_second_run(snapshot: Snapshot, alarm: Alarm, recorder: Recorder, again: SteppedAgain) -> Snapshot:
    run, names = again.run, recorder.names
    owners = Owners(run, names, [])
    for _, key, value in again.before:
        owners.own(value, "state", key)
    walk = Walk(run.microscope, lambda source: False)
    tensor, start, verdict = _earliest(walk, again)
    states = walk.path(verdict, start)
    origin_state = verdict.state if verdict.kind != EXTERNAL else _first_consumer(run.microscope.ops, states)
    facts = snapshot.optimizer
    if verdict.kind == EXTERNAL and verdict.source is not None and facts is not None:
        spoiled = owners.of(verdict.source.place.storage).name
        if alarm.earlier is not None:
            return _spoiled_before(snapshot, alarm.earlier, replace(facts, spoiled_state=spoiled))
        facts = replace(facts, spoiled_state=spoiled)
    if origin_state is None:
        return replace(snapshot, optimizer=facts, replay=ReplayFacts(again.reproduced, again.reasons))
    namer = Namer(run.microscope, run.events)
    path = list(dict.fromkeys(state.op for state in states))
    path = path[path.index(origin_state.op) :]
    ops = chosen_ops(run, path)
    parameter_name = _name_of(tensor, alarm, names)
    if facts is not None:
        own = snapshot.origin.example.operands if snapshot.origin is not None and snapshot.origin.example else ()
        facts = replace(facts, parameter=parameter_name, state=own)
    return replace(
        snapshot,
        origin=_inner_origin(again, namer, origin_state, parameter_name, names),
        path=tuple(path),
        ops=plain_ops(run, namer, owners, ops, origin_state.op),
        edges=plain_edges(ops),
        ops_left_out=len(run.microscope.ops) - len(ops),
        optimizer=facts,
        replay=ReplayFacts(again.reproduced, again.reasons, len(run.microscope.ops), run.seconds),
    )


def _spoiled_before(snapshot: Snapshot, former: Snapshot, facts: OptimizerFacts) -> Snapshot:
    """The op that spoiled the state in an earlier step, as the origin of what the weights became in this one."""
    own = former.optimizer
    return replace(
        former,
        step=snapshot.step,
        symptom=snapshot.symptom,
        history=snapshot.history,
        optimizer=replace(facts, spoiled_in=former.step, state=own.state if own is not None else ()),
    )


def _earliest(walk: Walk, again: SteppedAgain) -> tuple[torch.Tensor, State | None, Verdict]:
    """Of everything that came out bad, the verdict that goes back furthest; what was bad before comes last."""
    found = [
        (tensor, *walk.from_tensor(tensor, index, value))
        for _, tensor in again.bad[:MAX_TENSORS]
        for index, value in spread_bad_elements(tensor.detach(), MAX_ELEMENTS)
    ]
    return min(found, key=lambda one: (one[2].kind == EXTERNAL, one[2].order))


def _first_consumer(ops: list[Any], states: list[State]) -> State | None:
    return next((state for state in states if ops[state.op].facts.name not in PLUMBING), states[0] if states else None)


def _name_of(tensor: torch.Tensor, alarm: Alarm, names: ModuleNames) -> str:
    """The parameter's name, for a parameter or for the state that belongs to it."""
    own = names.parameter(tensor)
    if own is not None:
        return own
    for parameter, state in alarm.optimizer.state.items() if alarm.optimizer is not None else ():
        if isinstance(state, dict) and any(value is tensor for value in state.values()):
            return names.parameter(parameter) or alarm.named[0][0]
    return alarm.named[0][0]


def _inner_origin(again: SteppedAgain, namer: Namer, state: State, parameter: str, names: ModuleNames) -> Origin:
    seen = again.run.microscope.ops[state.op]
    module = parameter.rpartition(".")[0]
    inputs = tuple(describe(kept.tensor, kept.name) for kept in seen.kept_inputs)
    example = example_of(seen, state)
    if seen.facts.is_foreach:  # of every list of tensors, the one at the failing place: named as the op on one tensor
        own = {operand.name for operand in example.operands}
        inputs = tuple(replace(one, name=_alone(one.name)) for one in inputs if one.name in own)
        operands = tuple(replace(operand, name=_alone(operand.name)) for operand in example.operands)
        example = replace(example, operands=operands)
    return Origin(
        op=seen.facts.name,
        module=module,
        module_type=names.types().get(module),
        source=namer.line(namer.name(seen)),
        inputs=inputs,
        outputs=(describe(seen.kept_outputs[state.output].tensor),),
        example=example,
        arguments=seen.arguments,
        id=state.op,
        aten=seen.facts.aten,
    )


def origin_of_write(alarm: Alarm, names: ModuleNames) -> Origin | None:
    """The op that wrote a parameter, with its operands; what stood in the parameter before is gone."""
    if alarm.written is None:
        return None
    func, args, kwargs = alarm.written
    name, parameter = alarm.named[0]
    module = name.rpartition(".")[0]
    position = innermost_outside_torch(alarm.stack)
    facts = facts_of(func)
    storage = place_of(parameter).storage
    given = [(key, t.detach()) for key, t in operands(facts, args, kwargs) if place_of(t).storage != storage]
    bad = first_bad_element(parameter.detach())
    example = None
    if bad is not None:
        values = [(key, t, bad[0] if t.shape == parameter.shape else ()) for key, t in given]
        known = tuple(element(key, t, at) for key, t, at in values if t.dim() == len(at))
        example = Example(*bad, known)
    return Origin(
        op=facts.name,
        module=module,
        module_type=names.types().get(module),
        source=source_at(alarm.stack, position) if position is not None else None,
        inputs=tuple(describe(tensor, key) for key, tensor in given),
        outputs=(describe(parameter.detach(), name, f"parameter {name}"),),
        example=example,
        arguments=scalars(facts, args, kwargs),
        aten=facts.aten,
    )


def _alone(name: str) -> str:
    """ "self[3]" is "self"; a foreach op on two lists calls them as the op on two tensors does."""
    return name.partition("[")[0]


def origin_in_optimizer(alarm: Alarm, names: ModuleNames) -> Origin:
    """The line that stepped, the owner of the first bad parameter, and the optimizer's state at the failing element."""
    name, parameter = alarm.named[0]
    module = name.rpartition(".")[0]
    position = innermost_outside_torch(alarm.stack)
    return Origin(
        op=type(alarm.optimizer).__name__.lower(),
        module=module,
        module_type=names.types().get(module),
        source=source_at(alarm.stack, position) if position is not None else None,
        inputs=tuple(describe(tensor, key) for key, tensor in _state(alarm.optimizer, parameter)),
        outputs=(describe(parameter.detach(), name, f"parameter {name}"),),
        example=_example(alarm.optimizer, parameter),
        arguments=dict(facts.settings) if (facts := optimizer_facts(alarm)) is not None else {},
    )


def _example(optimizer: Any, parameter: torch.Tensor) -> Example | None:
    bad = first_bad_element(parameter.detach())
    if bad is None:
        return None
    index, value = bad
    found: list[OperandValue] = []
    for key, tensor in _state(optimizer, parameter):
        if tensor.shape == parameter.shape:
            found.append(element(key, tensor, index, "element" if key == "grad" else "state"))
        elif tensor.dim() == 0:
            found.append(element(key, tensor, (), "state"))
    return Example(index, value, tuple(found))


def _state(optimizer: Any, parameter: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    state = optimizer.state.get(parameter, {})
    tensors = [(key, value.detach()) for key, value in state.items() if isinstance(value, torch.Tensor)]
    gradient = [("grad", parameter.grad.detach())] if parameter.grad is not None else []
    return gradient + tensors


def _group_of(optimizer: Any, parameter: torch.Tensor | None) -> dict[str, Any]:
    for group in optimizer.param_groups:
        if any(parameter is member for member in group["params"]):
            return dict(group)
    return dict(optimizer.param_groups[0])


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else None
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return value
    return value if isinstance(value, (bool, int, float, str)) else None
