"""Each measure on the smallest work: what it gives is plausible. How long anything takes is not tested here."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import nantrace
from nantrace.bench import apart, failing, growing, memory, outside, overhead, starting
from nantrace.bench.plan import COMMANDS, GROWTH, PHASES, QUICK, WORKS, Plan
from nantrace.bench.results import Missing, Peak, Spread
from nantrace.bench.rivals import FirstNaN, isnan_hooks
from nantrace.recording import kernel

PACE = replace(
    QUICK,
    seconds=0.01,
    block_s=0.001,
    pairs=2,
    repeats=1,
    works=("tiny-mlp",),
    memory_works=("tiny-mlp",),
    modules=(1, 2),
    rows=(4, 8),
    recorded=(2, 20),
    steps=(3, 5),
)


def quietly(what: str) -> None:
    """Nobody is told."""


def plan(**changes: object) -> Plan:
    """The smallest plan, changed."""
    return replace(Plan(PACE, steps=2), **changes)


@pytest.mark.parametrize("work", sorted(set(WORKS) - {"gpt2", "medium-transformer", "large-logits"}))
def test_every_work_trains(work: str) -> None:
    """The loss of its steps is finite, and its weights move."""
    program = outside.program(work, Plan())
    before = [parameter.detach().clone() for parameter in program.model.parameters()]

    assert math.isfinite(program.step())
    assert any(not torch.equal(old, new) for old, new in zip(before, program.model.parameters(), strict=True))


def test_the_programs_count_as_a_users() -> None:
    """A report names their lines: what stands in nantrace's folder would be left out of the stack."""
    report, _ = failing.fail(outside.stack(1, 4, Plan()), "forward", overhead.clock_of(Plan()), 1)

    assert report.origin is not None and report.origin.source is not None
    assert report.origin.source.file.endswith("programs.py")
    assert "torch.log(hidden - hidden.abs() - 1)" in report.origin.source.code


def test_every_tool_is_compared() -> None:
    """Each has a ratio, or says why not; afterwards nothing of it is left on the model."""
    tools = tuple(tool for tool in Plan().tools if tool != "torch-ops")
    (found,) = overhead.overheads(plan(tools=tools), quietly)

    assert isinstance(found.plain_s, Spread)
    for column in plan(tools=tools).columns:
        cell = found.ratios[column.key]
        if column.tool == "hf-debugger" and isinstance(cell, Missing):
            assert "transformers" in cell.reason
            continue
        assert isinstance(cell, Spread)
        assert 0 < cell.low <= cell.middle <= cell.high and cell.count >= 2


@pytest.mark.slow
def test_torch_ops_are_measured_without_the_kernel() -> None:
    """In a child process that has none; where there is none here either, the cell says so."""
    (found,) = overhead.overheads(plan(tools=("torch-ops",), levels=("loss",)), quietly)
    (cell,) = found.ratios.values()

    assert isinstance(cell, Spread if kernel.in_use() else Missing)


def test_a_tool_that_stops_is_no_failure_of_the_others() -> None:
    """What takes a healthy step for an anomaly is measured no more; the cell quotes it."""

    def stop(model: torch.nn.Module) -> torch.autograd.graph.saved_tensors_hooks:
        def pack(tensor: torch.Tensor) -> torch.Tensor:
            raise ValueError("I do not like this\nat all")

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)

    program, now, block = outside.program("tiny-mlp", Plan()), overhead.clock_of(Plan()), overhead.Block(1, 0)
    stopping, fine = overhead.Compared(stop, block), overhead.Compared(isnan_hooks, block)
    overhead.compare(program, [stopping, fine], block, now, pairs=2, seconds=0)

    assert stopping.cell == Missing("I do not like this")
    assert isinstance(fine.cell, Spread)


@pytest.mark.slow
def test_peaks_of_memory() -> None:
    """A step takes memory, and so does a watch; each is measured in a process of its own."""
    found = memory.memory_of("tiny-mlp", plan(pace=replace(PACE, memory_columns=("nantrace-module",))))

    watched = found.watched["nantrace-module"]
    assert isinstance(found.plain, Peak) and isinstance(watched, Peak)
    assert 0 < found.plain.tensors.middle < watched.tensors.middle
    assert found.plain.resident.middle >= 0


@pytest.mark.slow
def test_a_child_that_fails_says_why() -> None:
    """The last line of its stderr becomes the error."""
    with pytest.raises(nantrace.NantraceError, match=r"child process failed .* KeyError: 'fly'"):
        apart.run("fly", {}, plan=Plan())


@pytest.mark.parametrize("born", PHASES)
def test_a_report_and_its_dump(born: str) -> None:
    """One fault is reported in either phase, and what it took is positive."""
    found = failing.reported(born, 1, plan())

    assert found.nodes > 10 and found.step_s > 0
    (failure,) = found.failures
    assert min(failure.report_s, failure.save_s, failure.load_s, failure.dump_bytes) > 0


@pytest.mark.slow
def test_starts() -> None:
    """Every command is started and ends well; torch takes longer than nothing."""
    found = {start.command: start.wall_s for start in starting.starts(plan())}

    assert tuple(found) == COMMANDS
    assert all(isinstance(cell, Spread) and cell.middle > 0 for cell in found.values())


def test_growth() -> None:
    """Every quantity at every size; what a watch holds grows with the steps that it keeps, and not past them."""
    found = {(one.over, one.quantity): one for one in growing.growths(plan())}

    assert set(found) == {(over, quantity) for over, quantities in GROWTH.items() for quantity in quantities}
    (_, few), (_, more) = found["recorded", "memory held"].points
    assert 0 < few < more
    assert [size for size, _ in found["elements", "dump"].points] == [4 * 32, 8 * 32]


def test_the_first_nan_mode_finds_the_first() -> None:
    """It stops at the op that made the NaN, and memory that is not yet written is none."""
    with FirstNaN():  # type: ignore[no-untyped-call]
        torch.nn.functional.dropout(torch.ones(1000))
        torch.empty(1000)
        with pytest.raises(FloatingPointError, match=r"aten\.log"):
            torch.log(-torch.ones(3)).sum()
