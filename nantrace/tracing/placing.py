"""Where the nodes of a graph ran, from what a watch has recorded: module calls, loss lines, parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..model import Source
from ..recording.frames import RawStack, innermost_outside_torch, innermost_user, source_at
from ..recording.intervals import Interval
from ..recording.recorder import Recorder
from ..recording.tape import EntryCall, FunctionCall, GlueOp, TapeEvent
from .autograd_graph import AutogradGraph, GraphNode
from .ownership import ByParameters, Home


class ByRecord:
    """Places nodes by their numbers: a loss op by its own, a module's by the interval of the call that made them.

    Where no intervals were kept, a node's parameters tell.
    """

    def __init__(self, recorder: Recorder, graph: AutogradGraph) -> None:
        self._names = recorder.names
        self._intervals = recorder.intervals
        self._glue = _lines(recorder.tape.events)
        self._functions = [event for event in recorder.tape.events if isinstance(event, FunctionCall)]
        self._entries = [event for event in recorder.tape.events if isinstance(event, EntryCall)]
        self._models = [ByParameters(root, graph) for root in recorder.names.roots]

    def owner(self, leaf: torch.Tensor) -> str | None:
        """The name of a watched parameter."""
        return self._names.parameter(leaf)

    def home(self, node: GraphNode) -> Home:
        """The place of a node."""
        sequence = node.sequence
        if sequence is None:
            return Home("forward", certain=False)
        event = self._glue.get(sequence)
        if event is not None:
            position = innermost_outside_torch(event.stack)
            source = source_at(event.stack, position) if position is not None else None
            return Home("loss", source=source, expected=event.expected)
        if self._intervals is not None:
            interval = self._intervals.holding(sequence)
            if interval is not None:
                return Home("forward", interval.path, interval.module_type, self._line(interval))
            return Home("loss", source=self._applied(node))
        found = [home for model in self._models if (home := model.home(node)).certain]
        return found[0] if found else self._guess(node)

    def _applied(self, node: GraphNode) -> Source | None:
        """The line that applied a custom Function in the loss code."""
        for event in self._functions:
            position = innermost_outside_torch(event.stack)
            if node.name == f"{event.function.__name__}Backward" and position is not None:
                return source_at(event.stack, position)
        return None

    def _guess(self, node: GraphNode) -> Home:
        """No loss op: some module's. With one entry call and one module there is no doubt which."""
        guess = self._models[0].home(node)
        types = self._names.types()
        if guess.module is None:
            guess = Home("forward", "", types.get(""), certain=False)
        if len(types) == 1:
            return Home("forward", guess.module, guess.module_type)
        return guess

    def _line(self, interval: Interval) -> Source | None:
        """The line that called a module of torch's own: what its ops are named by. Others have lines of their own."""
        module = next((m for m, path in self._names.paths.values() if path == interval.path), None)
        if module is None or not type(module).__module__.startswith("torch."):
            return None
        outer = next((e.stack for e in reversed(self._entries) if _ends_with(interval.stack, e.stack)), ())
        inner = interval.stack[: len(interval.stack) - len(outer)]
        position = innermost_user(inner)
        if position is None:
            position = innermost_outside_torch(inner)
        if position is None:
            position = innermost_outside_torch(interval.stack)
        return source_at(interval.stack, position) if position is not None else None


def _ends_with(stack: RawStack, outer: RawStack) -> bool:
    """Whether a stack came through the frames of an entry call (whose own line may have moved on)."""
    codes, ends = [code for code, _ in stack], [code for code, _ in outer]
    return len(ends) <= len(codes) and codes[len(codes) - len(ends) :] == ends


def _lines(events: Iterable[TapeEvent]) -> dict[int, GlueOp]:
    """The loss op of each node number: the first op after the number was given out."""
    found: dict[int, GlueOp] = {}
    for event in events:
        if isinstance(event, GlueOp) and event.grad and event.sequence >= 0:
            found.setdefault(event.sequence, event)
    return found
