"""Where a tensor's elements lie in memory, so that a value is followed through views by its address."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Place:
    """The memory of one strided tensor: storage, and how an index becomes a byte address in it."""

    storage: int  # the storage's base address; 0 where there is none (sparse, meta, empty)
    start: int  # bytes from the base to element (0, ..., 0)
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in bytes
    itemsize: int

    def address(self, index: tuple[int, ...]) -> int:
        """The byte address of an element, from the storage's base."""
        return self.start + sum(i * stride for i, stride in zip(index, self.strides, strict=True))

    def index_of(self, address: int) -> tuple[int, ...] | None:
        """The index of the element at an address, or None where this tensor does not cover it.

        Exact for tensors whose elements do not overlap, which every written tensor is.
        """
        rest = address - self.start
        index = [0] * len(self.shape)
        for dim in sorted(range(len(self.shape)), key=lambda d: -self.strides[d]):
            stride, size = self.strides[dim], self.shape[dim]
            if stride > 0 and size > 1:
                step = min(rest // stride, size - 1) if rest >= 0 else -1
                if step < 0:
                    return None
                index[dim] = step
                rest -= step * stride
        return tuple(index) if 0 <= rest < self.itemsize and 0 not in self.shape else None


def place_of(tensor: torch.Tensor) -> Place:
    """The place of a tensor."""
    size = tensor.element_size()
    if tensor.layout is not torch.strided or tensor.is_meta:
        return Place(0, 0, tuple(tensor.shape), tuple(0 for _ in tensor.shape), size)
    try:
        storage = tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # functorch wrappers and some subclasses have no storage
        storage = 0
    return Place(
        storage,
        int(tensor.storage_offset()) * size,
        tuple(tensor.shape),
        tuple(stride * size for stride in tensor.stride()),
        size,
    )
