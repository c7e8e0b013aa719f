"""Loads the measured programs as a user's file: what stands in nantrace's own folder counts as nantrace in a stack."""

from __future__ import annotations

import functools
import linecache
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from .plan import DTYPES, WIDTH, Plan

if TYPE_CHECKING:
    from .programs import Place, Program

_NAME = "nantrace_bench_programs"
_FILE = "nantrace-bench/programs.py"  # a folder that is not nantrace's; linecache is told the lines


def program(work: str, plan: Plan) -> Program:
    """A work, where and as the plan says."""
    made: Program = _programs().program(work, _place(plan))
    return made


def stack(blocks: int, rows: int, plan: Plan) -> Program:
    """A stack of residual blocks that can be made to fail, never compiled: its blocks are given faults by attribute."""
    made: Program = _programs().stack(blocks, rows, WIDTH, _place(replace(plan, compiled=False)))
    return made


def break_in(program: Program, phase: str) -> None:
    """Give the block in the middle of a stack a fault in that phase; "" mends it."""
    stack: Any = program.model
    stack.middle.fault = phase


def _place(plan: Plan) -> Place:
    dtype: torch.dtype = getattr(torch, DTYPES[plan.dtype])
    place: Place = _programs().Place(plan.device, dtype, torch.compile if plan.compiled else _as_it_is)
    return place


def _as_it_is(model: torch.nn.Module) -> torch.nn.Module:
    return model


@functools.cache
def _programs() -> Any:
    source = Path(__file__).with_name("programs.py").read_text(encoding="utf-8")
    linecache.cache[_FILE] = (len(source), None, source.splitlines(keepends=True), _FILE)
    module = ModuleType(_NAME)
    sys.modules[_NAME] = module  # dataclasses look their module up
    exec(compile(source, _FILE, "exec"), module.__dict__)
    return module
