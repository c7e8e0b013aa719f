"""Rows of a table of programs: each trains for a few steps and is asked to fail in one of them.

A failing line carries the comment `# BAD`. The same program without its failure must be silent, and end bit for bit
where it ends without a watch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nantrace

from ..builders import caught

BAD_STEP = 2


@dataclass
class Program:
    """A training: the models that are watched, and one step, told whether to fail."""

    models: tuple[nn.Module, ...]
    step: Callable[[bool], Any]

    def run(self, bad: int | None, watch: Callable[..., Any]) -> None:
        """Train a few steps, of which one may be bad."""
        with watch(*self.models):
            for i in range(BAD_STEP + 2):
                self.step(i == bad)

    def state(self) -> list[Tensor]:
        """What the training has reached: every parameter and buffer, and the random stream."""
        tensors = [value.detach().clone() for model in self.models for value in model.state_dict().values()]
        return [*tensors, torch.get_rng_state()]


@dataclass(frozen=True)
class Row:
    """A program and where its failure is born."""

    make: Callable[[], Program]
    phase: str
    op: str
    module: str | None
    reproduced: bool | None = True

    def check(self) -> None:
        """The planted failure is named: step, phase, op, module, line."""
        torch.manual_seed(0)
        program = self.make()
        report = caught(lambda: program.run(BAD_STEP, nantrace.watch))
        origin = report.origin
        seen = (report.step, report.phase, origin.op, origin.module, report.reproduced)
        assert seen == (BAD_STEP, self.phase, self.op, self.module, self.reproduced), report.snapshot.replay
        assert "# BAD" in origin.source.code

    def check_healthy(self) -> None:
        """Without the failure: no report, no fault, and the same numbers with and without a watch."""
        states = []
        for watch in (lambda *models: nullcontext(), nantrace.watch):
            torch.manual_seed(0)
            program = self.make()
            program.run(None, watch)
            states.append(program.state())
        assert len(states[0]) == len(states[1])
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*states, strict=True))


class Table:
    """The rows of one file, in the order they are written."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def row(self, phase: str, op: str, module: str | None, **more: Any) -> Callable[[Any], Any]:
        """Add a program under its function's name."""

        def add(make: Callable[[], Program]) -> Callable[[], Program]:
            self.rows.append(pytest.param(Row(make, phase, op, module, **more), id=make.__name__))
            return make

        return add
