"""The start of the command line, each command in a new process; beside it an empty Python, and one that loads torch."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from . import outside
from .clock import clock_of
from .failing import ROWS, fail
from .plan import COMMANDS, PHASES, Plan
from .results import Missing, Spread, Start


def starts(plan: Plan) -> tuple[Start, ...]:
    """Every command as often as the plan repeats, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder) / "a.nantrace"
        fail(outside.stack(4, ROWS, plan), PHASES[0], clock_of(plan), 3)[0].save(dump)
        taken: dict[str, list[tuple[float, float]]] = {command: [] for command in COMMANDS}
        for _ in range(plan.pace.repeats + 1):
            for command, figures in taken.items():
                figures.append(_seconds(list(_arguments(command, str(dump)))))
    return tuple(_start(command, figures[1:]) for command, figures in taken.items())  # the first one fills caches


def _start(command: str, figures: list[tuple[float, float]]) -> Start:
    cpu, wall = zip(*figures, strict=True)
    return Start(command, Spread.of(cpu) if any(cpu) else Missing("not counted here"), Spread.of(wall))


def _arguments(command: str, dump: str) -> Iterator[str]:
    program, *rest = command.replace("'import torch'", "import_torch").split()
    yield sys.executable
    if program == "nantrace":
        yield from ("-m", "nantrace")
    yield from ({"DUMP": dump, "import_torch": "import torch"}.get(argument, argument) for argument in rest)


def _seconds(command: list[str]) -> tuple[float, float]:
    """CPU and wall time of one child process."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    before, started = _cpu_of_children(), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": path})
    return _cpu_of_children() - before, time.perf_counter() - started


def _cpu_of_children() -> float:
    """Seconds so far: to the microsecond where `resource` is there, which is where children are counted at all."""
    if find_spec("resource") is None:
        return 0.0
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
