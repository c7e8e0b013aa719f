"""Read and restore the state that a call depends on and that is no tensor argument."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import numpy_random
from .tape import ModeState, RandomState


def modes_now() -> ModeState:
    """The thread-wide switches as they stand."""
    autocast = tuple(
        (device, True, torch.get_autocast_dtype(device))
        for device in _autocast_devices()
        if torch.is_autocast_enabled(device)
    )
    return ModeState(
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast, torch.is_autocast_cache_enabled()
    )


@contextmanager
def in_modes(modes: ModeState) -> Iterator[None]:
    """Run under these switches. Inference mode is replayed as no_grad, where a mode sees the same ops bit by bit."""
    with torch.set_grad_enabled(modes.grad and not modes.inference):
        contexts = [
            torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=modes.autocast_cache)
            for device, enabled, dtype in modes.autocast
        ]
        entered: list[Any] = []
        try:
            for context in contexts:
                context.__enter__()
                entered.append(context)
            yield
        finally:
            for context in reversed(entered):
                context.__exit__(None, None, None)


def random_now() -> RandomState:
    """Every random stream as it stands. Reads no device: CUDA generators keep their state on the host."""
    return random_with(numpy_random.whole_state())


def random_with(numpy_state: Any) -> RandomState:
    """Every random stream as it stands, numpy's as it was read already."""
    state = torch_random_now()
    state.python = random.getstate()
    state.numpy = numpy_state
    return state


def torch_random_now() -> RandomState:
    """torch's random streams alone: all that a single op can draw from."""
    devices: tuple[tuple[int, torch.Tensor], ...] = ()
    if torch.cuda.is_initialized():
        devices = tuple((i, torch.cuda.get_rng_state(i)) for i in range(torch.cuda.device_count()))
    return RandomState(torch.default_generator.get_state(), devices, None, None)


def restore_random(state: RandomState) -> None:
    """Put every recorded random stream back to where it stood."""
    torch.default_generator.set_state(state.torch_cpu)
    for device, value in state.torch_devices:
        torch.cuda.set_rng_state(value, device)
    if state.python is not None:
        random.setstate(state.python)
    if state.numpy is not None:
        numpy_random.restore(state.numpy)


def _autocast_devices() -> tuple[str, ...]:
    return ("cpu", "cuda") if torch.cuda.is_initialized() else ("cpu",)
