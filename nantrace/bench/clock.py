"""The clock that steps are measured by."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from .plan import Plan

Clock = Callable[[], float]


def clock_of(plan: Plan) -> Clock:
    """CPU time where one thread of this process does all the work, so that no other one counts; else wall time."""
    if plan.device != "cpu":
        return _after_the_device
    return time.process_time if plan.threads == 1 else time.perf_counter


def in_words(plan: Plan) -> str:
    """What the clock counts."""
    if plan.device != "cpu":
        return "wall time, the device waited for at both ends of a block"
    return "CPU time of the process" if plan.threads == 1 else "wall time"


def _after_the_device() -> float:
    torch.accelerator.synchronize() if hasattr(torch, "accelerator") else torch.cuda.synchronize()
    return time.perf_counter()
