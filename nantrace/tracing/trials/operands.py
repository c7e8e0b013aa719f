"""One operand, altered: what each act of a change does to a tensor."""

from __future__ import annotations

import math

import torch

from ...model import Change


class CannotTry(Exception):
    """The change cannot be made here; the message says why, in half a sentence."""


def altered(change: Change, tensor: torch.Tensor) -> torch.Tensor:
    """The operand as the remedy's code would make it. Any shape; the dtype stays."""
    values = change.values
    if not (tensor.is_floating_point() or change.act == "clamp" or tensor.dtype is torch.bool):
        raise CannotTry(f"{change.act} needs a floating-point operand, not {tensor.dtype}")
    match change.act:
        case "clamp":
            return _clamped(tensor, *values)
        case "add":
            return tensor + values[0]
        case "scale":
            return tensor * values[0]
        case "tanh":
            return values[0] * torch.tanh(tensor / values[0])
        case "fill":
            return torch.where((tensor > values[0]) & (tensor < values[1]), tensor, values[2])
        case "nonzero":
            return torch.where(tensor == 0, values[0], tensor)
        case "finite":
            return torch.where(torch.isfinite(tensor), tensor, values[0])
        case "subtract-max":
            return tensor - tensor.amax(dim=int(values[0]), keepdim=True)
        case "unmask":
            return _unmasked(tensor, int(values[0]))
        case "jitter":
            size = tensor.shape[-1]
            return tensor + values[0] * torch.eye(size, dtype=tensor.dtype, device=tensor.device)
        case "spread":
            ramp = torch.ones(tensor.shape[-1], dtype=tensor.dtype, device=tensor.device).cumsum(0)
            return tensor + values[0] * ramp.diag()
        case _:
            raise CannotTry(f"nantrace has no way to try {change.act!r}")


def _clamped(tensor: torch.Tensor, low: float, high: float) -> torch.Tensor:
    bounds = [None if math.isinf(bound) else bound for bound in (low, high)]
    if not tensor.is_floating_point():
        bounds = [None if bound is None else int(bound) for bound in bounds]
    return tensor.clamp(bounds[0], bounds[1])


def _unmasked(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """A boolean mask is read as the majority of torch's functions do: a slice of one value alone masks everything."""
    if tensor.dtype is torch.bool:
        whole = tensor.all(dim=dim, keepdim=True) | (~tensor).all(dim=dim, keepdim=True)
        first = torch.zeros_like(tensor)
        first.select(dim, 0).fill_(True)
        return torch.where(whole & first, ~tensor, tensor)
    whole = (tensor == -math.inf).all(dim=dim, keepdim=True)
    return tensor.masked_fill(whole, 0.0)
