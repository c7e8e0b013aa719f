"""How the costs grow: each measured over a range of modules, of elements per tensor, and of steps.

The program is always a stack of residual blocks. Time of a step is what a level adds to it. Memory held is what the
watch keeps between two steps, in tensors and in Python objects.
"""

from __future__ import annotations

import gc
import statistics
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from ..tracer import watch
from . import outside
from .clock import clock_of
from .failing import ROWS, fail
from .memory import resident_now
from .overhead import Block, Compared, block_of, compare, timed
from .plan import GROWTH, PHASES, WIDTH, Column, Plan
from .results import Growth
from .tools import watcher

if TYPE_CHECKING:
    from .programs import Program

_BLOCKS = 5
_CAPACITY = 100  # of the ring buffer, as by default
_HEALTHY_STEPS = 3

Figures = dict[str, float]  # by quantity


def growths(plan: Plan) -> Iterator[Growth]:
    """Every quantity over every parameter, one parameter after the other."""
    pace = plan.pace
    yield from _over("modules", (_over_modules(blocks, plan) for blocks in pace.modules))
    yield from _over("elements", (_over_elements(rows, plan) for rows in pace.rows))
    yield from _over("recorded", (_over_recorded(steps, plan) for steps in pace.recorded))
    yield from _over("steps", _over_steps(plan))


def _over(parameter: str, measured: Iterable[tuple[int, Figures]]) -> Iterator[Growth]:
    found = list(measured)
    for quantity, unit in GROWTH[parameter].items():
        yield Growth(parameter, quantity, unit, tuple((size, figures[quantity]) for size, figures in found))


def _over_modules(blocks: int, plan: Plan) -> tuple[int, Figures]:
    program = outside.stack(blocks, ROWS, plan)
    return len(list(program.model.modules())), _of_a_step(program, plan) | _of_a_failure(program, plan)


def _over_elements(rows: int, plan: Plan) -> tuple[int, Figures]:
    program = outside.stack(_BLOCKS, rows, plan)
    return rows * WIDTH, _of_a_step(program, plan) | _of_a_failure(program, plan)


def _over_recorded(steps: int, plan: Plan) -> tuple[int, Figures]:
    program = outside.stack(_BLOCKS, ROWS, plan)
    ((_, held),) = _held(program, (steps,), steps)
    return steps, {"memory held": held} | _of_a_failure(program, plan, steps, capacity=steps)


def _over_steps(plan: Plan) -> Iterator[tuple[int, Figures]]:
    """A long watch, looked at on its way; and another one for what it holds, as keeping account of that takes time."""
    program = outside.stack(_BLOCKS, ROWS, plan)
    now = clock_of(plan)
    program.step()
    figures: dict[int, Figures] = {}
    done = 0
    with watch(program.model, capacity=_CAPACITY):
        for steps in plan.pace.steps:
            step_s = timed(program, nullcontext(), Block(steps - done, 0), now)
            figures[steps] = {"a step, watched": step_s, "resident memory": resident_now()}
            done = steps
    for steps, held in _held(program, plan.pace.steps, _CAPACITY):
        yield steps, figures[steps] | {"memory held": held}


def _of_a_step(program: Program, plan: Plan) -> Figures:
    now = clock_of(plan)
    program.step()
    levels = {level: watcher(Column("nantrace", level)) for level in ("loss", "module")}
    block = block_of(timed(program, nullcontext(), Block(2, 1), now), plan)
    tools = {level: Compared(put_on, block) for level, put_on in levels.items()}
    compare(program, list(tools.values()), block, now, pairs=plan.pace.pairs, seconds=0)
    added = {f'a step, "{level}"': statistics.median(tool.added_s) for level, tool in tools.items()}
    ((_, held),) = _held(program, (_HEALTHY_STEPS,), _CAPACITY)
    return added | {"memory held": held}


def _of_a_failure(program: Program, plan: Plan, steps: int = _HEALTHY_STEPS, capacity: int = _CAPACITY) -> Figures:
    taken = [fail(program, PHASES[0], clock_of(plan), steps, capacity)[1] for _ in range(plan.pace.repeats)]
    return {
        "report": statistics.median(one.report_s for one in taken),
        "writing the dump": statistics.median(one.save_s for one in taken),
        "dump": statistics.median(one.dump_bytes for one in taken),
    }


def _held(program: Program, steps: Sequence[int], capacity: int) -> Iterator[tuple[int, float]]:
    """Bytes that a watch has in tensors and in Python objects after so many steps."""
    with watch(program.model, capacity=capacity):
        program.step()  # what the first watched step makes once, and keeps for others
    program.optimizer.zero_grad()
    gc.freeze()  # from here on the collector lists what is new
    tracemalloc.start()
    try:
        done = 0
        with watch(program.model, capacity=capacity):
            for count in steps:
                for _ in range(count - done):
                    program.step()
                program.optimizer.zero_grad()
                done = count
                yield count, _bytes_in_new_tensors(program) + tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.unfreeze()


def _bytes_in_new_tensors(program: Program) -> int:
    """The memory of tensors made since the collector was told to start afresh, each once, without the program's own."""
    gc.collect()
    own = {parameter.untyped_storage().data_ptr() for parameter in program.model.parameters()}
    memories = {}
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor and thing.layout is torch.strided:
            memory = thing.untyped_storage()
            memories[memory.data_ptr()] = memory.nbytes()
    return sum(size for place, size in memories.items() if place not in own)
