"""Find, replace and name the tensors inside whatever a module takes and returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

_DEPTH = 8  # containers nested deeper than this are left alone: a cycle must not hang training


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in a value, in a fixed order: through tuples, lists, mappings and dataclasses."""
    if isinstance(value, torch.Tensor):
        return [value]
    found: list[torch.Tensor] = []
    _collect(value, found, _DEPTH)
    return found


def operands_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors among the arguments of an ATen op: themselves or in lists, never deeper."""
    found: list[torch.Tensor] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(item for item in value if isinstance(item, torch.Tensor))
    return found


def _collect(value: Any, found: list[torch.Tensor], depth: int) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif value is None or depth == 0 or isinstance(value, (int, float, str, torch.dtype)):
        return
    elif isinstance(value, (tuple, list)):
        for item in value:
            _collect(item, found, depth - 1)
    elif isinstance(value, Mapping):
        for item in list(value.values()):
            _collect(item, found, depth - 1)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            _collect(getattr(value, field.name, None), found, depth - 1)


def named_leaves(value: Any, leaf: type, name: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    """The instances of `leaf` in a value, each with a name that a user would write: `batch['ids']`, `args[0]`."""
    if isinstance(value, leaf):
        yield name, value
    elif depth == 0:
        return
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            yield from named_leaves(item, leaf, f"{name}[{i}]", depth - 1)
    elif isinstance(value, Mapping):
        for key, item in list(value.items()):
            yield from named_leaves(item, leaf, f"{name}[{key!r}]", depth - 1)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from named_leaves(getattr(value, field.name, None), leaf, f"{name}.{field.name}", depth - 1)


def replace_tensors(value: Any, replace: Callable[[torch.Tensor], Any], depth: int = _DEPTH) -> Any:
    """A copy of the containers with every tensor replaced; everything else is shared."""
    return replace_leaves(value, torch.Tensor, replace, depth)


def replace_operands(args: tuple[Any, ...], replace: Callable[[torch.Tensor], Any]) -> tuple[Any, ...]:
    """The positional arguments of an ATen op with every tensor replaced."""
    return tuple(
        [
            replace(value)
            if isinstance(value, torch.Tensor)
            else replace_tensors(value, replace)
            if isinstance(value, (list, tuple))
            else value
            for value in args
        ]
    )


def replace_leaves(value: Any, leaf: type, replace: Callable[[Any], Any], depth: int = _DEPTH) -> Any:
    """A copy of the containers with every instance of `leaf` replaced; everything else is shared."""
    if isinstance(value, leaf):
        return replace(value)
    if depth == 0 or value is None or isinstance(value, (int, float, str, bool)):
        return value
    if isinstance(value, (tuple, list)):
        items = [replace_leaves(item, leaf, replace, depth - 1) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*items)
        try:
            return type(value)(items)
        except TypeError:
            return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        return _replace_in_mapping(value, leaf, replace, depth)
    if is_dataclass(value) and not isinstance(value, type):
        return _replace_in_dataclass(value, leaf, replace, depth)
    return value


def _replace_in_mapping(value: Mapping[Any, Any], leaf: type, replace: Callable[[Any], Any], depth: int) -> Any:
    items = {key: replace_leaves(item, leaf, replace, depth - 1) for key, item in value.items()}
    if all(items[key] is value[key] for key in items):
        return value
    if type(value) is dict:
        return items
    twin = copy.copy(value)  # OrderedDict, BatchEncoding, ModelOutput: keep the type, swap the items
    for key, item in items.items():
        twin[key] = item  # type: ignore[index]
    return twin


def _replace_in_dataclass(value: Any, leaf: type, replace: Callable[[Any], Any], depth: int) -> Any:
    new = {f.name: replace_leaves(getattr(value, f.name, None), leaf, replace, depth - 1) for f in fields(value)}
    if all(new[name] is getattr(value, name, None) for name in new):
        return value
    twin = copy.copy(value)
    for name, item in new.items():
        object.__setattr__(twin, name, item)
    return twin
