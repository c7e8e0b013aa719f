"""The function mode of a trial: finds the calls of the changed line in the modules' code, and changes them.

torch's own Python functions (F.softmax, F.cross_entropy) hand over to a mode before they begin. They are run here by
a twin that does not, so that the functions they call in turn are seen as well: the innermost one is the op's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from types import FunctionType
from typing import Any

from torch.overrides import TorchFunctionMode

from ...model import Change
from ...recording.frames import is_torch, raw_stack
from ...recording.tape import GlueOp
from ...torch_private import inside_functorch
from ..schema import facts_of
from .calls import call_changed
from .fusing import Fusing
from .site import Site, caller, calls_from

_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


class Changer(TorchFunctionMode):
    """Changes every call at a site, in module code by its stack, in glue by its op and line."""

    def __init__(self, change: Change, site: Site, module_now: Callable[[], str | None]) -> None:
        super().__init__()
        self.changed = 0  # calls
        self._change = change
        self._site = site
        self._module_now = module_now
        self._fusing = Fusing()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if inside_functorch() or hasattr(func, "_schema"):
            return func(*args, **kwargs)
        twin = _twin_of(func) if isinstance(func, FunctionType) else None
        # Called from within itself, it is what it calls as its base class's: the function in C of the same name.
        if twin is not None and sys._getframe(1).f_code is not twin.__code__:
            with self:
                return twin(*args, **kwargs)
        if not self._site.glue and self._is_meant():
            return self._call(func, args, kwargs)
        result = func(*args, **kwargs)
        self._note(func, getattr(func, "__name__", ""), args, kwargs, result)
        return result

    def glue(self, event: GlueOp, args: Any, kwargs: Any) -> Any:
        """An op of the loss, played from the tape."""
        site = self._site
        facts = facts_of(event.func)
        if site.glue and facts is site.facts and calls_from(site, event.stack):
            return self._call(event.func, args, kwargs)
        result = event.func(*args, **kwargs)
        self._note(event.func, facts.name, args, kwargs, result)
        return result

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.changed += 1
        return call_changed(self._change, self._site, self._fusing, func, args, kwargs)

    def _note(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        if self._change.act == "fused":
            self._fusing.note(func, name, args, kwargs, result)

    def _is_meant(self) -> bool:
        frame = sys._getframe(2)
        if caller(frame) != self._site.frames[0]:
            return False
        if self._site.module is not None and _own_name(self._module_now()) != _own_name(self._site.module):
            return False
        return calls_from(self._site, raw_stack(frame))


def _own_name(path: str | None) -> str | None:
    """A module's name in its parent: the same line of a block runs "attn" in every block of its kind."""
    return path.rpartition(".")[2] if path is not None else None


@lru_cache(maxsize=512)
def _twin_of(func: FunctionType) -> FunctionType | None:
    """The same function, of torch's own, that never hands over to a mode; None where it has no such check."""
    if not is_torch(func.__code__) or not any(name in func.__code__.co_names for name in _CHECKS):
        return None
    names = {**func.__globals__, **dict.fromkeys(_CHECKS, _never)}
    twin = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    twin.__kwdefaults__ = func.__kwdefaults__
    return twin


def _never(*_: Any) -> bool:
    return False
