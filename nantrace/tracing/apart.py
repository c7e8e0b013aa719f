"""Run something in a thread of its own: a clean mode stack, no autocast, no inference mode, no functorch level."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

_T = TypeVar("_T")


def apart(work: Callable[[], _T]) -> _T:
    """What `work` returns (or raises), run in a fresh thread without gradients, on the caller's device."""
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)
            with torch.no_grad():
                results.append(work())
        except BaseException as error:  # raised again below, in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="nantrace graph", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
