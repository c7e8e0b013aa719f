"""Plain attributes of the user's own modules as they were before a call: counters, annealed constants, carried states.

A forward that counts its calls or carries a state would run differently when it is played again.
"""

from __future__ import annotations

import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import partial
from types import FunctionType
from typing import Any

import torch

from .assigned import Namespace, Slots
from .flatten import replace_leaves
from .tape import Tape, Token, replace_tokens, tokens_in

CONTAINERS = frozenset((list, dict, set, deque, OrderedDict, defaultdict, Counter))
_MISSING: Any = object()  # the attribute was not there
_LEFT: Any = object()  # a value that cannot be kept: a replay takes what stands there
_SIMPLE = frozenset((int, float, bool, str, complex, bytes, type(None), torch.Size, torch.dtype, torch.device))
_MAX_ITEMS = 512  # of a container
_MAX_BYTES = 1 << 24  # of one call's tensors that are held until the step ends
_COPIED = 1 << 10  # elements of a tensor that is copied at once, for the forward may write into it
_DEPTH = 4

Attribute = tuple[str, Namespace, str, Any]  # the module's path and values, which one, and what `_Keeper` made of it


@dataclass(slots=True)
class Container:
    """A container as it was; `make` builds another one from its items."""

    make: Callable[..., Any]
    keys: list[Any] | None  # of a mapping
    items: list[Any]


def attributes_before(slots: Slots, tape: Tape, copies: Mapping[int, torch.Tensor]) -> list[Attribute]:
    """The attributes as they stand. `copies` holds, by identity, those tensors that a call is known to write into."""
    keep = _Keeper(tape, copies)
    return [
        (path, namespace, name, value if type(value) in _SIMPLE else keep(value))
        for path, namespace, names in slots
        for name in names
        for value in (namespace.get(name, _MISSING),)
    ]


def put_attributes(kept: list[Attribute], stand_in: Callable[[Token], Any]) -> tuple[dict[str, Any], list[str]]:
    """Give the modules the attributes they had, containers made anew, tensors as `stand_in` gives them.

    Returns them by full name, and the names of those that were too large to be kept, which stay as they are.
    """
    remake = _Remaker(stand_in)
    given: dict[str, Any] = {}
    left: list[str] = []
    for path, namespace, name, value in kept:
        found = remake(value)
        full_name = f"{path}.{name}" if path else name
        if found is _MISSING:
            namespace.pop(name, None)
        elif found is _LEFT:
            left.append(full_name)
        else:
            namespace[name] = given[full_name] = found
    return given, left


def tokens_of(kept: list[Attribute]) -> Iterator[Token]:
    """The tensors among the attributes."""
    for _, _, _, value in kept:
        if type(value) not in _SIMPLE:
            yield from _tokens_in(value)


def _tokens_in(value: Any) -> Iterator[Token]:
    if isinstance(value, Container):
        for item in value.items:
            yield from _tokens_in(item)
    else:
        yield from tokens_in(value)


class _Keeper:
    """Keeps values without a hold on what the program may let go of: no graph, no large tensor, no foreign object."""

    def __init__(self, tape: Tape, copies: Mapping[int, torch.Tensor]) -> None:
        self._tape = tape
        self._copies = copies
        self._kept: dict[int, Any] = {}  # one list that two modules share stays one
        self._bytes_left = _MAX_BYTES

    def __call__(self, value: Any, depth: int = _DEPTH) -> Any:
        if value is _MISSING or type(value) in _SIMPLE or isinstance(value, (torch.nn.Module, FunctionType, type)):
            return value
        kept = self._kept.get(id(value))
        if kept is None:
            kept = self._kept[id(value)] = self._keep(value, depth)
        return kept

    def _keep(self, value: Any, depth: int) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if type(value) in CONTAINERS or isinstance(value, tuple):
            return self._container(value, depth)
        if isinstance(value, Mapping) or is_dataclass(value):
            return self._record(value)
        try:
            return weakref.ref(value)
        except TypeError:
            return _LEFT

    def _record(self, value: Any) -> Any:
        tensors: list[Any] = []

        def keep(tensor: torch.Tensor) -> Any:
            tensors.append(self._tensor(tensor))
            return tensors[-1]

        twin = replace_leaves(value, torch.Tensor, keep)
        return _LEFT if any(tensor is _LEFT for tensor in tensors) else twin

    def _container(self, value: Any, depth: int) -> Any:
        if len(value) > _MAX_ITEMS or depth == 0:
            return _LEFT
        keys = list(value) if isinstance(value, dict) else None
        values = value.values() if isinstance(value, dict) else value
        kept = [item if type(item) in _SIMPLE else self(item, depth - 1) for item in values]
        return _LEFT if any(item is _LEFT for item in kept) else Container(_maker(value), keys, kept)

    def _tensor(self, tensor: torch.Tensor) -> Any:
        copied = self._copies.get(id(tensor))
        if copied is not None:
            return copied
        token = self._tape.made_here(tensor)
        if token is not None:
            return token
        self._bytes_left -= tensor.numel() * tensor.element_size()
        if self._bytes_left < 0:
            return _LEFT
        kept = tensor.detach()  # without its graph, which belongs to an earlier step
        return kept.clone() if tensor.numel() <= _COPIED else kept


class _Remaker:
    """Makes the values again that a `_Keeper` has kept."""

    def __init__(self, stand_in: Callable[[Token], Any]) -> None:
        self._stand_in = stand_in
        self._made: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        if value is _MISSING or value is _LEFT or type(value) in _SIMPLE:
            return value
        if id(value) not in self._made:
            self._made[id(value)] = self._make(value)
        return self._made[id(value)]

    def _make(self, value: Any) -> Any:
        if isinstance(value, Container):
            items = [self(item) for item in value.items]
            if value.keys is None:
                return value.make(items)
            found = value.make()
            found.update(zip(value.keys, items, strict=True))
            return found
        if isinstance(value, weakref.ref):
            found = value()
            return _LEFT if found is None else found
        if isinstance(value, torch.Tensor):
            return value.clone()
        return replace_tokens(value, self._stand_in)


def _maker(value: Any) -> Callable[..., Any]:
    if isinstance(value, deque):
        return partial(deque, maxlen=value.maxlen)
    if isinstance(value, defaultdict):
        return partial(defaultdict, value.default_factory)
    make: Callable[..., Any] = type(value)._make if hasattr(value, "_fields") else type(value)
    return make
