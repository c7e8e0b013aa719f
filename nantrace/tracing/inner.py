"""Tensors that left a module's call otherwise than as its output: an auxiliary loss, a feature that a hook put aside.

The tape knows each by the autograd node that made it, counted from the call's first node. In the replay it is the
tensor that the node of the same number makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..recording.flatten import tensors_in
from ..recording.tape import EntryCall, Token
from ..torch_private import inside_functorch, node_sequence_number, sequence_number
from .run import Run


@contextmanager
def inner_tensors(run: Run, event: EntryCall) -> Iterator[None]:
    """Find the tensors that were taken out of this call while it is played."""
    if not event.inner:
        yield
        return
    finder = _Finder(event.inner)
    with finder:
        yield
    for token in event.inner.values():
        found = finder.found.get(id(token))
        live = token.ref()
        if found is not None and (live is None or (found.shape, found.dtype) == (live.shape, live.dtype)):
            run.twins[id(token)] = found
        elif live is not None:
            run.twins[id(token)] = live.detach().requires_grad_(live.requires_grad)
            run.doubts.append(f"a tensor of shape {tuple(live.shape)} that left the module was not found again")


class _Finder(TorchFunctionMode):
    """Looks at what every function of torch takes and gives, where autograd nodes are already attached."""

    def __init__(self, wanted: dict[tuple[int, int], Token]) -> None:
        super().__init__()
        self.found: dict[int, torch.Tensor] = {}
        self._wanted = wanted
        self._first = sequence_number()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not inside_functorch():
            for tensor in tensors_in((args, result)):  # an op in place gives nothing that could be looked at later
                self._look(tensor)
        return result

    def _look(self, tensor: torch.Tensor) -> None:
        node = tensor.grad_fn
        number = node_sequence_number(node) if node is not None else None
        token = self._wanted.get((number - self._first, tensor.output_nr)) if number is not None else None
        if token is not None:
            self.found[id(token)] = tensor
