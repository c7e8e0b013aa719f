"""The time of a step under each tool, against none.

Blocks of plain and of watched steps run in turns in one process, and each watched block is compared with the plain
block beside it, which comes before it in one round and after it in the next. Entering a tool and the first steps of a
block are not counted. The garbage collector is left on, as in training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..recording import kernel
from . import apart, outside
from .clock import Clock, clock_of
from .plan import WORKS, Column, Plan
from .results import Cell, Missing, Overhead, Spread
from .tools import WITHOUT_KERNEL, Watcher, watcher

if TYPE_CHECKING:
    from .programs import Program

Say = Callable[[str], object]

_SLOW_S = 0.5  # a step that takes longer is warmed up once, and two are a block


@dataclass(frozen=True, slots=True)
class Block:
    """How many steps are counted, after how many that are not."""

    steps: int
    warm_up: int


@dataclass(slots=True)
class Compared:
    """A tool, its block, and what was measured: seconds per step, plain and watched, pair by pair."""

    put_on: Watcher
    block: Block
    pairs: list[tuple[float, float]] = field(default_factory=list)
    stopped: str = ""  # why it is measured no more

    @property
    def cell(self) -> Cell:
        """The spread of the ratios, or why there is none."""
        return Missing(self.stopped) if self.stopped else Spread.of(self.ratios)

    @property
    def ratios(self) -> list[float]:
        """Watched against plain."""
        return [watched / plain for plain, watched in self.pairs]

    @property
    def added_s(self) -> list[float]:
        """Watched less plain."""
        return [watched - plain for plain, watched in self.pairs]


def overheads(plan: Plan, say: Say) -> Iterator[Overhead]:
    """Each work under every tool; ours with torch ops only in one child process, beside plain steps of its own."""
    there = [column for column in plan.columns if column.tool == "torch-ops"]
    here = [column for column in plan.columns if column.tool != "torch-ops"]
    share = len(there) / max(1, len(plan.columns))
    elsewhere: dict[str, dict[str, Cell]] = {}
    if there and kernel.in_use():
        say("overhead: torch ops only, in a process of its own")
        seconds = plan.pace.seconds * share
        elsewhere = apart.run("paired_works", WITHOUT_KERNEL, columns=there, plan=plan, seconds=seconds)
    for work in plan.overhead_works:
        say(f"overhead: {WORKS[work]}")
        plain, found = paired(work, here, plan, plan.pace.seconds * (1 - share))
        found |= elsewhere.get(work, {column.key: Missing("there is no kernel here") for column in there})
        yield Overhead(work, plain, {column.key: found[column.key] for column in plan.columns})


def paired_works(columns: list[Column], plan: Plan, seconds: float) -> dict[str, dict[str, Cell]]:
    """The ratios of every work of the plan, measured in this process."""
    return {work: paired(work, columns, plan, seconds)[1] for work in plan.overhead_works}


def paired(work: str, columns: list[Column], plan: Plan, seconds: float) -> tuple[Cell, dict[str, Cell]]:
    """The plain step, and the ratios of each tool, measured in this process."""
    now = clock_of(plan)
    try:
        program = outside.program(work, plan)
        program.step()  # compiles what is to be compiled
        step_s = timed(program, nullcontext(), Block(2, 1), now)
    except Exception as error:
        reason = Missing(f"does not train here: {first_line(error)}")
        return reason, {column.key: reason for column in columns}
    tools: dict[str, Compared] = {}
    found: dict[str, Cell] = {}
    for column in columns:
        put_on = watcher(column)
        try:
            slowed_s = timed(program, put_on(program.model), Block(2, 1), now)
        except Exception as error:  # not installed, or it stops in healthy training
            found[column.key] = Missing(first_line(error))
        else:
            tools[column.key] = Compared(put_on, block_of(slowed_s, plan))
    plains = compare(program, list(tools.values()), block_of(step_s, plan), now, pairs=plan.pace.pairs, seconds=seconds)
    return Spread.of(plains), found | {key: tool.cell for key, tool in tools.items()}


def compare(
    program: Program, tools: list[Compared], plain_block: Block, now: Clock, *, pairs: int, seconds: float
) -> list[float]:
    """Measure pairs of every tool in turns until the seconds have gone by; returns the plain steps' seconds."""
    plains = [timed(program, nullcontext(), plain_block, now)]
    end = time.monotonic() + seconds
    rounds = 0
    while tools and (rounds < pairs or time.monotonic() < end):
        for tool in (tool for tool in tools if not tool.stopped):
            try:
                plain, watched = _pair(program, tool, plain_block, now, rounds)
            except Exception as error:  # it took something healthy for an anomaly
                tool.stopped = first_line(error)
                continue
            plains.append(plain)
            tool.pairs.append((plain, watched))
        rounds += 1
    return plains


def timed(program: Program, context: AbstractContextManager[Any], block: Block, now: Clock) -> float:
    """Seconds per step of a block inside a context."""
    with context:
        for _ in range(block.warm_up):
            program.step()
        started = now()
        for _ in range(block.steps):
            program.step()
        return (now() - started) / block.steps


def block_of(step_s: float, plan: Plan) -> Block:
    """As many steps as take the time of a block, and enough of them."""
    if step_s > _SLOW_S:
        return Block(plan.steps or 2, 1)
    return Block(plan.steps or max(4, int(plan.pace.block_s / max(step_s, 1e-6))), 3)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _pair(program: Program, tool: Compared, plain_block: Block, now: Clock, rounds: int) -> tuple[float, float]:
    measured = {}
    for which in _in_turns(rounds):
        context: AbstractContextManager[Any] = nullcontext() if which == "plain" else tool.put_on(program.model)
        measured[which] = timed(program, context, plain_block if which == "plain" else tool.block, now)
    return measured["plain"], measured["watched"]


def _in_turns(rounds: int) -> Iterator[str]:
    yield from ("plain", "watched") if rounds % 2 == 0 else ("watched", "plain")
