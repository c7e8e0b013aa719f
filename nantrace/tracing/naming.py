"""From an op to what the report calls it: the forward op of a backward op, its module, and the user's line."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from types import CodeType

from ..model import Source
from ..recording.frames import RawStack, innermost_outside_torch, innermost_user, line_at, source_at
from ..recording.tape import EngineCall, EntryCall, FunctionCall, GlueOp, TapeEvent
from .backward import ENGINE_CODES
from .microscope import Microscope, Seen, is_checkpoint
from .playing import ENTRY_CODE

Spot = tuple[RawStack, int]  # a stack, and the frame in it whose line is named

_FUNCTION_FILE = "autograd/function.py"


@dataclass(frozen=True, slots=True)
class Name:
    """What an op is called in the report, and where it was called."""

    op: str
    seen: Seen  # the forward op for a derivative, else the op itself
    module: str | None
    module_type: str | None
    spot: Spot | None
    derivative: bool

    @property
    def source(self) -> Source | None:
        """Where it was called, with the stack that led there."""
        return None if self.spot is None else source_at(*self.spot)


class Namer:
    """Names the ops of one replay."""

    def __init__(self, microscope: Microscope, events: list[TapeEvent]) -> None:
        self._microscope = microscope
        self._events = events
        self._lines: dict[tuple[int, int], Source] = {}

    def name(self, seen: Seen) -> Name:
        """The name of an op: for an op of a backward, of the forward op that it differentiates."""
        forward = self.forward_of(seen)
        if forward is None:
            first = self.first_run(seen)
            return Name(seen.facts.name, seen, *self.module(first), self._spot(first), False)
        forward = self.first_run(forward)
        function = _custom_function(seen.node)
        if function is not None:
            return Name(function, forward, *self.module(forward), self._spot_of_apply(forward), True)
        return Name(forward.facts.name, forward, *self.module(forward), self._spot(forward), True)

    def line(self, name: Name) -> Source | None:
        """Where an op was called, the line alone: every op of a report has one, and many ops share a line."""
        if name.spot is None:
            return None
        stack, position = name.spot
        code, offset = stack[position]
        known = self._lines.get((id(code), offset))  # the ops hold the code objects alive
        if known is None:
            known = self._lines[id(code), offset] = line_at(stack, position)
        return known

    def forward_of(self, seen: Seen) -> Seen | None:
        """The forward op at the end of the chain (a double backward has two links), or None for a forward op."""
        found: Seen | None = None
        while seen.forward_id is not None:
            seen = self._microscope.op(seen.forward_id)
            found = seen
        return found

    def first_run(self, seen: Seen) -> Seen:
        """The op of the forward that a checkpoint ran again in the backward, where it is known; else the op itself."""
        again = seen.recomputed
        if again is None:
            return seen
        known = self._checkpointed.get(_key(seen), [])
        if again.op is None:
            return known[0] if len(known) == 1 else seen
        if again.first:
            return next((op for op in known if op.id >= again.op), seen)
        return next((op for op in reversed(known) if op.id <= again.op), seen)

    @cached_property
    def _checkpointed(self) -> dict[tuple[str, RawStack], list[Seen]]:
        """The first runs of ops inside checkpoints, by what is the same in the second: the op and its inner frames."""
        found: dict[tuple[str, RawStack], list[Seen]] = defaultdict(list)
        for op in self._microscope.ops:
            if op.recomputed is None and not op.backward and any(is_checkpoint(code) for code, _ in op.stack):
                found[_key(op)].append(op)
        return found

    def module(self, seen: Seen) -> tuple[str | None, str | None]:
        """The module's path and type, or (None, None) for glue."""
        return (None, None) if seen.glue or not self._in_entry(seen) else (seen.module, seen.module_type)

    def _spot(self, seen: Seen) -> Spot | None:
        """The user's line below the entry call, else a library's, else the line that made the entry call."""
        event = self._events[seen.event]
        if isinstance(event, EngineCall) and seen.module is None:
            inner = _inside(seen.stack, ENGINE_CODES)  # a hook of the user's, else the engine: the line that called it
            position = innermost_outside_torch(inner)
            return (inner + event.stack, position) if position is not None else _outside_torch(event.stack)
        if not self._in_entry(seen):
            return _outside_torch(seen.stack)
        return _below_entry(*self._split(seen))

    def _split(self, seen: Seen) -> tuple[RawStack, RawStack]:
        """The frames below the entry call, and the live frames above it."""
        event = self._events[seen.event]
        outer = event.stack if isinstance(event, (EntryCall, GlueOp, FunctionCall, EngineCall)) else ()
        return _inside_entry(seen.stack), outer

    def _in_entry(self, seen: Seen) -> bool:
        return isinstance(self._events[seen.event], EntryCall) or (seen.module is not None and not seen.glue)

    def _spot_of_apply(self, forward: Seen) -> Spot | None:
        """The line that called `apply` of a custom Function."""
        stack = sum(self._split(forward), ()) if self._in_entry(forward) else forward.stack
        for i, (code, _) in enumerate(stack):
            if _is_apply(code):
                return _outside_torch(stack[i + 1 :])
        return self._spot(forward)


def entry_source(stack: RawStack, outer: RawStack) -> Source | None:
    """The source of an op inside an entry call, from its replayed stack and the live stack of the call."""
    spot = _below_entry(_inside_entry(stack), outer)
    return None if spot is None else source_at(*spot)


def _inside_entry(stack: RawStack) -> RawStack:
    """The frames below the entry call: up to where the replay made it."""
    return _inside(stack, frozenset({ENTRY_CODE}))


def _inside(stack: RawStack, boundary: frozenset[CodeType]) -> RawStack:
    """The frames inside the innermost one of these."""
    for i, (code, _) in enumerate(stack):
        if code in boundary:
            return stack[:i]
    return stack


def _below_entry(inner: RawStack, outer: RawStack) -> Spot | None:
    """The innermost line of the user's own below the entry call, else a library's, else the line that made the call."""
    position = innermost_user(inner)
    if position is None:
        position = innermost_outside_torch(inner)
    return (inner + outer, position) if position is not None else _outside_torch(outer)


def _outside_torch(stack: RawStack) -> Spot | None:
    position = innermost_outside_torch(stack)
    return None if position is None else (stack, position)


def _key(seen: Seen) -> tuple[str, RawStack]:
    """An op and its frames inside the checkpoint."""
    inner = next((i for i, (code, _) in enumerate(seen.stack) if is_checkpoint(code)), len(seen.stack))
    return seen.facts.aten, seen.stack[:inner]


def _is_apply(code: CodeType) -> bool:
    return code.co_name == "apply" and code.co_filename.replace("\\", "/").endswith(_FUNCTION_FILE)


def _custom_function(node: str | None) -> str | None:
    """The name of the user's Function for its node's name, or None for a node of torch's own."""
    if node is None or not node.endswith("Backward"):
        return None  # torch's own nodes end in a digit: "SqrtBackward0"
    name = node.removesuffix("Backward")
    return name or None
