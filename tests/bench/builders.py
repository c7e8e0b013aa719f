"""Results as a run of a plan would give them, with the same figures everywhere."""

from __future__ import annotations

from nantrace.bench.plan import COMMANDS, GROWTH, PHASES, Plan
from nantrace.bench.results import Failure, Growth, Machine, Memory, Overhead, Peak, Reported, Results, Spread, Start

MACHINE = Machine(
    processor="a processor",
    cores=2,
    load=0.1,
    device="cpu",
    python="3.11.0",
    torch="2.13.0",
    nantrace="0.1.0",
    threads=1,
    kernel="in use",
    clock="CPU time of the process",
    dtype="float32",
    compiled=False,
)
ONE_AND_A_HALF = Spread(1.25, 1.5, 1.75, 9)
FAILURE = Failure(0.5, 0.01, 0.02, 2048)


def results_of(plan: Plan) -> Results:
    """What running the plan gives, but for the figures."""
    peak = Peak(Spread(1e6, 1e6, 1e6, 3), Spread(2e6, 2e6, 2e6, 3))
    points = ((1.0, 10.0), (2.0, 20.0), (3.0, 30.0))
    return Results(
        MACHINE,
        tuple(
            Overhead(work, ONE_AND_A_HALF, {column.key: ONE_AND_A_HALF for column in plan.columns})
            for work in plan.overhead_works
        ),
        tuple(Memory(work, peak, {column.key: peak for column in plan.memory_columns}) for work in plan.memory_works),
        tuple(
            Reported(born, blocks, 15 * blocks, 0.1, (FAILURE, FAILURE))
            for born in PHASES
            for blocks in plan.pace.stacks
        ),
        tuple(Start(command, ONE_AND_A_HALF, ONE_AND_A_HALF) for command in COMMANDS),
        tuple(
            Growth(over, quantity, unit, points) for over, units in GROWTH.items() for quantity, unit in units.items()
        ),
    )
