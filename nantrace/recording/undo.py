"""What an optimizer's step will change, kept as it is before the step, so that the step can be undone or run again.

Copies are taken into memory that is used again at every step, and never of more than `MAX_BYTES` in all.
"""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch

from ..torch_private import foreach_copy, is_torch_optimizer

MAX_BYTES = 1 << 28  # of weights and state, over all optimizers of a step


def _is_the_scalers(key: Any) -> bool:
    """Attributes that GradScaler sets on an optimizer and deletes after its step."""
    return isinstance(key, str) and key in ("grad_scale", "found_inf")


@dataclass(slots=True)
class Structure:
    """The containers of an optimizer's state with what they held, and the tensors in them."""

    containers: list[tuple[Any, Any]] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)

    def put_back(self) -> None:
        """Fill every container with what it held."""
        for container, content in self.containers:
            if isinstance(container, dict):
                for key in [key for key in container if key not in content and not _is_the_scalers(key)]:
                    del container[key]
                container.update(content)
            else:
                container.clear()
                container.extend(content)

    @property
    def size(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


def structure_of(optimizer: torch.optim.Optimizer) -> Structure:
    """Everything that hangs on an optimizer: parameters, settings, state, and the optimizers that it wraps."""
    found = Structure()
    seen: set[int] = set()
    waiting: list[Any] = [optimizer]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            if id(value) not in seen:
                seen.add(id(value))
                found.tensors.append(value)
            continue
        if isinstance(value, torch.optim.Optimizer):
            value = vars(value)
        if not isinstance(value, (dict, list, tuple, set, deque)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            content: Any = {key: held for key, held in value.items() if not _is_the_scalers(key)}
            waiting.extend(content.values())
        else:
            content = list(value)
            waiting.extend(content)
        if isinstance(value, (dict, list, deque)):
            found.containers.append((value, content))
    return found


class Memory:
    """One optimizer's weights and state as they were before its step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = weakref.ref(optimizer)
        self.structure = Structure()
        self.held = 0
        self._copies: dict[int, torch.Tensor] = {}

    def take(self, structure: Structure) -> None:
        """Copy every tensor of the structure, into the copies of the step before where they fit."""
        self.structure = structure
        former, self._copies = self._copies, {}
        for tensor in structure.tensors:
            copy = former.get(id(tensor))
            if copy is None or not _alike(copy, tensor):
                copy = torch.empty_like(tensor, requires_grad=False)
            self._copies[id(tensor)] = copy
        self.held = structure.size
        with torch.no_grad():
            foreach_copy(self.copies(), [tensor.detach() for tensor in structure.tensors])

    def take_containers(self, structure: Structure) -> None:
        """Remember the containers alone: what is written into the tensors is kept by somebody else."""
        self.structure, self._copies, self.held = Structure(structure.containers), {}, 0

    def put_back(self) -> None:
        """Weights and state as they were."""
        self.structure.put_back()
        with torch.no_grad():
            foreach_copy([tensor.detach() for tensor in self.structure.tensors], self.copies())

    def copies(self) -> list[torch.Tensor]:
        """The copies, in the order of the structure's tensors."""
        return [self._copies[id(tensor)] for tensor in self.structure.tensors]


def _alike(copy: torch.Tensor, tensor: torch.Tensor) -> bool:
    return copy.shape == tensor.shape and copy.dtype is tensor.dtype and copy.device == tensor.device


class Memories:
    """The memories of the running step, by optimizer."""

    def __init__(self) -> None:
        self._all: dict[int, Memory] = {}
        self._of_this_step: list[int] = []

    def take(self, optimizer: torch.optim.Optimizer) -> str:
        """Keep a copy; where there is too much of it, say so in half a sentence."""
        structure = structure_of(optimizer)
        others = sum(self._all[key].held for key in self._of_this_step)
        if structure.size + others > MAX_BYTES:
            self._all.pop(id(optimizer), None)
            mebibytes = structure.size >> 20
            return f"its weights and state are {mebibytes} MiB, and copies are kept of {MAX_BYTES >> 20} MiB at most"
        self._begin(optimizer).take(structure)
        return ""

    def take_containers(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the containers of the state, where a journal keeps the tensors."""
        self._begin(optimizer).take_containers(structure_of(optimizer))

    def of(self, optimizer: torch.optim.Optimizer) -> Memory | None:
        """The memory of an optimizer that was taken in this step, or None."""
        return self._all[id(optimizer)] if id(optimizer) in self._of_this_step else None

    def taken(self) -> list[Memory]:
        """The memories of this step, oldest first."""
        return [self._all[key] for key in self._of_this_step]

    def end_step(self) -> None:
        """What was kept belongs to the past; its memory is used again."""
        self._of_this_step.clear()
        for key in [key for key, memory in self._all.items() if memory.optimizer() is None]:
            del self._all[key]

    def _begin(self, optimizer: torch.optim.Optimizer) -> Memory:
        memory = self._all.get(id(optimizer))
        if memory is None or memory.optimizer() is not optimizer:
            memory = self._all[id(optimizer)] = Memory(optimizer)
        if id(optimizer) in self._of_this_step:
            self._of_this_step.remove(id(optimizer))
        self._of_this_step.append(id(optimizer))
        return memory


def is_foreign(optimizer: torch.optim.Optimizer) -> bool:
    """Whether any of its code is not torch's: what goes wrong in it can be shown line by line."""
    return not all(is_torch_optimizer(kind) for kind in type(optimizer).__mro__ if kind is not object)
