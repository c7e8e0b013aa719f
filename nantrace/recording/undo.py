"""What an optimizer's step will change, kept as it is before the step, so that the step can be undone or run again.

Copies are taken into memory that is used again at every step, and never of more than `MAX_BYTES` in all.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..torch_private import foreach_copy
from .state import torch_random_now
from .tape import RandomState

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
    """One optimizer's weights and state as they were before its step, and what the step was made of."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = weakref.ref(optimizer)
        self.structure = Structure()
        self.gradients: list[tuple[torch.Tensor, torch.Tensor | None]] = []  # parameter, copy of its gradient
        self.random: RandomState | None = None
        self.step = -1  # of the clock, for one that can step again
        self.held = 0
        self._copies: dict[int, torch.Tensor] = {}  # by the identity of the tensor, or of a gradient's parameter

    def take(self, structure: Structure) -> None:
        """Copy every tensor of the structure, into the copies of the step before where they fit."""
        self.structure, self.gradients = structure, []
        self.held = structure.size
        self._copies = self._copied(structure.tensors, [id(tensor) for tensor in structure.tensors], self._copies)

    def take_with_gradients(self, structure: Structure, parameters: list[torch.Tensor]) -> None:
        """The same with the gradients and the random state: all that it takes to run the step again."""
        former = self._copies
        self.take(structure)
        given = {-id(p): p.grad.detach() for p in parameters if p.grad is not None}
        copies = self._copied(list(given.values()), list(given), former)
        self.gradients = [(parameter, copies.get(-id(parameter))) for parameter in parameters]
        self._copies |= copies
        self.held += sum(copy.numel() * copy.element_size() for copy in copies.values())
        self.random = torch_random_now()

    def take_containers(self, structure: Structure) -> None:
        """Remember the containers alone: what is written into the tensors is kept by somebody else."""
        self.structure, self.gradients, self._copies, self.held = Structure(structure.containers), [], {}, 0

    def put_back(self) -> None:
        """Weights and state as they were."""
        self.structure.put_back()
        targets = [tensor.detach() for tensor in self.structure.tensors]
        with torch.no_grad():
            foreach_copy(targets, [self._copies[id(tensor)] for tensor in self.structure.tensors])

    def put_back_gradients(self) -> None:
        """The gradients' values as they were, in the tensors that hold them now."""
        with torch.no_grad():
            for parameter, copy in self.gradients:
                if copy is not None and parameter.grad is not None:
                    parameter.grad.detach().copy_(copy)

    def pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Every tensor of weights and state with its copy."""
        return [(tensor, self._copies[id(tensor)]) for tensor in self.structure.tensors]

    @property
    def can_step_again(self) -> bool:
        """Whether everything that the step was made of is here."""
        return self.random is not None and bool(self.gradients)

    def _copied(
        self, tensors: list[torch.Tensor], keys: list[int], former: dict[int, torch.Tensor]
    ) -> dict[int, torch.Tensor]:
        copies: dict[int, torch.Tensor] = {}
        for key, tensor in zip(keys, tensors, strict=True):
            copy = former.get(key)
            if copy is None or not _alike(copy, tensor):
                copy = torch.empty_like(tensor, requires_grad=False)
            copies[key] = copy
        with torch.no_grad():
            foreach_copy(list(copies.values()), [tensor.detach() for tensor in tensors])
        return copies


def _alike(copy: torch.Tensor, tensor: torch.Tensor) -> bool:
    if copy.layout is not torch.strided or tensor.layout is not torch.strided:
        return False
    return copy.shape == tensor.shape and copy.dtype is tensor.dtype and copy.device == tensor.device


class Memories:
    """The memories of the running step, by optimizer."""

    def __init__(self) -> None:
        self._all: dict[int, Memory] = {}
        self._of_this_step: list[int] = []

    def take(self, optimizer: torch.optim.Optimizer, structure: Structure) -> str:
        """Keep a copy of the weights and the state; where there is too much of it, say so in half a sentence."""
        reason = self._too_much(optimizer, structure.size)
        if not reason:
            self._begin(optimizer).take(structure)
        return reason

    def take_with_gradients(self, optimizer: torch.optim.Optimizer, structure: Structure, step: int) -> str:
        """Keep what it takes to run the step again; where there is too much of it, say so in half a sentence."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = sum(p.grad.numel() * p.grad.element_size() for p in parameters if p.grad is not None)
        reason = self._too_much(optimizer, structure.size + gradients)
        if not reason:
            memory = self._begin(optimizer)
            memory.take_with_gradients(structure, parameters)
            memory.step = step
        return reason

    def take_containers(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the containers of the state, where a journal keeps the tensors."""
        self._begin(optimizer).take_containers(structure_of(optimizer))

    def last(self, optimizer: torch.optim.Optimizer) -> Memory | None:
        """The memory that was taken last of an optimizer, perhaps in the step before, or None."""
        memory = self._all.get(id(optimizer))
        return memory if memory is not None and memory.optimizer() is optimizer else None

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

    def _too_much(self, optimizer: torch.optim.Optimizer, size: int) -> str:
        others = sum(self._all[key].held for key in self._of_this_step if key != id(optimizer))
        if size + others <= MAX_BYTES:
            return ""
        self._all.pop(id(optimizer), None)
        if id(optimizer) in self._of_this_step:
            self._of_this_step.remove(id(optimizer))
        return f"its weights and state are {size >> 20} MiB, and copies are kept of {MAX_BYTES >> 20} MiB at most"

    def _begin(self, optimizer: torch.optim.Optimizer) -> Memory:
        memory = self._all.get(id(optimizer))
        if memory is None or memory.optimizer() is not optimizer:
            memory = self._all[id(optimizer)] = Memory(optimizer)
        if id(optimizer) in self._of_this_step:
            self._of_this_step.remove(id(optimizer))
        self._of_this_step.append(id(optimizer))
        return memory


def at_risk(optimizer: torch.optim.Optimizer, parameters: Sequence[tuple[str, torch.Tensor]], norm: float) -> bool:
    """Whether a step may make weights non-finite out of finite gradients: nothing is copied where it hardly can."""
    if not 0 < norm < _LARGE or any(parameter.dtype in _HALVES for _, parameter in parameters):
        return True
    return any(not _sound(group.get("lr")) or group.get("eps") == 0 for group in optimizer.param_groups)


def _sound(rate: Any) -> bool:
    return not isinstance(rate, (int, float)) or abs(rate) < _FAST


_HALVES = (torch.float16, torch.bfloat16)
_LARGE = 1e15  # a gradient norm whose square, times a learning rate, may leave float32
_FAST = 1e6  # no learning rate is meant to be more
