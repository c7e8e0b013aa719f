"""Two ops in place of which torch has one that keeps its value: the logarithm of a softmax, a sigmoid, a sum of exp."""

from __future__ import annotations

from typing import Any

import torch

from ...recording.flatten import tensors_in
from .operands import CannotTry

_MAKERS = ("softmax", "sigmoid", "exp", "sum", "rsub", "sub", "__rsub__", "__sub__", "add", "__add__", "__radd__")
# The logarithm may be taken of some of the elements, or of another shape of them.
_MOVERS = frozenset(
    {
        "__getitem__", "index", "gather", "index_select", "select", "slice", "take_along_dim", "view", "reshape",
        "flatten", "squeeze", "unsqueeze", "transpose", "permute", "t", "contiguous", "clone", "masked_select",
        "unsafe_view",
    }
)  # fmt: skip


class Fusing:
    """Remembers what the ops before a logarithm were given, for as long as the trial runs."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[str, Any, Any, torch.Tensor]] = {}  # by the result, which is held here
        self._moved: dict[int, tuple[Any, Any, Any, torch.Tensor]] = {}

    def note(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """A function has run; those that may stand before a logarithm are remembered with their operands."""
        plain = name.strip("_") if name.startswith("_soft") else name
        if not isinstance(result, torch.Tensor):
            return
        if plain in _MAKERS:
            self._made[id(result)] = (plain, args, dict(kwargs), result)
        elif plain in _MOVERS and args and isinstance(args[0], torch.Tensor):
            self._moved[id(result)] = (func, args, dict(kwargs), result)

    def fused(self, name: str, operand: torch.Tensor) -> torch.Tensor:
        """The logarithm of what made the operand, in one op; of an operand that was moved, the logarithm moved."""
        moved = self._moved.get(id(operand))
        if moved is not None:
            func, args, kwargs, _ = moved
            result: torch.Tensor = func(self.fused(name, args[0]), *args[1:], **kwargs)
            return result
        match name:
            case "log_softmax":
                args, kwargs = self._maker(operand, "softmax")
                return torch.log_softmax(args[0], _dim(args, kwargs))
            case "logsigmoid":
                return self._logsigmoid(operand)
            case "logsumexp":
                args, kwargs = self._maker(operand, "sum")
                inner, _ = self._maker(args[0], "exp")
                dims = _dim(args, kwargs)
                dims = tuple(range(inner[0].dim())) if dims is None else dims
                return torch.logsumexp(inner[0], dims, keepdim=operand.dim() == inner[0].dim())
            case "softplus":
                return torch.nn.functional.softplus(self._exponent_under_one_more(operand))
            case "sigmoid":
                return torch.sigmoid(-self._exponent_under_one_more(operand))
            case _:
                raise CannotTry(f"nantrace has no way to try {name!r}")

    def _exponent_under_one_more(self, operand: torch.Tensor) -> torch.Tensor:
        """x, where the operand is 1 + exp(x), or exp(x) itself as log1p takes it."""
        try:
            args, kwargs = self._maker(operand, "exp")
        except CannotTry:
            args, kwargs = self._maker(operand, "add", "__add__", "__radd__")
            numbers = [value for value in (*args, *kwargs.values()) if isinstance(value, (int, float))]
            if numbers != [1]:
                raise CannotTry("the operand is not 1 + exp(x)") from None
            args, _ = self._maker(tensors_in((args, kwargs))[0], "exp")
        exponent: torch.Tensor = args[0]
        return exponent

    def _logsigmoid(self, operand: torch.Tensor) -> torch.Tensor:
        try:
            args, _ = self._maker(operand, "sigmoid")
            return torch.nn.functional.logsigmoid(args[0])
        except CannotTry:
            args, kwargs = self._maker(operand, "rsub", "sub", "__rsub__", "__sub__")
        sides = tensors_in((args, kwargs))
        numbers = [value for value in (*args, *kwargs.values()) if isinstance(value, (int, float))]
        inner, _ = self._maker(sides[-1], "sigmoid")
        if 1 not in numbers and not any(bool((side == 1).all()) for side in sides[:-1]):
            raise CannotTry("the operand is not 1 - sigmoid(x)")
        return torch.nn.functional.logsigmoid(-inner[0])

    def _maker(self, operand: torch.Tensor, *names: str) -> tuple[Any, Any]:
        made = self._made.get(id(operand))
        if made is None or made[0] not in names:
            raise CannotTry(f"the operand was not made by {names[0]} directly")
        return made[1], made[2]


def _dim(args: Any, kwargs: Any) -> Any:
    given = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return list(given) if isinstance(given, (list, tuple)) else given
