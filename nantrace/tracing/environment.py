"""Versions, devices and time, as a report needs them."""

from __future__ import annotations

import platform
import time
from typing import Any

import torch

from .. import __version__


def environment() -> dict[str, Any]:
    """What a report says about the machine it was made on."""
    return {
        "nantrace": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_initialized() else None,
        "threads": torch.get_num_threads(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "rank": _rank(),
    }


def _rank() -> int:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    return 0
