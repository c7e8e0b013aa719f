"""What a replay must leave as it was: attributes, buffers, train/eval flags, random streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from ..recording.attributes import CONTAINERS
from ..recording.names import ModuleNames
from ..recording.state import random_now, restore_random
from ..recording.tape import EntryCall, version_of
from ..torch_private import own_buffers, own_parameters
from .run import Run

_STANDARD = frozenset(vars(torch.nn.Module()))  # of every module: torch's own tables, which no forward changes
_NO_STATE = (torch.nn.Module, FunctionType, MethodType, ModuleType, type)


@contextmanager
def nothing_lasts(run: Run, names: ModuleNames) -> Iterator[None]:
    """Put back everything that the replay touches, and doubt it where it could not begin from what was there."""
    entries = [event for event in run.events if isinstance(event, EntryCall)]
    modules = list({id(module): module for event in entries for module in event.module.modules()}.values())
    namespaces = [
        (namespace, dict(namespace))
        for module in modules
        for namespace in (vars(module), own_buffers(module), own_parameters(module))
        if isinstance(namespace, dict)  # a scripted module has wrappers there, which nothing can be put into
    ]
    contents = [contents for module in modules for contents in _contents_of(module, names)]
    random = random_now()
    try:
        yield
    finally:
        for namespace, before in namespaces:
            for name in namespace.keys() - before.keys():
                del namespace[name]
            namespace.update(before)
        known = {id(buffer) for event in entries for buffer, _ in event.buffers.values()}
        for name, holder, before, version in contents:
            if _put_back(holder, before, version) and id(holder) not in known:
                run.doubts.append(f"{name} is changed in place by a call: the replay began with what it held after it")
        restore_random(random)


def _contents_of(module: torch.nn.Module, names: ModuleNames) -> Iterator[tuple[str, Any, Any, int]]:
    """What a module's values hold: (name, the holder, a copy of its contents, its version)."""
    path = names.path(module, look_again=False) or type(module).__name__
    values = {name: value for name, value in vars(module).items() if name not in _STANDARD}
    for name, value in (values | dict(module.named_buffers(recurse=False))).items():
        if type(value) in CONTAINERS:
            yield f"{path}.{name}", value, value.copy(), 0
        elif isinstance(value, torch.Tensor) and not is_lazy(value):
            yield f"{path}.{name}", value, value.detach().clone(), version_of(value)
        elif hasattr(value, "__dict__") and not isinstance(value, _NO_STATE):
            yield f"{path}.{name}", vars(value), dict(vars(value)), 0


def _put_back(holder: Any, before: Any, version: int) -> bool:
    """Give a holder its contents back; whether the replay had changed them."""
    if isinstance(holder, torch.Tensor):
        if version_of(holder) == version:
            return False
        with torch.no_grad():
            holder.copy_(before)
        return True
    if _same(holder, before):
        return False
    holder.clear()
    (holder.update if hasattr(holder, "update") else holder.extend)(before)
    return True


def _same(holder: Any, before: Any) -> bool:
    """Whether two containers hold the very same things."""
    if isinstance(holder, dict):
        return holder.keys() == before.keys() and all(holder[key] is before[key] for key in before)
    return len(holder) == len(before) and all(a is b for a, b in zip(holder, before, strict=True))
