"""An update, tried with another setting or with clipped gradients, on a copy of the one parameter that it spoiled.

The weights from before the update are gone. Its size does not depend on them (weight decay apart), so that the copy
begins with its finite part, and with zeros where the live update made it non-finite; its optimizer state likewise.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from typing import Any

import torch

from ...model import Change, Trial
from ...recording.alarm import Alarm
from ...recording.names import ModuleNames
from ...recording.recorder import Recorder
from ...recording.statistics import is_finite
from ...torch_private import is_torch_optimizer
from ..apart import apart
from .operands import CannotTry


def try_update(change: Change, alarm: Alarm, recorder: Recorder) -> Trial:
    """Whether the update stays finite with the change."""
    try:
        if _updates_finite(None, alarm, recorder.names):
            raise CannotTry("the update could not be made to fail again without the weights from before it")
        finite = _updates_finite(change, alarm, recorder.names)
    except CannotTry as reason:
        return Trial(change, None, f"not tried: {reason}")
    except Exception as error:  # an optimizer may refuse a setting
        return Trial(change, None, f"the update with it raised {type(error).__name__}: {error}")
    said = "the update came out finite" if finite else "the update was still not finite"
    return Trial(change, finite, said)


def _updates_finite(change: Change | None, alarm: Alarm, names: ModuleNames) -> bool:
    optimizer = alarm.optimizer
    if optimizer is None or not all(is_torch_optimizer(kind) for kind in type(optimizer).__mro__[:-1]):
        raise CannotTry("only updates of torch's own optimizers are tried")
    parameter = alarm.named[0][1]
    group = next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), None)
    if group is None or parameter.grad is None or not is_finite(parameter.grad):
        raise CannotTry("its gradient is not there any more, or not finite")
    twin = torch.nn.Parameter(_filled(parameter.detach()))
    twin.grad = parameter.grad.detach().clone() * _factor(change, optimizer)
    shadow = copy.copy(optimizer)
    setting = {change.name: change.values[0]} if change is not None and change.act == "setting" else {}
    unknown = setting.keys() - group.keys()
    if unknown:
        raise CannotTry(f"{type(optimizer).__name__} has no setting {unknown.pop()!r}")
    shadow.param_groups = [{**group, **setting, "params": [twin]}]
    state = {key: _copied(value) for key, value in optimizer.state.get(parameter, {}).items()}
    shadow.state = defaultdict(dict, {twin: state})
    apart(shadow.step)
    return is_finite(twin.detach())


def _factor(change: Change | None, optimizer: Any) -> float:
    """What clipping multiplies every gradient with."""
    if change is None or change.act != "clip":
        return 1.0
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = math.sqrt(sum(float(gradient.detach().double().norm()) ** 2 for gradient in gradients))
    return min(1.0, change.values[0] / (norm + 1e-6))


def _copied(value: Any) -> Any:
    return _filled(value) if isinstance(value, torch.Tensor) else copy.copy(value)


def _filled(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()
    return torch.where(torch.isfinite(tensor), tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))
