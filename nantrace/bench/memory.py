"""What watching adds to the peak memory of a step: one child process per program and tool.

Resident memory is the process's own peak over the first steps, less what it held before them. Tensor bytes are the
peak of what torch's allocator had given out, which counts no Python objects and no cache.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile

from . import apart, outside
from .overhead import first_line
from .plan import Column, Plan
from .results import Memory, Missing, Peak, Spread
from .tools import Watcher, nothing, watcher

if TYPE_CHECKING:
    from .programs import Program

_STEPS = 6
_TRACED_STEPS = 3


def memory_of(work: str, plan: Plan) -> Memory:
    """One work without a tool and under each, in turns."""
    columns: list[Column | None] = [None, *plan.memory_columns]
    figures: dict[str, list[tuple[float, float]]] = {}
    missing: dict[str, Missing] = {}
    for _ in range(plan.pace.children):
        for column in columns:
            key = column.key if column else ""
            if key in missing:
                continue
            found = apart.run("peak", {}, work=work, column=column, plan=plan)
            if isinstance(found, Missing):
                missing[key] = found
            else:
                figures.setdefault(key, []).append(found)
    peaks: dict[str, Peak | Missing] = {
        key: Peak(*(Spread.of(one) for one in zip(*pairs, strict=True))) for key, pairs in figures.items()
    }
    peaks |= missing
    return Memory(work, peaks[""], {column.key: peaks[column.key] for column in plan.memory_columns})


def peak(work: str, column: Column | None, plan: Plan) -> tuple[float, float] | Missing:
    """Peak bytes, resident and of tensors, over the first steps of a program in this process."""
    try:
        put_on = nothing if column is None else watcher(column)
        _load_what_it_needs(put_on)
        resident = _resident_peak(outside.program(work, plan), put_on)
        return resident, _tensor_peak(outside.program(work, plan), put_on, plan.device)
    except Exception as error:
        return Missing(first_line(error))


def _load_what_it_needs(put_on: Watcher) -> None:
    """One step of another program: code that is loaded with the first step is no memory of the step."""
    program = outside.program("tiny-mlp", Plan())
    with put_on(program.model):
        program.step()


def _resident_peak(program: Program, put_on: Watcher) -> float:
    gc.collect()
    before = _start_of_peak()
    with put_on(program.model):
        for _ in range(_STEPS):
            program.step()
    return _peak_so_far() - before


def _start_of_peak() -> int:
    """Bytes resident now; on Linux the peak so far is forgotten, elsewhere it stands for them."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        pass
    return _peak_so_far()


def resident_now() -> int:
    """Bytes resident in this process; where only the peak is known, that."""
    return _status("VmRSS:")


def _peak_so_far() -> int:
    return _status("VmHWM:")


def _status(name: str) -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _tensor_peak(program: Program, put_on: Watcher, device: str) -> float:
    def train() -> None:
        with put_on(program.model):
            for _ in range(_TRACED_STEPS):
                program.step()

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        train()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return max((event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"), default=0)
