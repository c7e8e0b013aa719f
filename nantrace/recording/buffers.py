"""Buffers and plain tensors that a call writes into (running statistics, counters), kept as they were before it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch.nn.parameter import is_lazy

from ..torch_private import own_buffers
from .assigned import Slots
from .tape import version_of

_LIMIT = 1 << 26  # bytes of buffers kept per call; larger ones are left, and a replay sees their new values


class BufferKeeper:
    """Learns which buffers change, and copies those before each call.

    Running statistics are known to change; any other buffer is noticed by its version after its first change.
    """

    def __init__(self) -> None:
        self._changing: set[int] = set()
        self._versions: list[tuple[torch.Tensor, int]] = []

    def before(
        self, owners: list[tuple[str, torch.nn.Module]], tensors: Slots
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """The changing ones of these modules' buffers and of these tensors, with copies, by full name."""
        kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._versions.clear()
        held = 0
        for path, name, buffer, statistics in chain(_buffers_of(owners), _tensors_of(tensors)):
            if is_lazy(buffer):
                continue  # it gets its values in this call
            if statistics or id(buffer) in self._changing:
                held += buffer.numel() * buffer.element_size()
                if held <= _LIMIT:
                    kept[f"{path}.{name}" if path else name] = (buffer, buffer.detach().clone())
            else:
                self._versions.append((buffer, version_of(buffer)))
        return kept

    def after(self) -> None:
        """Notice the buffers that the call has changed."""
        for buffer, version in self._versions:
            if version_of(buffer) != version:
                self._changing.add(id(buffer))
        self._versions.clear()


def _buffers_of(owners: list[tuple[str, torch.nn.Module]]) -> Iterator[tuple[str, str, torch.Tensor, bool]]:
    for path, owner in owners:
        statistics = owner.training and getattr(owner, "track_running_stats", False)
        for name, buffer in own_buffers(owner).items():
            if buffer is not None:
                yield path, name, buffer, statistics


def _tensors_of(slots: Slots) -> Iterator[tuple[str, str, torch.Tensor, bool]]:
    for path, namespace, names in slots:
        for name in names:
            tensor = namespace.get(name)
            if type(tensor) is torch.Tensor:
                yield path, name, tensor, False
