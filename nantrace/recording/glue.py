"""The dispatch mode that sees every op outside the watched modules' calls: the loss, penalties, hand-written updates.

It is entered with the watch, and lifted out of the mode stack around regions that are observed otherwise (entry
calls, engine calls, optimizer steps), so that a mode of the user's own is never disturbed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch

from ..torch_private import (
    TorchDispatchMode,
    innermost_mode,
    keep_compiler_out,
    modes_on_stack,
    put_on_mode,
    take_off_mode,
)


class GlueHandler(Protocol):
    """What the mode hands each op to."""

    def before_random(self, args: tuple[Any, ...]) -> Any:
        """An op is about to draw random numbers; what is returned comes back in `after`."""

    def before_write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """An op is about to write into its arguments; an exception stops it, and so does True, without one."""

    def after(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, random: Any) -> None:
        """An op has run."""

    def note_failure(self, func: Any, args: Any, kwargs: Any, error: BaseException) -> None:
        """An op has raised."""


class GlueMode(TorchDispatchMode):
    """Runs each op as it is and tells the handler before and after."""

    def __init__(self, handler: GlueHandler) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._handler = handler

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave torch.compile on: a compiled loss must stay compiled while it is watched."""
        return True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch would wrap our method to keep the compiler out of it, which costs each op: told once is enough."""
        return not keep_compiler_out(cls.__torch_dispatch__.__code__, callees=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        writes, draws, marks, _ = nature(func)
        if marks:
            return func(*args, **kwargs)
        handler = self._handler
        if writes and handler.before_write(func, args, kwargs):
            return _as_if_done(func, args, kwargs)
        random = handler.before_random(args) if draws else None
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            handler.note_failure(func, args, kwargs, error)
            raise
        handler.after(func, args, kwargs, result, random)
        return result


def _as_if_done(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an op that writes would have returned: the tensors that it was to write, or nothing."""
    results = []
    for result in func._schema.returns:
        sets = result.alias_info.before_set if result.alias_info is not None else set()
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.before_set & sets:
                results.append(args[position] if position < len(args) else kwargs.get(argument.name))
    return results[0] if len(results) == 1 else tuple(results) or None


class Nature(NamedTuple):
    """What an op does besides computing."""

    writes: bool  # into an argument
    draws: bool  # random numbers
    marks: bool  # torch's own functions (optimizer steps) for the profiler
    func: Any  # held: the natures are found by its identity


_natures: dict[int, Nature] = {}  # not an lru_cache: the hash of an op is a function of Python's


def nature(func: Any) -> Nature:
    """The nature of an op, read from its schema once."""
    known = _natures.get(id(func))
    if known is None:
        draws = torch.Tag.nondeterministic_seeded in func.tags
        known = Nature(bool(func._schema.is_mutable), draws, func.namespace == "profiler", func)
        _natures[id(func)] = known
    return known


@lru_cache(maxsize=4096)
def is_view(func: Any) -> bool:
    """Whether an op only gives another view of an argument."""
    schema = func._schema
    return not schema.is_mutable and any(result.alias_info is not None for result in schema.returns)


def lift(mode: TorchDispatchMode) -> list[Any] | None:
    """Take a mode of ours out of the stack; returns the user's modes above it, or None where ours was not on it.

    The user's modes stay on: only ours is gone between `lift` and `put_back`.
    """
    if innermost_mode() is mode:
        take_off_mode()
        return []
    if not any(found is mode for found in modes_on_stack()):
        return None
    above: list[Any] = []
    while True:
        taken = take_off_mode()
        if taken is mode:
            break
        above.append(taken)
    above.reverse()
    for theirs in above:
        put_on_mode(theirs)
    return above


def put_back(mode: TorchDispatchMode, above: list[Any] | None) -> None:
    """Put a mode of ours back where `lift` took it from: below those of the user's modes that are still there."""
    if not above:
        if above is not None:
            put_on_mode(mode)
        return
    stack = modes_on_stack()
    taken: list[Any] = []
    while stack and any(stack[-1] is theirs for theirs in above):
        taken.append(take_off_mode())
        stack.pop()
    put_on_mode(mode)
    for theirs in reversed(taken):
        put_on_mode(theirs)
