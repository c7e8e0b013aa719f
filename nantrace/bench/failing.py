"""From the alarm to the report, by the size of the autograd graph.

A stack of residual blocks; the one in the middle takes the logarithm of a negative number ("forward"), or the root of
zero, whose derivative is infinite ("backward": the whole step is replayed). The alarm is the optimizer's call of
`step`; the report is there when its text is.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..dump import load
from ..errors import NantraceError, NumericalAnomaly
from ..report import Report
from ..tracer import watch
from . import outside
from .clock import Clock, clock_of
from .overhead import Block, timed
from .plan import Plan
from .results import Failure, Reported

if TYPE_CHECKING:
    from .programs import Program

ROWS = 16
_HEALTHY_STEPS = 3
_PLAIN_BLOCKS = 5


def reported(born: str, blocks: int, plan: Plan) -> Reported:
    """Reports of the same fault, as often as the plan repeats."""
    program = outside.stack(blocks, ROWS, plan)
    now = clock_of(plan)
    step_s = statistics.median(timed(program, nullcontext(), Block(4, 1), now) for _ in range(_PLAIN_BLOCKS))
    failures = tuple(fail(program, born, now, _HEALTHY_STEPS)[1] for _ in range(plan.pace.repeats))
    return Reported(born, blocks, _nodes_behind(program.loss_of()), step_s, failures)


def fail(program: Program, born: str, now: Clock, healthy: int, capacity: int = 100) -> tuple[Report, Failure]:
    """Train some steps, then one with a fault, and keep what that took."""
    started = 0.0
    try:
        with watch(program.model, capacity=capacity):
            for _ in range(healthy):
                program.step()
            outside.break_in(program, born)
            program.gradients()
            started = now()
            program.optimizer.step()
    except NumericalAnomaly as anomaly:
        text, report_s = str(anomaly), now() - started
        if anomaly.report.phase != born:
            raise NantraceError(f"the benchmark's fault was reported wrongly:\n{text}") from anomaly
        return anomaly.report, _kept(anomaly.report, report_s)
    finally:
        outside.break_in(program, "")
        program.optimizer.zero_grad()
    raise NantraceError("the benchmark's fault raised no alarm")


def _kept(report: Report, report_s: float) -> Failure:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nantrace"
        started = time.process_time()
        report.save(path)
        saved = time.process_time()
        load(path)
        return Failure(report_s, saved - started, time.process_time() - saved, path.stat().st_size)


def _nodes_behind(loss: torch.Tensor) -> int:
    """How many nodes the loss's autograd graph has, those of the parameters included."""
    seen, waiting = {loss.grad_fn}, [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        for upstream, _ in node.next_functions if node is not None else ():
            if upstream is not None and upstream not in seen:
                seen.add(upstream)
                waiting.append(upstream)
    return len(seen)
