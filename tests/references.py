"""Statistics as slow, plain float64 arithmetic computes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Reference:
    """The statistics of the real numbers in a tensor (a complex number is two)."""

    min: float
    max: float
    total: float
    norm: float
    count: int

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def rms(self) -> float:
        return self.norm / math.sqrt(self.count)


def reference(tensor: Tensor) -> Reference:
    """The statistics of a tensor, one Python float after the other."""
    flat = tensor.detach().resolve_conj().reshape(-1).tolist()
    values = [part for value in flat for part in ((value.real, value.imag) if isinstance(value, complex) else (value,))]
    rounded = [_to_float32(value) for value in values]
    return Reference(
        min(rounded), max(rounded), math.fsum(values), math.sqrt(math.fsum(v * v for v in values)), len(values)
    )


def _to_float32(value: float) -> float:
    import struct

    return float(struct.unpack("f", struct.pack("f", value))[0])
