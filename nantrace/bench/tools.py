"""Each column of the tables as something to put around training steps."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import nn

from ..recording import kernel
from ..tracer import watch
from . import rivals
from .plan import Column

Watcher = Callable[[nn.Module], AbstractContextManager[object]]

_RIVALS: dict[str, Watcher] = {
    "detect-anomaly": rivals.detect_anomaly,
    "hf-debugger": rivals.hf_debugger,
    "first-nan-mode": rivals.first_nan_mode,
    "isnan-hooks": rivals.isnan_hooks,
}
WITHOUT_KERNEL = {"NANTRACE_KERNEL": "0"}  # read when the kernel is loaded, so it takes a process of its own


def watcher(column: Column) -> Watcher:
    """What to put around the steps; "torch-ops" is ours in a process without the kernel."""
    if column.level:
        return lambda model: watch(model, level=column.level)
    return _RIVALS[column.tool]


def nothing(model: nn.Module) -> AbstractContextManager[object]:
    """No tool."""
    return nullcontext()


def kernel_in_words() -> str:
    """Whether the C kernel reads CPU tensors here, and why not."""
    if kernel.in_use():
        return "in use"
    if os.environ.get("NANTRACE_KERNEL") == "0":
        return "not in use: NANTRACE_KERNEL=0"
    return "not in use: it was not built, or does not run here"
