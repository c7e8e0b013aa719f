"""One function call, changed: another operand, another argument, another dtype, or nothing in place of its result."""

from __future__ import annotations

from typing import Any

import torch

from ...model import Change
from ...recording.flatten import replace_tensors, tensors_in
from ...recording.statistics import is_finite
from .fusing import Fusing
from .operands import CannotTry, altered
from .site import Site

# Functions that take their operands in another order than the op that they run.
_ORDERS = {("linear", "addmm"): ("mat1", "mat2", "self"), ("linear", "mm"): ("self", "mat2")}
# Functions that compute their op's operand themselves, from the argument at this place.
_MASKS = ("scaled_dot_product_attention", "multi_head_attention_forward")


def call_changed(change: Change, site: Site, fusing: Fusing, func: Any, args: Any, kwargs: Any) -> Any:
    """The function's result with the change in it. Raises `CannotTry` where it cannot be made."""
    match change.act:
        case "argument":
            return _with_number(change, site, func, args, kwargs)
        case "dtype":
            return _in_dtype(change.name, func, args, kwargs)
        case "dtype-back":
            return _in_dtype_and_back(change.name, func, args, kwargs)
        case "zero":
            return _without_nothing(func, args, kwargs)
        case "fused":
            return fusing.fused(change.name, tensors_in((args, kwargs))[0])
        case "select" | "agree":
            return _without_missing(change, site, func, args, kwargs)
        case _:
            return _with_operand(change, site, func, args, kwargs)


def _with_operand(change: Change, site: Site, func: Any, args: Any, kwargs: Any) -> Any:
    if change.operand == "out":
        result = func(*args, **kwargs)
        if _writes(func):
            return result.copy_(altered(change, result.clone()))
        return replace_tensors(result, lambda tensor: altered(change, tensor))
    if change.operand == "":
        if _writes(func):
            raise CannotTry("an op in place has no operands of its own")
        return func(*replace_tensors(args, lambda tensor: altered(change, tensor)), **kwargs)
    given = tensors_in((args, kwargs))
    position = _position(change.operand, site, func, given, args, kwargs)
    in_place = position == 0 and _writes(func)
    # A copy of what will be written: autograd keeps the operand of the change, and refuses to see it written.
    operand = given[position].clone() if in_place else given[position]
    operand = _where_zero(change, operand, given, position) if change.act == "where-zero" else altered(change, operand)
    count = iter(range(len(given)))
    new_args, new_kwargs = replace_tensors(
        (args, kwargs), lambda tensor: operand if next(count) == position else tensor
    )
    result = func(*new_args, **new_kwargs)
    return given[0].copy_(result) if in_place else result


def _where_zero(change: Change, operand: torch.Tensor, given: list[torch.Tensor], position: int) -> torch.Tensor:
    """The operand, filled where the op's other operand is 0."""
    if len(given) != 2:
        raise CannotTry("the op has no other operand")
    return torch.where(given[1 - position] == 0, change.values[0], operand)


def _without_missing(change: Change, site: Site, func: Any, args: Any, kwargs: Any) -> Any:
    """An elementwise op of two tensors without the elements at which one is missing, or with none of them missing."""
    given = tensors_in((args, kwargs))
    position = _position(change.operand, site, func, given, args, kwargs)
    if len(given) != 2 or given[0].shape != given[1].shape:
        raise CannotTry("the operands are not two of one shape")
    keep = torch.isfinite(given[position])
    other = given[1 - position].detach()
    count = iter(range(2))

    def mended(tensor: torch.Tensor) -> torch.Tensor:
        at = next(count)
        if change.act == "select":
            return tensor[keep]
        return torch.where(keep, tensor, other) if at == position else tensor

    new_args, new_kwargs = replace_tensors((args, kwargs), mended)
    return func(*new_args, **new_kwargs)


def _position(operand: str, site: Site, func: Any, given: list[torch.Tensor], args: Any, kwargs: Any) -> int:
    """Which of the call's tensors is the op's operand of that name."""
    schema = getattr(func, "_schema", None)
    if schema is not None:  # an op of the loss, by its own argument names
        named = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | dict(kwargs)
        wanted = named.get(operand)
        if isinstance(wanted, torch.Tensor):
            return next(i for i, tensor in enumerate(given) if tensor is wanted)
    name = getattr(func, "__name__", "")
    order = _ORDERS.get((name, site.facts.name), site.operands)
    if operand in order and len(order) == len(given):
        return order.index(operand)
    if operand in order and len(given) == 1 and len(order) <= 1:
        return 0
    if operand in order and order.index(operand) < len(given) and order[0] in ("self", "input"):
        return order.index(operand)
    raise CannotTry(f"{name} takes its operands otherwise than {site.facts.name}: {operand!r} was not found among them")


def _writes(func: Any) -> bool:
    """Whether the function writes into its first operand."""
    schema = getattr(func, "_schema", None)
    if schema is not None:
        return bool(schema.is_mutable)
    name = str(getattr(func, "__name__", ""))
    return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


def _with_number(change: Change, site: Site, func: Any, args: Any, kwargs: Any) -> Any:
    """The call with the number of that name exchanged. A positional one is known by its value.

    A call of the same line with another number (a layer of another eps) stays as it is.
    """
    old, new = site.arguments.get(change.operand), change.values[0]
    if change.operand in kwargs and kwargs[change.operand] == old:
        return func(*args, **{**kwargs, change.operand: new})
    same = [i for i, value in enumerate(args) if not isinstance(value, bool | torch.Tensor) and value == old]
    if len(same) > 1:
        raise CannotTry(f"which argument of the call is {change.operand} is not clear")
    return func(*(new if i in same else value for i, value in enumerate(args)), **kwargs)


def _in_dtype(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    dtype = getattr(torch, name)

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    devices = {tensor.device.type for tensor in tensors_in((args, kwargs))}
    if _writes(func):
        raise CannotTry("an op in place keeps the dtype of its tensor")
    args, kwargs = replace_tensors((args, kwargs), cast)
    kwargs = {key: dtype if isinstance(value, torch.dtype) else value for key, value in kwargs.items()}
    args = tuple(dtype if isinstance(value, torch.dtype) else value for value in args)
    with torch.autocast(devices.pop() if len(devices) == 1 else "cpu", enabled=False):
        return func(*args, **kwargs)


def _in_dtype_and_back(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """The result in the dtype of the operands again, where what follows takes no other."""
    given = [tensor.dtype for tensor in tensors_in((args, kwargs)) if tensor.is_floating_point()]
    result = _in_dtype(name, func, args, kwargs)
    return replace_tensors(result, lambda tensor: tensor.to(given[0]) if tensor.is_floating_point() else tensor)


def _without_nothing(func: Any, args: Any, kwargs: Any) -> Any:
    """The result, or zeros in its place where it is not finite: as if the empty case had been left out."""
    result = func(*args, **kwargs)
    if all(is_finite(tensor) for tensor in tensors_in(result)):
        return result
    given = [t for t in tensors_in((args, kwargs)) if t.is_floating_point() and t.requires_grad]
    # Nothing is added but the tie to the graph, without which backward would refuse the loss.
    tie = sum((torch.where(torch.zeros_like(t, dtype=torch.bool), t, 0.0).sum() for t in given), torch.zeros(()))

    def left_out(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        kept = torch.where(torch.isfinite(tensor), tensor.detach(), 0.0)
        if tensor.numel() > 1 and bool(torch.isfinite(tensor).any()):
            kept = torch.where(torch.isfinite(tensor), tensor, 0.0)
        return kept + tie.to(tensor.dtype)

    return replace_tensors(result, left_out)
