"""Module calls told by a wrapper around each watched module's own call, which costs a tenth of a hook.

torch runs `module._compiled_call_impl` in place of `_call_impl` where `module.compile()` has put it, and leaves it out
of pickles and copies. The wrapper stands there, and calls what would have run. Modules that are added while the watch
runs get theirs when the next outermost call begins.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch
from torch.nn.modules.module import register_module_module_registration_hook

from ..torch_private import (
    calls_can_be_wrapped,
    compiled_call,
    keep_compiler_out,
    set_compiled_call,
    wrapped_by_compile,
)
from .calls import CallRecorder
from .names import ModuleNames

Call = Callable[..., Any]


class WrappedCalls:
    """The wrappers of one watch."""

    def __init__(self, names: ModuleNames, recorder: CallRecorder) -> None:
        self._names = names
        self._recorder = recorder
        self._thread = get_ident()
        self._wrapped: dict[int, tuple[torch.nn.Module, Call | None, Call]] = {}  # module, what ran before, ours
        self._undo: Callable[[], object] = lambda: None

    def start(self) -> None:
        """Put a wrapper around the call of every watched module, and wait for modules that are added."""
        self._recorder.refresh_calls = self._wrap_all
        self._wrap_all()
        self._undo = register_module_module_registration_hook(self._note_added).remove

    def stop(self) -> None:
        """Take every wrapper off, unless somebody has put another one around it: that one then calls what it wraps."""
        self._undo()
        for module, before, ours in self._wrapped.values():
            if compiled_call(module) is ours:
                set_compiled_call(module, before)
        self._wrapped.clear()

    def _note_added(self, parent: torch.nn.Module, name: str, child: torch.nn.Module | None) -> None:
        """A module was added to another one. Its name is known once it is there."""
        if id(parent) in self._names.paths and child is not None:
            self._recorder.calls_are_stale = True

    def _wrap_all(self) -> None:
        inner = {id(found) for root in self._names.roots if (found := wrapped_by_compile(root)) is not None}
        for key, (module, path) in self._names.paths.items():
            if key not in self._wrapped and key not in inner:
                before = compiled_call(module)
                around = self._around_entry if not self._recorder.records else self._around
                ours = around(module, path, before or module._call_impl)
                self._wrapped[key] = (module, before, ours)
                set_compiled_call(module, ours)

    def _around(self, module: torch.nn.Module, path: str, original: Call) -> Call:
        thread, recorder = self._thread, self._recorder
        calls, outermost, record = recorder.running, recorder.call, recorder.recorder_of(path)
        is_root = any(module is root for root in self._names.roots)

        def call(*args: Any, **kwargs: Any) -> Any:
            if get_ident() != thread:
                return original(*args, **kwargs)
            if not calls or is_root:
                return outermost(module, original, args, kwargs)
            calls.append(path)
            try:
                output = original(*args, **kwargs)
                record(output)
                return output
            finally:
                calls.pop()

        return call

    def _around_entry(self, module: torch.nn.Module, path: str, original: Call) -> Call:
        """Where nothing is recorded of the calls inside, they are called as they are."""
        thread, recorder = self._thread, self._recorder
        calls, outermost = recorder.running, recorder.call

        def call(*args: Any, **kwargs: Any) -> Any:
            if calls or get_ident() != thread:
                return original(*args, **kwargs)
            return outermost(module, original, args, kwargs)

        return call


@functools.cache
def can_wrap() -> bool:
    """Whether this torch lets calls be wrapped, and the compiler be kept out of the wrappers."""
    wrappers = [_code_in(WrappedCalls._around, "call"), _code_in(WrappedCalls._around_entry, "call")]
    ours = [CallRecorder.begins.__code__, CallRecorder.ends.__code__, _code_in(CallRecorder.recorder_of, "record")]
    return (
        calls_can_be_wrapped()
        and all(keep_compiler_out(code, callees=False) for code in (*wrappers, CallRecorder.call.__code__))
        and all(keep_compiler_out(code, callees=True) for code in ours)
    )


def wrappable(names: ModuleNames) -> bool:
    """Whether the calls of these modules can be wrapped: replicas of DataParallel would call the original."""
    return can_wrap() and not any(isinstance(module, torch.nn.DataParallel) for module, _ in names.paths.values())


def _code_in(method: Any, name: str) -> Any:
    """The code of the function of that name that a method defines."""
    return next(found for found in method.__code__.co_consts if getattr(found, "co_name", "") == name)
