"""A value born in an optimizer's step: which parameter, which settings, which of its state values."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..model import Example, OperandValue, OptimizerFacts, Origin
from ..recording.alarm import Alarm
from ..recording.frames import innermost_outside_torch, source_at
from ..recording.names import ModuleNames
from .examples import element
from .summaries import describe, dtype_name, first_bad_element


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
    )


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
