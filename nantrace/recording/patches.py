"""The process-wide places where recorders listen: module calls, the engine, optimizers, GradScaler.

Everything is put in place when the first recorder starts and taken off when the last one stops, so that
several watches can begin and end in any order. A listener's own fault never reaches the user's program.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..torch_private import engine_arguments, forget_kwargs_flag, patch_engine, patch_method


class Listener(Protocol):
    """What a recorder is told. `thread` is the thread that started it; except for modules, others are not told."""

    thread: int

    def stop(self) -> None:
        """Stop listening for good."""

    def module_begins(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """A module's call begins, in whatever thread: torch calls this itself, hundreds of times a step."""

    def module_ends(self, module: torch.nn.Module, args: Any, *rest: Any) -> None:
        """A module's call has ended, in whatever thread: `rest` is (kwargs, output), or (None,) for an exception."""

    def engine_begins(self, call: Any) -> Any:
        """The autograd engine is about to run; what is returned is given to `engine_ends`."""

    def engine_ends(self, ticket: Any, result: Any) -> None:
        """The engine has run, or an exception left it (result None)."""

    def optimizer_begins(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """An optimizer is about to step; an exception raised here stops it."""

    def optimizer_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped."""

    def scaler_scales(self, loss: Any, scaled: Any) -> None:
        """A GradScaler has scaled a loss."""

    def scaler_begins(self, scaler: Any, optimizer: torch.optim.Optimizer) -> bool:
        """A GradScaler decides whether to step; returns whether that is refused."""

    def scaler_ends(self, scaler: Any, optimizer: torch.optim.Optimizer) -> None:
        """A GradScaler has stepped or skipped, or was refused."""

    def scaler_updates(self, scaler: Any) -> bool:
        """A GradScaler is about to move its scale; returns whether that is refused."""


class ModuleListener:
    """A listener to module calls: told of everything else, it does nothing."""

    thread: int

    def stop(self) -> None:
        """Nothing, also in a forked process: it has no such thread."""

    def engine_begins(self, call: Any) -> Any:
        """Nothing."""

    def engine_ends(self, ticket: Any, result: Any) -> None:
        """Nothing."""

    def optimizer_begins(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """Nothing."""

    def optimizer_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """Nothing."""

    def scaler_scales(self, loss: Any, scaled: Any) -> None:
        """Nothing."""

    def scaler_begins(self, scaler: Any, optimizer: torch.optim.Optimizer) -> bool:
        """Nothing is refused."""
        return False

    def scaler_ends(self, scaler: Any, optimizer: torch.optim.Optimizer) -> None:
        """Nothing."""

    def scaler_updates(self, scaler: Any) -> bool:
        """Nothing is refused."""
        return False


_listeners: list[Listener] = []
_undo: list[Callable[[], object]] = []
_undo_modules: dict[int, list[Callable[[], object]]] = {}  # by the listener's identity
_lock = threading.Lock()


def listen(listener: Listener) -> None:
    """Start telling this listener; a failure half-way leaves nothing in place."""
    with _lock:
        if not _listeners:
            try:
                _install()
            except BaseException:
                _uninstall()
                raise
        _listeners.append(listener)


def listen_to_modules(listener: Listener) -> None:
    """Tell a listener of every module's call too, through global hooks."""
    with _lock:
        _undo_modules[id(listener)] = _hook_modules(listener)


def stop_listening(listener: Listener) -> None:
    """Stop telling this listener; the last one to go takes every hook and patch with it."""
    with _lock:
        if listener in _listeners:
            _listeners.remove(listener)
            for undo in _undo_modules.pop(id(listener), []):
                undo()
        if not _listeners:
            _uninstall()


def _forget_in_child() -> None:
    """A forked process (a DataLoader worker) is not watched: its data code must not pay for our modes and hooks."""
    global _lock
    _lock = threading.Lock()  # the parent may have held it in another thread
    for listener in list(_listeners):
        listener.stop()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_forget_in_child)


def _hook_modules(listener: Listener) -> list[Callable[[], object]]:
    before = register_module_forward_pre_hook(listener.module_begins)
    after = register_module_forward_hook(listener.module_ends, with_kwargs=True, always_call=True)
    return [before.remove, after.remove, lambda: forget_kwargs_flag(after)]


def _install() -> None:
    _undo.append(register_optimizer_step_pre_hook(_before_optimizer).remove)
    _undo.append(register_optimizer_step_post_hook(_after_optimizer).remove)
    _undo.append(patch_engine(_around_engine))
    _undo.append(patch_method(torch.amp.GradScaler, "scale", _around_scale))
    _undo.append(patch_method(torch.amp.GradScaler, "step", _around_scaler_step))
    _undo.append(patch_method(torch.amp.GradScaler, "update", _around_scaler_update))
    _undo.append(_ignore_warning_of_compile())


def _ignore_warning_of_compile() -> Callable[[], None]:
    """torch.compile warns its user of global hooks; ours do no harm there, and the user has put none."""
    warnings.filterwarnings("ignore", message=r"Using `torch\.compile\(module\)` when there are global hooks")
    added = warnings.filters[0]

    def undo() -> None:
        if added in warnings.filters:  # not inside a `catch_warnings` that has begun before us and has ended
            warnings.filters.remove(added)  # type: ignore[attr-defined]

    return undo


def _uninstall() -> None:
    while _undo:
        _undo.pop()()


def _here() -> list[Listener]:
    thread = threading.get_ident()
    return [listener for listener in _listeners if listener.thread == thread]


def _before_optimizer(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():  # `torch.compile(optimizer.step)`: traced without us, and so not observed
        return
    closure = any(callable(argument) for argument in (*args[1:], kwargs.get("closure")))
    for listener in _here():
        listener.optimizer_begins(optimizer, closure)


def _after_optimizer(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        return
    for listener in _here():
        listener.optimizer_ends(optimizer)


def _around_engine(original: Callable[..., Any]) -> Callable[..., Any]:
    def engine(*args: Any, **kwargs: Any) -> Any:
        told = _here()
        if not told or torch.compiler.is_compiling():
            return original(*args, **kwargs)
        call = engine_arguments(args, kwargs)
        tickets = [(listener, listener.engine_begins(call)) for listener in told]
        result = None
        try:
            result = original(*args, **kwargs)
        finally:
            for listener, ticket in reversed(tickets):
                listener.engine_ends(ticket, result)
        return result

    return engine


def _around_scale(original: Callable[..., Any]) -> Callable[..., Any]:
    def scale(self: Any, outputs: Any) -> Any:
        scaled = original(self, outputs)
        for listener in _here():
            listener.scaler_scales(outputs, scaled)
        return scaled

    return scale


def _around_scaler_step(original: Callable[..., Any]) -> Callable[..., Any]:
    def step(self: Any, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        told = []
        try:
            refused = False
            for listener in _here():
                refused |= listener.scaler_begins(self, optimizer)
                told.append(listener)
            return None if refused else original(self, optimizer, *args, **kwargs)
        finally:
            for listener in told:
                listener.scaler_ends(self, optimizer)

    return step


def _around_scaler_update(original: Callable[..., Any]) -> Callable[..., Any]:
    def update(self: Any, new_scale: Any = None) -> None:
        refused = [listener.scaler_updates(self) for listener in _here()]
        if new_scale is not None or not any(refused):
            original(self, new_scale)

    return update
