"""Learning-rate schedulers: one that steps after every update must not step after a refused one.

A scheduler that steps once an epoch keeps its pace: an epoch has the same length with a batch left out. The
two are told apart by the number of updates between a scheduler's steps.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch.optim.lr_scheduler import LRScheduler

from ..torch_private import patch_method


class Listener(Protocol):
    """What is asked before a scheduler steps, in the thread that started the listener."""

    thread: int

    def scheduler_begins(self, scheduler: LRScheduler) -> bool:
        """Whether this step of the scheduler is refused."""


_listeners: list[Listener] = []
_undo: list[Callable[[], object]] = []
_running = threading.local()


def listen(listener: Listener) -> None:
    """Ask this listener from now on; the first one puts the patches in place."""
    if not _listeners:
        _undo.extend(patch_method(kind, "step", _around_step) for kind in _with_own_step(LRScheduler))
    _listeners.append(listener)


def stop_listening(listener: Listener) -> None:
    """Ask it no more; the last one takes the patches off."""
    if listener in _listeners:
        _listeners.remove(listener)
    if not _listeners:
        while _undo:
            _undo.pop()()


def _with_own_step(kind: type) -> Iterator[type]:
    if "step" in vars(kind):
        yield kind
    children: list[type] = kind.__subclasses__()
    for derived in children:
        yield from _with_own_step(derived)


def _around_step(original: Callable[..., Any]) -> Callable[..., Any]:
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(_running, "depth", 0):  # a scheduler made of schedulers, or of its parent's step
            return original(self, *args, **kwargs)
        thread = threading.get_ident()
        refused = [listener.scheduler_begins(self) for listener in _listeners if listener.thread == thread]
        if any(refused):
            return None
        _running.depth = 1
        try:
            return original(self, *args, **kwargs)
        finally:
            _running.depth = 0

    return step


class Schedules:
    """The pace of every scheduler, and what those that stepped in this step were like before it."""

    def __init__(self) -> None:
        self._updates: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = weakref.WeakKeyDictionary()
        self._idle: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._paces: weakref.WeakKeyDictionary[LRScheduler, tuple[int, int]] = weakref.WeakKeyDictionary()
        self._before: list[tuple[weakref.ref[LRScheduler], dict[str, Any]]] = []

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped."""
        self._updates[optimizer] = self._updates.get(optimizer, 0) + 1
        self._idle.discard(optimizer)

    def refused(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer's step was refused, or undone."""
        self._updates[optimizer] = self._updates.get(optimizer, 0) + 1
        self._idle.add(optimizer)

    def begins(self, scheduler: LRScheduler, *, may_be_undone: bool) -> bool:
        """Whether a scheduler's step belongs to a refused update; else its pace is noted, and its state if asked."""
        optimizer = getattr(scheduler, "optimizer", None)
        if not isinstance(optimizer, torch.optim.Optimizer):
            return False
        updates = self._updates.get(optimizer, 0)
        before, pace = self._paces.get(scheduler, (0, 0))
        gap = updates - before
        if optimizer in self._idle and max(gap, pace) <= 1:
            self._paces[scheduler] = (updates, pace)
            return True
        self._paces[scheduler] = (updates, gap)
        if may_be_undone:
            self._before.append((weakref.ref(scheduler), deepcopy(scheduler.state_dict())))
        return False

    def put_back(self) -> None:
        """Undo the steps of schedulers in this step."""
        for reference, state in reversed(self._before):
            scheduler = reference()
            if scheduler is not None:
                scheduler.load_state_dict(state)
        self._before.clear()

    def end_step(self) -> None:
        """The step stands."""
        self._before.clear()
