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

    def __init__(self, first_bytes: int = 0) -> None:
        self._first_bytes = first_bytes  # buffers up to this size are kept before their first call, too
        self._known: set[int] = set()
        self._changing: set[int] = set()
        self._versions: list[tuple[str, torch.Tensor, int, bool]] = []

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
            size = buffer.numel() * buffer.element_size()
            full = f"{path}.{name}" if path else name
            changing = statistics or id(buffer) in self._changing
            keeps = changing or (size <= self._first_bytes and id(buffer) not in self._known)
            if keeps and held + size <= _LIMIT:
                held += size
                kept[full] = (buffer, buffer.detach().clone())
            if not changing:
                self._versions.append((full, buffer, version_of(buffer), full in kept))
        return kept

    def after(self) -> list[str]:
        """Notice the buffers that the call has changed; gives those of which it has no copy."""
        unkept: list[str] = []
        for name, buffer, version, kept in self._versions:
            if version_of(buffer) != version:
                self._changing.add(id(buffer))
                if not kept:
                    unkept.append(name)
            elif self._first_bytes:
                self._known.add(id(buffer))
        self._versions.clear()
        return unkept


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
