"""Four numbers per tensor, written on the device by fused reductions, without reading them back.

A row of a `Board` is (min, max, sum, 2-norm) as float32. min and max carry NaN and infinities, so a
row says exactly whether a tensor was finite. sum and norm may overflow where the tensor is finite and
are never a verdict.
"""

from __future__ import annotations

import torch

from ..torch_private import sparse_values

_CHUNK = 256
_DIRECT = torch.float32
_STRIDED = torch.strided


class Board:
    """The rows of one step on one device. Memory: 16 bytes a row on the device, in chunks of 256 rows."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.used = 0
        self._chunks: list[torch.Tensor] = []
        self._views: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def write(self, tensor: torch.Tensor) -> int:
        """Write the statistics of a real, strided floating tensor and return its row's number."""
        row = self.used
        if row == len(self._views):
            self._grow()
        low, high, total, norm = self._views[row]
        values = tensor.detach()
        if values.numel() == 0:
            for view in self._views[row]:
                view.zero_()
        elif values.dtype is _DIRECT:
            torch.aminmax(values, out=(low, high))
            torch.sum(values, None, dtype=_DIRECT, out=total)
            torch.linalg.vector_norm(values, out=norm)
        else:
            least, most = torch.aminmax(values)
            low.copy_(least)
            high.copy_(most)
            total.copy_(torch.sum(values, None, dtype=_accumulation(values.dtype)))
            norm.copy_(torch.linalg.vector_norm(values, dtype=_accumulation(values.dtype)))
        self.used = row + 1
        return row

    def rows(self) -> torch.Tensor:
        """The rows written so far as one new (used, 4) float32 tensor on the device."""
        return torch.cat(self._chunks)[: self.used] if len(self._chunks) > 1 else self._chunks[0][: self.used].clone()

    def take(self, count: int) -> torch.Tensor:
        """The first `count` rows as a new (count, 4) tensor; the rows after them move to the front."""
        rows = self.rows()
        for number in range(count, self.used):
            self.row(number - count).copy_(rows[number])
        self.used -= count
        return rows[:count]

    def row(self, number: int) -> torch.Tensor:
        """One row as a (4,) view, to be read only before the board is taken."""
        return self._chunks[number // _CHUNK][number % _CHUNK]

    def _grow(self) -> None:
        with torch.inference_mode(False):  # rows made inside a user's inference_mode could not be written later
            chunk = torch.zeros(_CHUNK, 4, dtype=_DIRECT, device=self.device)
            self._chunks.append(chunk)
            self._views.extend(tuple(row.unbind()) for row in chunk.unbind())  # type: ignore[misc]


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else _DIRECT


def readable(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor as a real, strided floating tensor whose values can be reduced, or None where it has none to read.

    Complex tensors come as their real view, sparse ones as their values, float8 as float32.
    """
    if type(tensor) is not torch.Tensor and type(tensor) is not torch.nn.Parameter:
        return None
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
