"""What, where and why in one sentence."""

from __future__ import annotations

from ..model import Cause, Diagnosis, Example, Origin, Snapshot
from .harmless import prose, shorten
from .numbers import element, headline_number, number
from .spelling import role, source_name
from .story import Headline
from .words import expression, module, name, place, step_name, symptom_name, value_of

# What the op's own name does not say.
_DEEPER = {
    Cause.LEARNING_RATE: "the learning rate is too high",
    Cause.EXPLODING_GRADIENT: "the gradients explode",
    Cause.PRECISION: "the dtype is too coarse",
    Cause.MASKED_GRADIENT: "a mask hides it only in the forward pass",
    Cause.TRANSIENT: "gone in the replay",
}
_SIGNS = {"div": "/", "true_divide": "/", "mul": "*", "add": "+", "sub": "-", "pow": "**"}


def headline(snapshot: Snapshot, diagnosis: Diagnosis) -> Headline:
    """The one sentence that has to do when nothing else is read."""
    if snapshot.exception is not None:
        value, text = name(snapshot.exception.type), _exception(snapshot)
    elif snapshot.source_value is not None:
        value, text = headline_number(snapshot.source_value.value), _from_outside(snapshot)
    elif snapshot.phase == "optimizer" and snapshot.optimizer is not None:
        value, text = headline_number(value_of(snapshot)), _update(snapshot, diagnosis)
    elif snapshot.origin is not None:
        value, text = headline_number(value_of(snapshot)), _birth(snapshot, snapshot.origin, diagnosis)
    else:
        value = headline_number(value_of(snapshot))
        text = f"noticed in {symptom_name(snapshot.symptom)}, its origin is not known"
    deeper = _DEEPER.get(diagnosis.cause)
    if deeper is not None and snapshot.exception is None:
        text += f" ({deeper})"
    rank = snapshot.environment.get("rank")
    several = snapshot.environment.get("world_size") not in (None, 1)
    late = "noticed in " if snapshot.phase == "parameters" else ""
    step = f", {late}{step_name(snapshot)}" if snapshot.step >= 0 else ""
    step += f" on rank {prose(rank)}" if rank is not None and several else ""
    return Headline("non-finite" if value == "?" else value, text + step, _pointer(snapshot))


_DEVIATIONS = ("std", "var", "std_mean", "var_mean")


def born_of(origin: Origin, cause: Cause) -> str:
    """What the op did: `log of 0`, `0 / 0`, `exp of 120.0 overflows`, `the derivative of sqrt at 0`."""
    op = name(origin.op)
    operands = _elements(origin.example)
    if origin.derivative:
        return f"the derivative of {op}{_where_taken(origin.example, operands)}"
    if cause is Cause.MASKED_SOFTMAX:
        return f"{op} of a row that is all -inf"
    if cause is Cause.EMPTY_REDUCTION:
        return f"{op} of too few elements" if op in _DEVIATIONS else f"{op} of nothing"
    if cause is Cause.INDEXING:
        return f"{op} reads a value that is not finite"
    too_large = cause in (Cause.OVERFLOW, Cause.LEARNING_RATE, Cause.EXPLODING_GRADIENT)
    if len(operands) == 2 and op in _SIGNS:
        calculation = f" {_SIGNS[op]} ".join(number(value) for value in operands)
        return f"{calculation} overflows" if too_large else calculation
    if too_large:
        dtype = f" {origin.outputs[0].dtype}" if origin.outputs else ""
        return f"{op} of {number(operands[0])} overflows" if len(operands) == 1 else f"{op} overflows{dtype}"
    if 0 < len(operands) <= 2:
        return f"{op} of {_listed(operands)}"
    return f"made by {op}"


def _where_taken(example: Example | None, operands: list[float]) -> str:
    """Where the derivative was taken: at the operand, or where the saved result is so much."""
    if len(operands) == 1:
        return f" at {number(operands[0])}"
    for operand, words in (("self", " at"), ("result", " where its result is")):
        found = example.operand(operand) if example is not None else None
        if operands and found is not None and found.value is not None:
            return f"{words} {number(found.value)}"
    return ""


def _elements(example: Example | None) -> list[float]:
    if example is None or any(operand.kind != "element" for operand in example.operands):
        return []
    return [operand.values[0] for operand in example.operands if operand.values]


def _listed(operands: list[float]) -> str:
    return " and ".join(number(value) for value in operands)


def _birth(snapshot: Snapshot, origin: Origin, diagnosis: Diagnosis) -> str:
    owner = module(origin.module, origin.module_type)
    if snapshot.phase == "loss":
        where = "in the loss"
    elif snapshot.phase == "backward":
        where = f"in the backward pass of {owner}" if owner else "in the backward pass of the loss"
    elif owner:
        where = f"in {owner}"
    else:
        where = "outside every watched module"
    return f"{born_of(origin, diagnosis.cause)} {where}"


def _from_outside(snapshot: Snapshot) -> str:
    source = snapshot.source_value
    assert source is not None
    spelled = f"{name(source_name(snapshot))}{element(source.index)}"
    if source.kind in ("parameter", "buffer"):
        since = source.since_step
        early = since is not None and since < snapshot.step
        return f"in {source.kind} {spelled} " + (f"since step {since}" if early else "before the step began")
    return f"already in the {source.kind} {spelled}"


def _update(snapshot: Snapshot, diagnosis: Diagnosis) -> str:
    optimizer = snapshot.optimizer
    assert optimizer is not None
    parameter = f"parameter {name(optimizer.parameter)}" if optimizer.parameter else "a parameter"
    inner = snapshot.origin if snapshot.origin is not None and snapshot.origin.id is not None else None
    how = f": {born_of(inner, diagnosis.cause)}" if inner is not None else ""
    return f"{name(optimizer.type)} made {parameter} non-finite{how}"


def _exception(snapshot: Snapshot) -> str:
    assert snapshot.exception is not None
    facts, origin = snapshot.index, snapshot.origin
    if facts is None:
        message = shorten(prose(snapshot.exception.message), 120)
        owner = module(origin.module, origin.module_type) if origin is not None else ""
        return (message or "raised") + (f", in {owner}" if owner else "")
    operand = f"{role(name(facts.operand))}{element(facts.position)}"
    text = f"{operand} = {facts.value} is outside {facts.low} .. {facts.high - 1} of {name(facts.op)}"
    owner = module(origin.module, origin.module_type) if origin is not None else ""
    return f"{text} in {owner}" if owner else text


def _pointer(snapshot: Snapshot) -> str:
    source = snapshot.origin.source if snapshot.origin is not None else None
    where, what = place(source), expression(source)
    if snapshot.source_value is not None and what:
        what = f"first used by {what}"
    return f"{what} at {where}" if what and where else what or where
