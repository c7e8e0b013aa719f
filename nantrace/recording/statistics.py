"""Four numbers per tensor, written on the device by fused reductions, without reading them back.

A row of a `Board` is (min, max, sum, 2-norm) as float32. min and max carry NaN and infinities, so a
row says exactly whether a tensor was finite. sum and norm may overflow where the tensor is finite and
are never a verdict.

On CPU a tensor is read by the C kernel where it is there, in one pass. Elsewhere torch ops do it: a large tensor is
reduced at once; a small one costs more in calls than in reading, so it is copied into a staging block of its shape,
and the block is reduced when it is full or its rows are wanted. Either way,
writing to the tensor later cannot change what was recorded.
"""

from __future__ import annotations

import torch
from torch.nn.parameter import is_lazy

from ..torch_private import as_plain, sparse_values
from . import kernel

_DIRECT = torch.float32
_STRIDED = torch.strided
_STAGED = 8192  # elements: larger tensors are reduced directly
_BLOCK = 32  # tensors of one shape that are reduced together
_STAGING_BYTES = 8 << 20  # of staging blocks in all; past it small tensors are reduced directly too

_Views = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class _Block:
    """Copies of small tensors of one shape and dtype, and the rows they belong to."""

    __slots__ = ("rows", "slots", "tensor")

    def __init__(self, like: torch.Tensor) -> None:
        self.tensor = torch.empty((_BLOCK, *like.shape), dtype=like.dtype, device=like.device)
        self.slots = self.tensor.unbind()
        self.rows: list[int] = []


class Board:
    """The rows of one step on one device: 16 bytes a row, and at most 8 MiB of staging blocks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.used = 0
        self._rows = torch.zeros(0, 4, dtype=_DIRECT, device=device)
        self._size = 0
        self._address = 0
        self._views: dict[int, _Views] = {}
        self._blocks: dict[tuple[torch.Size, torch.dtype], _Block] = {}
        self._staging = 0
        fast = kernel.loaded() if device.type == "cpu" else None
        self._kernel: dict[torch.dtype, kernel.Reduce] = fast.reduce if fast is not None else {}

    def write(self, tensor: torch.Tensor) -> int:
        """Write the statistics of a real, strided floating tensor and return its row's number."""
        number = self.used
        if number == self._size:
            self._grow()
        reduce = self._kernel.get(tensor.dtype)
        # a negative view (`is_neg`) holds the opposite of what its memory holds
        if reduce is not None and (tensor.is_contiguous() or kernel.in_memory(tensor)) and not tensor.is_neg():
            address = tensor.data_ptr()
            if address:  # else it has no elements, or is one of the zeros without memory that forward AD makes
                reduce(address, tensor.numel(), self._address + 16 * number)
                self.used = number + 1
                return number
        values = tensor.detach()
        if values.numel() <= _STAGED:
            block = self._blocks.get((values.shape, values.dtype)) or self._new_block(values)
            if block is not None:
                block.slots[len(block.rows)].copy_(values)
                block.rows.append(number)
                if len(block.rows) == _BLOCK:
                    self._reduce(block)
                self.used = number + 1
                return number
        self._write_now(values, number)
        self.used = number + 1
        return number

    def rows(self) -> torch.Tensor:
        """The rows written so far as one new (used, 4) float32 tensor on the device."""
        self._reduce_all()
        return self._rows[: self.used].clone()

    def take(self, count: int) -> torch.Tensor:
        """The first `count` rows as a new (count, 4) tensor; the rows after them move to the front."""
        rows = self.rows()
        if count < self.used:
            self._rows[: self.used - count] = rows[count:]
        self.used -= count
        return rows[:count]

    def row(self, number: int) -> torch.Tensor:
        """One row as a (4,) view, to be read only before the board is taken."""
        self._reduce_all()
        return self._rows[number]

    def _write_now(self, values: torch.Tensor, number: int) -> None:
        views = self._views.get(number) or self._views_of(number)
        low, high, total, norm = views
        if values.numel() == 0:
            for view in views:
                view.zero_()
        elif values.dtype is _DIRECT:
            torch.aminmax(values, out=(low, high))
            torch.sum(values, None, dtype=_DIRECT, out=total)
            torch.linalg.vector_norm(values, out=norm)
        else:
            least, most = torch.aminmax(values)
            low.copy_(least)
            high.copy_(most)
            total.copy_(torch.sum(values, None, dtype=accumulation(values.dtype)))
            norm.copy_(torch.linalg.vector_norm(values, dtype=accumulation(values.dtype)))

    def _new_block(self, like: torch.Tensor) -> _Block | None:
        size = _BLOCK * like.numel() * like.element_size()
        if like.numel() == 0 or self._staging + size > _STAGING_BYTES:
            return None
        self._staging += size
        with torch.inference_mode(False):
            block = self._blocks[like.shape, like.dtype] = _Block(like)
        return block

    def _reduce_all(self) -> None:
        for block in self._blocks.values():
            if block.rows:
                self._reduce(block)

    def _reduce(self, block: _Block) -> None:
        """Reduce the copies of a block, each to its own row."""
        count = len(block.rows)
        values = block.tensor[:count].reshape(count, -1)
        wide = accumulation(values.dtype)
        found = (
            values.amin(1),
            values.amax(1),
            torch.sum(values, 1, dtype=wide),
            torch.linalg.vector_norm(values, dim=1, dtype=wide),
        )
        with torch.inference_mode(False):
            rows = torch.tensor(block.rows, device=self.device)
        self._rows.index_copy_(0, rows, torch.stack([column.to(_DIRECT) for column in found], 1))
        block.rows.clear()

    def _grow(self) -> None:
        size = max(64, 2 * self._size)
        with torch.inference_mode(False):  # rows made inside a user's inference_mode could not be written later
            rows = torch.zeros(size, 4, dtype=_DIRECT, device=self.device)
            rows[: self.used] = self._rows[: self.used]
        self._rows = rows
        self._address = rows.data_ptr()
        self._size = size
        self._views.clear()

    def _views_of(self, number: int) -> _Views:
        """The four numbers of a row as tensors to write into, kept for the steps to come."""
        with torch.inference_mode(False):
            low, high, total, norm = self._rows[number].unbind()
        self._views[number] = low, high, total, norm
        return low, high, total, norm


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which torch ops sum elements of a real floating dtype."""
    return torch.float64 if dtype is torch.float64 else _DIRECT


def readable(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor as a real, strided floating tensor whose values can be reduced, or None where it has none to read.

    Complex tensors come as their real view, sparse ones as their values, float8 as float32.
    """
    if type(tensor) is not torch.Tensor and type(tensor) is not torch.nn.Parameter:
        plain = None if is_lazy(tensor) else as_plain(tensor)
        return readable(plain) if plain is not None else None
    if tensor.dtype is _DIRECT and tensor.layout is _STRIDED and not tensor.is_meta:
        return tensor
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return None
    if tensor.layout is not torch.strided:
        return _values_of_sparse(tensor)
    if tensor.is_complex():
        return torch.view_as_real(tensor.detach().resolve_conj())
    if tensor.element_size() == 1:
        return tensor.detach().float()
    return tensor


def _values_of_sparse(tensor: torch.Tensor) -> torch.Tensor | None:
    if tensor.layout is torch.sparse_coo:
        return sparse_values(tensor)
    if tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        return tensor.detach().values()
    return None


def is_finite(tensor: torch.Tensor) -> bool:
    """The exact verdict on one tensor: one reduction and two reads. True where there is nothing to read."""
    values = readable(tensor)
    if values is None or values.numel() == 0:
        return True
    low, high = torch.aminmax(values.detach())
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))
