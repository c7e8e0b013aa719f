"""Statistics of CPU tensors in one pass of C, where the library was built; torch ops stand in for it where not.

The library (`statistics.c`, built by `build.py`) knows nothing of torch or Python: it is given addresses and counts.
It is used if it lies beside this file, gives the right numbers on a small array, and NANTRACE_KERNEL is not 0.
"""

from __future__ import annotations

import array
import ctypes
import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Reduce = Callable[[int, int, int], None]  # address of the elements, their number, address of a row of four floats

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_PLAIN = (torch.Tensor, torch.nn.Parameter)


@dataclass(frozen=True, slots=True)
class Kernel:
    """The functions of the library, by dtype."""

    reduce: dict[torch.dtype, Reduce]
    squares: dict[torch.dtype, Any]


def in_use() -> bool:
    """Whether CPU tensors are read by the C kernel."""
    return loaded() is not None


@functools.cache
def loaded() -> Kernel | None:
    """The kernel, or None where torch ops must do."""
    if os.environ.get("NANTRACE_KERNEL") == "0":
        return None
    from .build import LIBRARY  # here, so that `python -m` of it does not find it imported already

    return load(str(LIBRARY))


def load(path: str) -> Kernel | None:
    """The kernel of a library, or None where it is missing, is for another machine, or gives wrong numbers."""
    try:
        library = ctypes.CDLL(path)
        squares = {dtype: _squares(library, dtype) for dtype in _DTYPES}
        kernel = Kernel({dtype: _reduce(library, dtype) for dtype in _DTYPES}, squares)
        return kernel if _self_test(kernel) else None
    except (OSError, AttributeError):
        return None


def total_norm(tensors: list[torch.Tensor]) -> float | None:
    """The 2-norm over contiguous CPU tensors of one dtype in one call, or None where torch ops must find it."""
    kernel = loaded()
    if kernel is None:
        return None
    dtype = tensors[0].dtype
    squares = kernel.squares.get(dtype)
    if squares is None:
        return None
    try:
        for tensor in tensors:
            if type(tensor) not in _PLAIN or tensor.dtype is not dtype or not tensor.is_cpu:
                return None
            if not tensor.is_contiguous() and not in_memory(tensor):
                return None
        addresses = [tensor.data_ptr() for tensor in tensors]
    except RuntimeError:  # sparse tensors have no strides, functorch's no memory
        return None
    if not all(addresses):  # empty tensors, and the zeros without memory that forward AD makes
        return None
    counts = [tensor.numel() for tensor in tensors]
    total = ctypes.c_double()
    size = len(tensors)
    squares((ctypes.c_void_p * size)(*addresses), (ctypes.c_longlong * size)(*counts), size, ctypes.byref(total))
    return math.sqrt(total.value)


def in_memory(tensor: torch.Tensor) -> bool:
    """Whether memory holds exactly the elements of a CPU tensor, in whatever order, up to their common sign."""
    return tensor.layout is torch.strided and _is_dense(tensor.shape, tensor.stride())


@functools.lru_cache(1024)
def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether strides are those of a contiguous tensor with its dimensions in another order (transposed)."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _reduce(library: ctypes.CDLL, dtype: torch.dtype) -> Reduce:
    function = library["nantrace_" + _name(dtype)]
    function.argtypes = (ctypes.c_void_p, ctypes.c_longlong, ctypes.c_void_p)
    function.restype = None
    return function


def _squares(library: ctypes.CDLL, dtype: torch.dtype) -> Any:
    function = library["nantrace_norms_" + _name(dtype)]
    array_of_pointers, array_of_counts = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_longlong)
    function.argtypes = (array_of_pointers, array_of_counts, ctypes.c_int, ctypes.POINTER(ctypes.c_double))
    function.restype = None
    return function


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _self_test(kernel: Kernel) -> bool:
    """Whether a few float32 numbers are reduced as they should be, a NaN among others included."""
    row = array.array("f", [0.0] * 4)
    found = []
    for last in (3.0, math.nan):
        values = array.array("f", [*(-1.0, 0.5, 2.0) * 7, last])
        kernel.reduce[torch.float32](values.buffer_info()[0], len(values), row.buffer_info()[0])
        found.append(list(row))
    finite, bad = found
    return finite[:3] == [-1.0, 3.0, 13.5] and abs(finite[3] - 45.75**0.5) < 1e-5 and all(map(math.isnan, bad))
