"""Where a change applies: every execution of the line of code that ran the op, as an edit of that line would."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch

from ...recording.frames import RawStack, innermost_outside_torch, innermost_user, is_torch
from ..backward import ENGINE_CODES
from ..microscope import Seen
from ..playing import ENTRY_CODE
from ..run import Run
from ..schema import OpFacts

_HANDLE = torch.overrides.handle_torch_function.__code__
_NANTRACE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
# torch's wrapper of a dispatch mode's method, which keeps the compiler out of it
_WRAPPERS = (_NANTRACE, os.path.join(_TORCH, "_dynamo", ""), os.path.join(_TORCH, "_compile.py"))
_BOUNDARIES = ENGINE_CODES | {ENTRY_CODE}
_MODULE_CALL = "_call_impl"


@dataclass(frozen=True, slots=True)
class Site:
    """The place of an op in the program."""

    facts: OpFacts
    glue: bool
    frames: RawStack  # innermost first: from what called the op's function out to the line that an edit would change
    module: str | None  # for a line of a library, which serves many modules: the one that is meant
    operands: tuple[str, ...]  # the names of the op's tensor operands, in order
    arguments: Mapping[str, Any]  # what is no tensor, by name


def sites_of(run: Run, numbers: Iterable[int]) -> dict[int, Site]:
    """The sites of these ops, by number. torch's own backward code has none, a custom Function's backward has."""
    ops = run.microscope.ops
    found = {number: _site_of(ops[number]) for number in numbers if 0 <= number < len(ops)}
    return {number: site for number, site in found.items() if site is not None}


def _site_of(seen: Seen) -> Site | None:
    names = tuple(name for name, _ in seen.places)
    if seen.backward:
        stack = _inside(cleaned(seen.stack), ENGINE_CODES)
        end = innermost_user(stack)
        return Site(seen.facts, False, stack[: end + 1], None, names, seen.arguments) if end is not None else None
    if seen.glue:
        stack = cleaned(seen.stack)
        end = innermost_outside_torch(stack)
        return Site(seen.facts, True, stack[: (end or 0) + 1], None, names, seen.arguments)
    stack = _inside(cleaned(seen.stack), frozenset({ENTRY_CODE}))
    end = innermost_user(stack)
    if end is None:
        end = innermost_outside_torch(stack)
    frames = stack[: end + 1] if end is not None else stack
    shared = end is None or any(code.co_name == _MODULE_CALL and is_torch(code) for code, _ in frames)
    return Site(seen.facts, False, frames, seen.module if shared else None, names, seen.arguments) if frames else None


def calls_from(site: Site, stack: RawStack) -> bool:
    """Whether a function that is called from this stack is the site's."""
    return bool(site.frames) and cleaned(stack)[: len(site.frames)] == site.frames


def caller(frame: FrameType | None) -> tuple[Any, int] | None:
    """The innermost frame from here on that is not nantrace's: what called the function."""
    while frame is not None and frame.f_code.co_filename.startswith(_WRAPPERS):
        frame = frame.f_back
    return (frame.f_code, frame.f_lasti) if frame is not None else None


def cleaned(stack: RawStack) -> RawStack:
    """The stack as it would be without modes: without their frames and the calls that handed over to them."""
    found = []
    after_handle = False
    for code, offset in stack:
        if after_handle:  # the function that only handed over; its second run stands further in
            after_handle = False
        elif code is _HANDLE:
            after_handle = True
        elif code in _BOUNDARIES or not code.co_filename.startswith(_WRAPPERS):
            found.append((code, offset))
    return tuple(found)


def _inside(stack: RawStack, boundary: frozenset[CodeType]) -> RawStack:
    """The frames inside the innermost one of these."""
    for i, (code, _) in enumerate(stack):
        if code in boundary:
            return stack[:i]
    return stack
