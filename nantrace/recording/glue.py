"""The dispatch mode that sees every op outside the watched modules' calls: the loss, penalties, hand-written updates.

It is entered with the watch, and lifted out of the mode stack around regions that are observed otherwise (entry
calls, engine calls, optimizer steps), so that a mode of the user's own is never disturbed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from ..torch_private import TorchDispatchMode, modes_on_stack, put_on_mode, take_off_mode


class GlueMode(TorchDispatchMode):
    """Runs each op as it is and hands (func, args, kwargs, result) to the recorder."""

    def __init__(
        self,
        before_write: Callable[[Any, tuple[Any, ...], dict[str, Any]], None],
        after: Callable[[Any, tuple[Any, ...], dict[str, Any], Any, Any], None],
        failed: Callable[[Any, tuple[Any, ...], dict[str, Any], Any, BaseException], None],
        before_random: Callable[[tuple[Any, ...]], Any],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._before_write = before_write
        self._after = after
        self._failed = failed
        self._before_random = before_random

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave torch.compile on: a compiled loss must stay compiled while it is watched."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        writes, draws = nature(func)
        if writes:
            self._before_write(func, args, kwargs)
        ticket = self._before_random(args) if draws else None
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            self._failed(func, args, kwargs, sys._getframe(1), error)
            raise
        self._after(func, args, kwargs, result, ticket)
        return result


@lru_cache(maxsize=4096)
def nature(func: Any) -> tuple[bool, bool]:
    """Whether an op writes into an argument, and whether it draws random numbers."""
    return bool(func._schema.is_mutable), torch.Tag.nondeterministic_seeded in func.tags


def lift(mode: TorchDispatchMode) -> list[Any] | None:
    """Take a mode of ours out of the stack; returns the user's modes above it, or None where ours was not on it.

    The user's modes stay on: only ours is gone between `lift` and `put_back`.
    """
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
    if above is None:
        return
    stack = modes_on_stack()
    taken: list[Any] = []
    while stack and any(stack[-1] is theirs for theirs in above):
        taken.append(take_off_mode())
        stack.pop()
    put_on_mode(mode)
    for theirs in reversed(taken):
        put_on_mode(theirs)
