"""Does what a plan says, one measure after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ..errors import NantraceError
from . import failing, growing, starting
from .machine import machine
from .memory import memory_of
from .overhead import Say, overheads
from .plan import PHASES, WORKS, Plan
from .results import Results


def run(plan: Plan, say: Say) -> Results:
    """Every measure of the plan; `say` is told what is being measured."""
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise NantraceError("--device cuda: this torch sees no CUDA device here; leave the option out for the CPU")
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        results = Results(machine(plan))
        for measure in plan.measures:
            results = _MEASURES[measure](results, plan, say)
        return results
    finally:
        torch.set_num_threads(threads)


def _overhead(results: Results, plan: Plan, say: Say) -> Results:
    return replace(results, overhead=tuple(overheads(plan, say)))


def _memory(results: Results, plan: Plan, say: Say) -> Results:
    for work in plan.memory_works:
        say(f"memory: {WORKS[work]}")
        results = replace(results, memory=(*results.memory, memory_of(work, plan)))
    return results


def _report(results: Results, plan: Plan, say: Say) -> Results:
    for born in PHASES:
        for blocks in plan.pace.stacks:
            say(f"report: {blocks} blocks, born in {born}")
            results = replace(results, report=(*results.report, failing.reported(born, blocks, plan)))
    return results


def _start(results: Results, plan: Plan, say: Say) -> Results:
    say("start of the command line")
    return replace(results, start=starting.starts(plan))


def _growth(results: Results, plan: Plan, say: Say) -> Results:
    say("growth")
    return replace(results, growth=tuple(growing.growths(plan)))


_MEASURES: dict[str, Callable[[Results, Plan, Say], Results]] = {
    "overhead": _overhead,
    "memory": _memory,
    "report": _report,
    "start": _start,
    "growth": _growth,
}
