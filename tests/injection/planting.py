"""Plant a fault in a module of a built model: its class is extended in place, so that its path and name stay."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import nn

from .architectures import Architecture, Batch
from .faults import Fault
from .places import first_tensor, loss_of, with_first_tensor


class Switch:
    """Whether the planted faults act yet."""

    def __init__(self) -> None:
        self.on = False


def plant(module: nn.Module, fault: Fault, switch: Switch) -> None:
    """From now on the module's forward ends in the fault, once the switch is on."""
    own = type(module)
    if fault.phase == "parameters":  # a memory bank that is read by an index; row 3 was never written
        table = torch.ones(5, 2)
        table[3] = math.nan
        module.register_buffer("planted_table", table)

    @functools.wraps(own.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = own.forward(self, *args, **kwargs)
        tensor = first_tensor(output) if switch.on else None
        return output if tensor is None else with_first_tensor(output, fault.plant(self, tensor))

    module.__class__ = type(own.__name__, (own,), {"forward": forward})


def reaches_the_loss(architecture: Architecture, path: str, fault: Fault, batch: Batch, *, in_model: bool) -> bool:
    """Whether the loss is not finite once the fault is planted there."""
    torch.manual_seed(0)
    model = architecture.build().train()
    switch = Switch()
    switch.on = True
    plant(model.get_submodule(path), fault, switch)
    loss, _ = loss_of(architecture, model, batch, in_model=in_model)
    return not bool(loss.isfinite())
