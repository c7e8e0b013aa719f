"""The whole step in another dtype, as after `model.bfloat16()`, `model.float()` or another dtype of autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ...model import Change
from ...recording.flatten import replace_leaves
from ...recording.names import ModuleNames
from ...recording.tape import EXTERNAL, PARAMETER, EntryCall, GlueOp, TapeEvent, tokens_read_by
from ...torch_private import own_buffers, own_parameters
from ..run import Run, unobserved
from .operands import CannotTry

_COARSE = frozenset({torch.float16, torch.bfloat16})
_CASTS = {"half": torch.float16, "bfloat16": torch.bfloat16}


@contextmanager
def with_everything_in(change: Change, names: ModuleNames, run: Run) -> Iterator[None]:
    """Half-precision parameters, buffers, batches, autocast and casts of the step's own code become the dtype."""
    dtype = getattr(torch, change.name)
    coarse = _COARSE - {dtype}
    copies: dict[int, torch.Tensor] = {}

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype not in coarse:
            return tensor
        if id(tensor) not in copies:
            values = tensor.detach().to(dtype)
            parameter = isinstance(tensor, torch.nn.Parameter)
            copies[id(tensor)] = torch.nn.Parameter(values, tensor.requires_grad) if parameter else values
        return copies[id(tensor)]

    places = [
        (table, name, tensor)
        for root in names.roots
        for module in root.modules()
        for table in (own_parameters(module), own_buffers(module))
        for name, tensor in table.items()
        if tensor is not None and tensor.dtype in coarse
    ]
    autocast = [event for event in run.events if isinstance(event, EntryCall) and event.modes.autocast]
    if not places and not autocast:
        raise CannotTry("nothing of the step is in half precision")
    with unobserved(run.microscope), torch.no_grad():
        for event in run.events:
            for token in tokens_read_by(event):
                held = token.saved if token.saved is not None else token.held
                if token.kind in (EXTERNAL, PARAMETER) and held is not None and held.dtype in coarse:
                    run.twins[id(token)] = cast(held)
        for table, name, tensor in places:
            table[name] = cast(tensor)
    run.events = [_in_other_autocast(event, dtype) for event in run.events]
    recast = _Recast(dtype, coarse)
    run.glue_call = recast.glue
    try:
        with recast:
            yield
    finally:
        for table, name, tensor in places:
            table[name] = tensor


def _in_other_autocast(event: TapeEvent, dtype: torch.dtype) -> TapeEvent:
    if not isinstance(event, EntryCall) or not event.modes.autocast:
        return event
    kept = () if dtype is torch.float32 else tuple((device, on, dtype) for device, on, _ in event.modes.autocast)
    return replace(event, modes=replace(event.modes, autocast=kept))


class _Recast(TorchFunctionMode):
    """Every cast to half precision in the step's code is one to the dtype instead."""

    def __init__(self, dtype: torch.dtype, coarse: frozenset[torch.dtype]) -> None:
        super().__init__()
        self._dtype = dtype
        self._coarse = coarse

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = self._recast(args), self._recast(kwargs or {})
        if _CASTS.get(getattr(func, "__name__", "")) in self._coarse:
            return args[0].to(self._dtype)
        return func(*args, **kwargs)

    def glue(self, event: GlueOp, args: Any, kwargs: Any) -> Any:
        """An op of the loss, played from the tape."""
        return event.func(*self._recast(args), **self._recast(kwargs))

    def _recast(self, values: Any) -> Any:
        return replace_leaves(values, torch.dtype, lambda dtype: self._dtype if dtype in self._coarse else dtype)
