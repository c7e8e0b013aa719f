"""The way in for an observer of every op (level="op"): told what the recorder is told, and paused while it works.

What the recorder does itself (statistics, checks, copies) is none of the program's ops. The observer is a dispatch
mode that lies below the glue mode for as long as the watch runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.compiler import is_compiling

from ..torch_private import EngineArguments
from .glue import GlueHandler, lift, put_back
from .names import ModuleNames
from .ring import Place, Ring
from .session import Session
from .tape import FunctionCall, TapeEvent


class OpObserver(Protocol):
    """What is told of the ops' surroundings. All of it is called in the watched thread."""

    blind: str  # why nothing more of the step is observed, or ""

    def begin(self, names: ModuleNames) -> None:
        """The watch begins."""

    def pause(self) -> None:
        """What runs from here on is not the program's."""

    def resume(self) -> None:
        """The program goes on."""

    def event_begins(self, event: TapeEvent) -> None:
        """The next ops belong to this event of the tape."""

    def event_ends(self) -> None:
        """What comes now belongs to no event yet: loss code."""

    def glue_ran(self, event: TapeEvent | None) -> None:
        """The last op belongs to this event, or (None) to nothing that a symptom can depend on."""

    def module_begins(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """A module's call begins."""

    def module_ends(self, module: torch.nn.Module, args: Any, *rest: Any) -> None:
        """A module's call has ended."""

    def clear(self) -> None:
        """The step has ended."""


class ObservedRecorder:
    """Stands in for a recorder as the listener: pauses the observer while the recorder works, and tells it the rest."""

    def __init__(self, recorder: Any, session: Session, observer: OpObserver) -> None:
        self.thread: int = recorder.thread
        self._recorder = recorder
        self._session = session
        self._observer = observer
        self._step = -1
        self._in_optimizer = False

    def start(self) -> None:
        """Put the observer on this thread's mode stack."""
        self._observer.begin(self._session.names)
        self._observer.__enter__()  # type: ignore[attr-defined]

    def stop(self) -> None:
        """A forked process stops the recorder, which takes the observer off."""
        self._recorder.stop()

    def take_off(self) -> None:
        """Take the observer off this thread's mode stack; the user's modes stay where they are."""
        mode: Any = self._observer
        if lift(mode) is not None:
            put_back(mode, [])
            mode.__exit__(None, None, None)
        self._observer.clear()

    def module_begins(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """A call begins; an outermost one of a watched module becomes the current event."""
        if is_compiling() or threading.get_ident() != self.thread:
            return
        outermost = not self._session.calls
        if outermost:
            self._forget_interrupted_optimizer()
        with self._paused():
            self._recorder.module_begins(module, args)
        entry = self._recorder.entry
        if outermost and entry is not None:
            self._observer.event_begins(entry)
        self._observer.module_begins(module, args)

    def module_ends(self, module: torch.nn.Module, args: Any, *rest: Any) -> None:
        """A call has ended."""
        if is_compiling() or threading.get_ident() != self.thread:
            return
        inside = bool(self._session.calls)
        self._observer.module_ends(module, args, *rest)
        if inside and len(self._session.calls) == 1 and not self._session.in_engine:
            self._observer.event_ends()
        with self._paused():
            self._recorder.module_ends(module, args, *rest)

    def engine_begins(self, call: EngineArguments) -> Any:
        """The engine is about to run; outside of every call it is an event."""
        self._forget_interrupted_optimizer()
        with self._paused():
            ticket = self._recorder.engine_begins(call)
        if ticket is not None and ticket[0] is not None:
            self._observer.event_begins(ticket[0])
        return ticket

    def engine_ends(self, ticket: Any, result: Any) -> None:
        """The engine has run."""
        if ticket is not None:
            self._observer.event_ends()
        with self._paused():
            self._recorder.engine_ends(ticket, result)

    def optimizer_begins(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """An optimizer's own ops are not observed; a closure's are."""
        with self._paused():
            self._recorder.optimizer_begins(optimizer, closure)
        if not closure:
            self._in_optimizer = True
            self._observer.pause()

    def optimizer_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped."""
        self._forget_interrupted_optimizer()
        with self._paused():
            self._recorder.optimizer_ends(optimizer)

    def scaler_scales(self, loss: Any, scaled: Any) -> None:
        """A GradScaler has scaled a loss."""
        with self._paused():
            self._recorder.scaler_scales(loss, scaled)

    def scaler_begins(self, scaler: Any, optimizer: torch.optim.Optimizer) -> bool:
        """A GradScaler decides whether to step."""
        with self._paused():
            return bool(self._recorder.scaler_begins(scaler, optimizer))

    def scaler_ends(self, scaler: Any, optimizer: torch.optim.Optimizer) -> None:
        """A GradScaler has stepped or skipped."""
        with self._paused():
            self._recorder.scaler_ends(scaler, optimizer)

    def scaler_updates(self, scaler: Any) -> bool:
        """A GradScaler is about to move its scale."""
        with self._paused():
            return bool(self._recorder.scaler_updates(scaler))

    def _forget_interrupted_optimizer(self) -> None:
        if self._in_optimizer:
            self._in_optimizer = False
            self._observer.resume()

    @contextmanager
    def _paused(self) -> Iterator[None]:
        self._observer.pause()
        try:
            yield
        finally:
            self._observer.resume()
            step = self._session.clock.step
            if step != self._step:
                self._step = step
                if not self._session.tape.events:
                    self._observer.clear()


class ObservedRing(Ring):
    """A ring whose own reductions the observer does not see: gradients are written while the engine runs."""

    def __init__(self, capacity: int, observer: OpObserver) -> None:
        super().__init__(capacity)
        self._observer = observer

    def write(self, place: Place, values: torch.Tensor) -> int | None:
        """Record one readable tensor."""
        self._observer.pause()
        try:
            return super().write(place, values)
        finally:
            self._observer.resume()


class ObservedGlue:
    """Stands in for the glue recorder as the handler of the glue mode."""

    def __init__(self, handler: GlueHandler, session: Session, observer: OpObserver) -> None:
        self._handler = handler
        self._session = session
        self._observer = observer

    def before_random(self, args: tuple[Any, ...]) -> Any:
        """Passed on."""
        return self._handler.before_random(args)

    def before_write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Passed on."""
        self._observer.pause()
        try:
            return self._handler.before_write(func, args, kwargs)
        finally:
            self._observer.resume()

    def after(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, random: Any) -> None:
        """Passed on; the observer is told to which event the op went."""
        events = self._session.tape.events
        count = len(events)
        self._observer.pause()
        try:
            self._handler.after(func, args, kwargs, result, random)
        finally:
            self._observer.resume()
        events = self._session.tape.events
        last = events[-1] if events else None
        new = len(events) > count or (isinstance(last, FunctionCall) and not torch.is_grad_enabled())
        self._observer.glue_ran(last if new else None)

    def note_failure(self, func: Any, args: Any, kwargs: Any, error: BaseException) -> None:
        """Passed on."""
        self._handler.note_failure(func, args, kwargs, error)
