"""Calls of compiled modules: hooks are compiled away there, so a call is told from outside it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from ..torch_private import compiled_call, set_compiled_call

Teller = Callable[..., Any]


class CompiledInPlace:
    """The roots of a watch on which `module.compile()` was called: their calls are told by what runs instead."""

    def __init__(self, roots: tuple[torch.nn.Module, ...], begins: Teller, ends: Teller) -> None:
        self._roots = roots
        self._begins = begins
        self._ends = ends
        self._originals: list[tuple[torch.nn.Module, Any, Any]] = []

    def start(self) -> None:
        """Put a call of ours around theirs."""
        for root in self._roots:
            theirs = compiled_call(root)
            if theirs is not None:
                ours = self._around(root, theirs, threading.get_ident())
                set_compiled_call(root, ours)
                self._originals.append((root, theirs, ours))

    def stop(self) -> None:
        """Take ours off again, unless the user has compiled anew."""
        for root, theirs, ours in self._originals:
            if compiled_call(root) is ours:
                set_compiled_call(root, theirs)
        self._originals.clear()

    def _around(self, root: torch.nn.Module, theirs: Callable[..., Any], thread: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or threading.get_ident() != thread:
                return theirs(*args, **kwargs)
            self._begins(root, args)
            try:
                result = theirs(*args, **kwargs)
            except BaseException:
                self._ends(root, args, None)  # as torch tells of a call that an exception left
                raise
            self._ends(root, args, kwargs, result)
            return result

        return call
