"""Turn tensors into plain numbers: exact summaries, single values, first bad elements."""

from __future__ import annotations

import cmath
import math

import torch

from ..model import TensorSummary
from ..recording.statistics import readable
from ..torch_private import is_zero_tensor

Index = tuple[int, ...]


def describe(tensor: torch.Tensor, name: str = "", label: str = "") -> TensorSummary:
    """The exact summary of a tensor (see `TensorSummary`); integer and bool tensors get their range."""
    shape, dtype, device = tuple(tensor.shape), dtype_name(tensor), str(tensor.device)
    values = _real_values(tensor)
    if values is None or values.numel() == 0:
        return TensorSummary(shape, dtype, device, name=name, label=label)
    wide = values.double() if values.numel() <= 1 << 24 else values.float()
    if not values.is_floating_point():
        low, high = float(wide.min()), float(wide.max())
        zero, negative = int((values == 0).sum()), int((wide < 0).sum())
        mean, rms = float(wide.mean()), float((wide * wide).mean().sqrt())
        return TensorSummary(shape, dtype, device, low, high, mean, rms, 0, 0, 0, zero, negative, name, label)
    nan = int(torch.isnan(values).sum())
    pos = int((values == math.inf).sum())
    neg = int((values == -math.inf).sum())
    finite = wide[torch.isfinite(wide)] if nan + pos + neg else wide
    if finite.numel() == 0:
        return TensorSummary(
            shape, dtype, device, nan=nan, pos_inf=pos, neg_inf=neg, zero=0, negative=neg, name=name, label=label
        )
    return TensorSummary(
        shape,
        dtype,
        device,
        float(finite.min()),
        float(finite.max()),
        float(finite.mean()),
        float((finite * finite).mean().sqrt()),
        nan,
        pos,
        neg,
        int((values == 0).sum()),
        int((values < 0).sum()),
        name,
        label,
    )


def brief(tensor: torch.Tensor, name: str = "") -> TensorSummary:
    """The range of a finite tensor in one reduction, or the exact summary of one that is not finite."""
    values = readable(tensor) if not is_zero_tensor(tensor) else None
    shape, dtype, device = tuple(tensor.shape), dtype_name(tensor), str(tensor.device)
    if values is None or values.numel() == 0:
        return TensorSummary(shape, dtype, device, name=name)
    low, high = (float(bound) for bound in torch.aminmax(values.detach()))
    if math.isfinite(low) and math.isfinite(high):
        return TensorSummary(shape, dtype, device, low, high, name=name)
    return describe(tensor, name)


def dtype_name(tensor: torch.Tensor) -> str:
    """ "float32" """
    return str(tensor.dtype).removeprefix("torch.")


def value_at(tensor: torch.Tensor, index: tuple[int, ...]) -> float:
    """One element as a float; of a complex one the bad part, else the magnitude."""
    value = tensor.detach()[index].item()
    if isinstance(value, complex):
        if math.isfinite(value.real) and math.isfinite(value.imag):
            return abs(value)
        return math.nan if value != value else math.inf
    return float(value)


def first_bad_element(
    tensor: torch.Tensor, region: tuple[int | slice, ...] | None = None
) -> tuple[Index, float] | None:
    """The first NaN, else the first infinity, in a region of a tensor: its full index and its value."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.layout is not torch.strided:
        return None
    region = region if region is not None else tuple(slice(None) for _ in tensor.shape)
    single = _single(region)
    if single is not None and len(single) == tensor.dim():
        value = value_at(tensor, single)
        return None if math.isfinite(value) else (single, value)
    part = tensor.detach()[region]
    if part.numel() == 0:
        return None
    if part.dtype.itemsize == 1:
        part = part.float()
    if cmath.isfinite(part.sum().item()):  # one reduction tells most; finite values may still have an infinite sum
        return None
    for test in (torch.isnan, torch.isinf):
        mask = test(part)
        if bool(mask.any()):
            inner = [int(i) for i in mask.nonzero()[0]] if part.dim() else []
            index = _whole_index(region, inner)
            return index, value_at(tensor, index)
    return None


def spread_bad_elements(tensor: torch.Tensor, limit: int) -> list[tuple[Index, float]]:
    """At most `limit` bad elements spread evenly over a tensor, the first NaN (else the first infinity) in front."""
    first = first_bad_element(tensor)
    if first is None:
        return []
    positions = (~torch.isfinite(tensor.detach().reshape(-1))).nonzero().flatten()
    chosen = positions[:: max(1, -(-len(positions) // limit))].tolist()
    indices = [tuple(int(i) for i in torch.unravel_index(torch.tensor(at), tensor.shape)) for at in chosen]
    return [first, *((index, value_at(tensor, index)) for index in indices if index != first[0])]


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal: the same NaN pattern, and everywhere else the same values."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (torch.isnan(one) & torch.isnan(other))).all())


def _single(region: tuple[int | slice, ...]) -> Index | None:
    """The index, where a region is one element."""
    index = tuple(item for item in region if isinstance(item, int))
    return index if len(index) == len(region) else None


def _whole_index(region: tuple[int | slice, ...], inner: list[int]) -> tuple[int, ...]:
    position = iter(inner)
    return tuple(item if isinstance(item, int) else (item.start or 0) + next(position) for item in region)


def _real_values(tensor: torch.Tensor) -> torch.Tensor | None:
    values = readable(tensor)
    if values is not None:
        return values.detach()
    if (
        tensor.layout is torch.strided
        and not tensor.is_meta
        and not tensor.is_floating_point()
        and not tensor.is_complex()
    ):
        return tensor.detach()
    return None
