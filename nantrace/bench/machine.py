"""Where a benchmark runs, and with what."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from .. import __version__
from . import clock
from .plan import DTYPES, Plan
from .results import Machine
from .tools import kernel_in_words


def machine(plan: Plan) -> Machine:
    """This machine, as the plan uses it."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        device=torch.cuda.get_device_name() if plan.device == "cuda" else plan.device,
        python=platform.python_version(),
        torch=torch.__version__,
        nantrace=__version__,
        threads=plan.threads,
        kernel=kernel_in_words(),
        clock=clock.in_words(plan),
        dtype=DTYPES[plan.dtype],
        compiled=plan.compiled,
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
