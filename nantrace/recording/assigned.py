"""Which plain attributes a module's forward may change, read from its code once per class.

What no method but `__init__` assigns, and no method that changes a container mentions, costs nothing later.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch

from ..torch_private import own_buffers, own_parameters

Namespace = dict[str, Any]
Slots = list[tuple[str, Namespace, tuple[str, ...]]]  # a module's path, its own dictionary of values, names in it

_MUTATORS = frozenset(("append", "appendleft", "extend", "extendleft", "insert", "pop", "popleft", "popitem", "remove"))
_MUTATORS |= {"discard", "add", "clear", "update", "setdefault"}
_ASSIGNMENTS = frozenset(("STORE_ATTR", "DELETE_ATTR"))
_ITEM_ASSIGNMENTS = frozenset(("STORE_SUBSCR", "DELETE_SUBSCR"))
_TORCHS_OWN = frozenset(vars(torch.nn.Module()))  # `training`, the hook tables: followed otherwise, or never changed
_SWITCHES = frozenset((int, float, bool, str, type(None)))
_WRAPPED = 3  # decorators around a method that are looked through


def slots_of(modules: list[tuple[str, torch.nn.Module]], roots: tuple[torch.nn.Module, ...]) -> Slots:
    """The attributes of these modules that a forward may change; of the roots every switch, which loops set."""
    found: Slots = []
    for path, module in modules:
        kind: Any = type(module)
        if comes_with_torch(kind):
            continue
        own, buffers = vars(module), own_buffers(module)
        patched = [value for value in own.values() if isinstance(value, (FunctionType, MethodType))]
        changed = changed_in(kind).union(*(_changes_of(code) for value in patched for code in _codes_of(value)))
        names = changed.assigned | changed.touched
        if any(module is root for root in roots):
            names |= {name for name, value in own.items() if type(value) in _SWITCHES}
        registered = buffers.keys() | own_parameters(module).keys() | dict(module.named_children()).keys()
        found.append((path, own, tuple(sorted(names - registered - _TORCHS_OWN))))
        found.append((path, buffers, tuple(sorted(changed.assigned & buffers.keys()))))  # writes into them are versions
    return [slot for slot in found if slot[2]]


def plain_tensors_of(modules: list[tuple[str, torch.nn.Module]]) -> Slots:
    """The tensors that the user's own modules hold without having registered them as buffers."""
    own = ((path, vars(module)) for path, module in modules if not comes_with_torch(type(module)))
    found = [(path, values, tuple(n for n, v in values.items() if type(v) is torch.Tensor)) for path, values in own]
    return [slot for slot in found if slot[2]]


def comes_with_torch(kind: type) -> bool:
    """Whether a class is torch's own: such modules keep what changes in buffers."""
    return kind.__module__.partition(".")[0] == "torch"


@dataclass(frozen=True, slots=True)
class Changes:
    """Attribute names that code assigns, and names in code that changes some container in place."""

    assigned: frozenset[str] = frozenset()
    touched: frozenset[str] = frozenset()

    def union(self, *others: Changes) -> Changes:
        """These and those of others."""
        return Changes(
            self.assigned.union(*(other.assigned for other in others)),
            self.touched.union(*(other.touched for other in others)),
        )


@lru_cache(maxsize=4096)
def changed_in(kind: Any) -> Changes:
    """What the methods of a class, `__init__` left out, may change."""
    members = (
        member
        for owner in kind.__mro__
        if owner is not object and not comes_with_torch(owner)
        for name, member in vars(owner).items()
        if name != "__init__"
    )
    return Changes().union(*(_changes_of(code) for member in members for code in _codes_of(member)))


def _codes_of(member: Any, depth: int = _WRAPPED) -> Iterator[CodeType]:
    """The code of a function, and of those that a decorator has wrapped in it."""
    if isinstance(member, property):
        yield from _codes_of(member.fget, depth)
        yield from _codes_of(member.fset, depth)
        return
    function = getattr(member, "__func__", member)
    if not isinstance(function, FunctionType):
        return
    yield function.__code__
    for cell in (function.__closure__ or ()) if depth else ():
        try:
            inner = cell.cell_contents
        except ValueError:  # a cell that is still empty
            continue
        yield from _codes_of(inner, depth - 1)


@lru_cache(maxsize=16384)
def _changes_of(code: CodeType) -> Changes:
    instructions = list(dis.get_instructions(code)) if _may_change(code) else []
    assigned = frozenset(str(i.argval) for i in instructions if i.opname in _ASSIGNMENTS)
    mutates = bool(_MUTATORS & set(code.co_names)) or any(i.opname in _ITEM_ASSIGNMENTS for i in instructions)
    inner = (_changes_of(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return Changes(assigned, frozenset(code.co_names if mutates else ())).union(*inner)


_CHANGING = frozenset(dis.opmap[name] for name in _ASSIGNMENTS | _ITEM_ASSIGNMENTS)


def _may_change(code: CodeType) -> bool:
    """A quick look at the bare opcodes: few methods assign anything but local names."""
    return not _CHANGING.isdisjoint(code.co_code[::2])
