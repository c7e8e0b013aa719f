"""Small builders: a snapshot written by hand, naming only what the test is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isfinite, isinf, isnan, sqrt
from typing import Any

from nantrace.model import (
    Edge,
    Event,
    Example,
    History,
    Op,
    OperandValue,
    Origin,
    Snapshot,
    Source,
    StepRecord,
    Symptom,
    TensorSummary,
)

INF, NAN = float("inf"), float("nan")


def tensor(
    *values: float, name: str = "self", shape: tuple[int, ...] | None = None, dtype: str = "float32", label: str = ""
) -> TensorSummary:
    """The summary of a tensor with these values; a given `shape` says that there are more like them."""
    finite = [value for value in values if isfinite(value)]
    return TensorSummary(
        shape=(len(values),) if shape is None else shape,
        dtype=dtype,
        device="cpu",
        min=min(finite, default=None),
        max=max(finite, default=None),
        mean=sum(finite) / len(finite) if finite else None,
        rms=sqrt(sum(value * value for value in finite) / len(finite)) if finite else None,
        nan=sum(isnan(value) for value in values),
        pos_inf=sum(isinf(value) and value > 0 for value in values),
        neg_inf=sum(isinf(value) and value < 0 for value in values),
        zero=sum(value == 0 for value in values),
        negative=sum(value < 0 for value in values),
        name=name,
        label=label,
    )


def element(name: str, value: float, index: tuple[int, ...] = (3, 17)) -> OperandValue:
    """One operand's value at the failing element."""
    return OperandValue(name, "element", (value,), index)


def many(kind: str, name: str, values: Sequence[float], dtype: str = "float32") -> OperandValue:
    """A slice, a row or a column that the failing element was computed from."""
    return OperandValue(name, kind, tuple(values)[:64], None, tensor(*values, name=name, dtype=dtype))


def source(code: str, expression: str = "") -> Source:
    """A line of the user's program."""
    return Source("train.py", 12, "forward", code, expression)


def pointwise(op: str, value: float, /, dtype: str = "float32", code: str = "", **operands: float) -> Origin:
    """The origin of a pointwise op: out[3, 17] = value, from one element per operand."""
    return Origin(
        op=op,
        module="net.head",
        source=source(code) if code else None,
        inputs=tuple(tensor(1.0, given, name=name, dtype=dtype) for name, given in operands.items()),
        outputs=(tensor(1.0, value, dtype=dtype, name=""),),
        example=Example((3, 17), value, tuple(element(name, given) for name, given in operands.items())),
        id=10,
    )


def derivative(
    op: str, value: float, /, grad: float, dtype: str = "float32", code: str = "", **operands: float
) -> Origin:
    """The origin of a value born in backward: the forward op's operands and the gradient that arrived."""
    forward = pointwise(op, value, dtype, code, **operands)
    assert forward.example is not None
    example = Example((3, 17), value, (*forward.example.operands, element("grad", grad)))
    return Origin(
        op=op,
        module=forward.module,
        source=forward.source,
        inputs=forward.inputs,
        outputs=(tensor(1.0, name="", dtype=dtype),),
        example=example,
        id=90,
        derivative=True,
        derivative_aten="aten::mul.Tensor",
    )


def op(
    id: int,
    name: str,
    inputs: Sequence[TensorSummary] = (),
    outputs: Sequence[TensorSummary] = (),
    arguments: Mapping[str, Any] | None = None,
    phase: str = "forward",
    **more: Any,
) -> Op:
    """An executed op."""
    return Op(
        id,
        name,
        f"aten::{name}",
        phase,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        arguments=arguments or {},
        **more,
    )


def chain(*ops: Op) -> tuple[Edge, ...]:
    """Edges that make each op read the one before it, as its first operand."""
    return tuple(Edge(above.id, below.id, 0) for above, below in pairwise(ops))


def record_of(origin: Origin) -> Op:
    """The executed op that a (forward) origin stands for."""
    return op(10, origin.op, origin.inputs, origin.outputs, origin.arguments, source=origin.source)


def history(
    losses: Sequence[float | None] = (),
    norms: Sequence[float | None] = (),
    lr: float | None = None,
    events: Sequence[Event] = (),
    evicted: int = 0,
) -> History:
    """The recorded steps, one per loss (or gradient norm); the last one is the failing step."""
    count = max(len(losses), len(norms))
    padded = (list(losses) + [None] * count)[:count], (list(norms) + [None] * count)[:count]
    steps = tuple(StepRecord(evicted + i, loss, norm, lr) for i, (loss, norm) in enumerate(zip(*padded, strict=True)))
    return History(steps, tuple(events), 256, evicted)


def event(step: int, absmax: float, module: str = "net.head", kind: str = "forward", order: int = 0) -> Event:
    """One recorded summary whose largest magnitude is `absmax`."""
    return Event(step, order, kind, module, 0, 64, "float32", -absmax, absmax, 0.0, absmax / 3, isfinite(absmax))


def snapshot(origin: Origin | None = None, /, phase: str = "forward", step: int = 5, **more: Any) -> Snapshot:
    """A snapshot of one anomaly; `more` are fields of Snapshot."""
    more.setdefault("symptom", Symptom("loss", value=NAN))
    return Snapshot(step=step, phase=phase, origin=origin, **more)


def remedy_text(diagnosis: Any) -> str:
    """All the advice in one lower-case string."""
    return " ".join(f"{remedy.text} {remedy.code or ''}" for remedy in diagnosis.remedies).lower()
