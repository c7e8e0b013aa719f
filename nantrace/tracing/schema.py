"""What an op's schema says: its plain name, its operands by name, what it writes, whether it is a mere view."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ..recording.flatten import tensors_in

# ops that hand out memory with whatever is in it: their content says nothing
UNINITIALISED = frozenset(
    {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted", "resize_"}
)

# ops that only carry values along; the first consumer of a bad input is looked for behind them
PLUMBING = frozenset(
    {
        "to_copy", "clone", "copy", "contiguous", "expand", "detach", "lift_fresh", "view", "unsafe_view", "reshape",
        "t", "transpose", "permute", "slice", "select", "unsqueeze", "squeeze", "alias", "index_put", "fill",
        "masked_fill", "constant_pad_nd", "as_strided", "zero", "_to_copy", "split", "unbind", "chunk", "lift",
    }
)  # fmt: skip

# ops whose schema is silent about the running statistics that they write in training
_SILENT_WRITERS = frozenset({"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"})
_RUNNING = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class OpFacts:
    """The fixed facts of one overload."""

    name: str  # "log": the contract's plain name
    aten: str  # "aten::log.default"
    arguments: tuple[str, ...]
    written: tuple[int, ...]  # positions of arguments that it writes
    is_view: bool  # its results only alias an argument
    is_pointwise: bool
    uninitialised: bool
    is_foreach: bool


@lru_cache(maxsize=4096)
def facts_of(func: Any) -> OpFacts:
    """The facts of an `OpOverload`."""
    schema = func._schema
    aliased = [a for a in schema.arguments if a.alias_info is not None]
    raw = schema.name.split("::")[-1]
    written = tuple(
        i
        for i, a in enumerate(schema.arguments)
        if (a.alias_info is not None and a.alias_info.is_write) or (raw in _SILENT_WRITERS and a.name in _RUNNING)
    )
    if torch.Tag.inplace_view in func.tags and raw not in UNINITIALISED:
        written = ()  # `squeeze_`, `t_`: "written" is the shape alone, no element
    return OpFacts(
        name=plain_name(raw),
        aten=f"{schema.name}.{schema.overload_name or 'default'}",
        arguments=tuple(argument.name for argument in schema.arguments),
        written=written,
        is_view=bool(aliased) and not written and any(r.alias_info is not None for r in schema.returns),
        is_pointwise=torch.Tag.pointwise in func.tags,
        uninitialised=raw in UNINITIALISED,
        is_foreach=raw.startswith("_foreach_"),
    )


def plain_name(raw: str) -> str:
    """ATen's name without namespace, overload, outer underscores, `native_` and `_forward` / `_backward`."""
    name = raw.split("::")[-1].split(".")[0].strip("_")
    for prefix in ("native_", "foreach_", "cudnn_", "miopen_", "mkldnn_", "safe_"):
        name = name.removeprefix(prefix)
    for suffix in ("_forward", "_backward_data", "_backward", "_with_indices", "_for_cpu"):
        name = name.removesuffix(suffix)
    return name.strip("_")


def operands(facts: OpFacts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensor operands by their schema names; the items of a list as `name[i]`."""
    for name, value in _named(facts, args, kwargs):
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                if isinstance(item, torch.Tensor):
                    yield f"{name}[{i}]", item


def written_in(facts: OpFacts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that this call writes into. Running statistics are written in training alone."""
    if not facts.written:
        return []
    named = dict(_named(facts, args, kwargs))
    names = [facts.arguments[position] for position in facts.written]
    if not named.get("training", True):
        names = [name for name in names if name not in _RUNNING]
    return tensors_in([named.get(name) for name in names])


def scalars(facts: OpFacts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that are no tensors, by name, as plain values."""
    found: dict[str, Any] = {}
    for name, value in _named(facts, args, kwargs):
        if isinstance(value, torch.Tensor) or value is None:
            continue
        if isinstance(value, (list, tuple)):
            if not any(isinstance(item, torch.Tensor) for item in value):
                found[name] = [_plain(item) for item in value]
        else:
            found[name] = _plain(value)
    return found


def has_literal(arguments: dict[str, Any]) -> bool:
    """Whether a non-finite number stands among an op's own arguments: the program wrote it on purpose."""
    return bool(_literals(arguments))


def is_written(arguments: dict[str, Any], value: float) -> bool:
    """Whether a non-finite result comes of such a number alone. NaN of an infinity (0 * inf) is made by the op."""
    literals = _literals(arguments)
    return any(math.isnan(literal) for literal in literals) or (bool(literals) and not math.isnan(value))


def _literals(arguments: dict[str, Any]) -> list[float]:
    return [
        item
        for value in arguments.values()
        for item in (value if isinstance(value, list) else [value])
        if isinstance(item, float) and not math.isfinite(item)
    ]


def _named(facts: OpFacts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from zip(facts.arguments, args, strict=False)
    yield from kwargs.items()


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value).removeprefix("torch.")
