"""Which module made which autograd node, without a replay: torch numbers its nodes in the order of the forward.

A module's call makes the nodes between the number at its begin and the number at its end; the innermost interval that
holds a node's number is the node's module. Kept only where no replay is wanted: it costs two reads per call.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch.compiler import is_compiling

from ..torch_private import EngineArguments, sequence_number
from . import patches
from .frames import RawStack, raw_stack_here
from .session import Session

MAX_INTERVALS = 100_000  # calls of a step; past it the oldest are forgotten


@dataclass(slots=True)
class Interval:
    """One module's call: the numbers of the nodes it made, and the stack that called it."""

    path: str
    module_type: str
    begin: int
    end: int
    stack: RawStack
    depth: int


class ModuleIntervals(patches.ModuleListener):
    """A listener of module calls beside the recorder; kept for the running step."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.finished: list[Interval] = []
        self.graphs: list[Any] = []  # the root nodes of the step's backwards, whose saved tensors are freed
        self._running: list[Interval] = []
        self._session: Session | None = None
        self._step = -1

    def listen_to(self, session: Session) -> None:
        """Begin to listen."""
        self._session = session
        patches.listen(self)
        patches.listen_to_modules(self)

    def module_begins(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """Note the number of the next node."""
        if is_compiling() or threading.get_ident() != self.thread:
            return
        session = self._session
        path = session.names.path(module, look_again=False) if session is not None else None
        if session is None or path is None:
            return
        if not session.calls[1:] and session.clock.step != self._step:  # the recorder has noted the call already
            self._step = session.clock.step
            self._running.clear()
            if not session.tape.events:
                self.finished.clear()
                self.graphs.clear()
        begin = sequence_number()
        self._running.append(Interval(path, type(module).__name__, begin, begin, raw_stack_here(3), len(self._running)))

    def module_ends(self, module: torch.nn.Module, args: Any, *rest: Any) -> None:
        """Note the number after the last node."""
        if is_compiling() or threading.get_ident() != self.thread:
            return
        session = self._session
        path = session.names.path(module, look_again=False) if session is not None else None
        while path is not None and self._running:
            interval = self._running.pop()
            if interval.path == path:
                interval.end = sequence_number()
                self.finished.append(interval)
                break
        if len(self.finished) > MAX_INTERVALS:
            del self.finished[: MAX_INTERVALS // 2]

    def holding(self, sequence: int) -> Interval | None:
        """The innermost call that made the node of this number."""
        found = [one for one in self.finished if one.begin <= sequence < one.end]
        return min(found, key=lambda one: (one.end - one.begin, -one.depth), default=None)

    def engine_begins(self, call: EngineArguments) -> None:
        """Hold the nodes of a graph that the backward is about to free: their order is what is left of it."""
        session = self._session
        if session is not None and call.accumulate and not call.keep_graph and not session.calls:
            self.graphs += [root.grad_fn for root in call.roots if root.grad_fn is not None]

    def stop(self) -> None:
        """Stop listening for good."""
        self.graphs.clear()
        patches.stop_listening(self)
