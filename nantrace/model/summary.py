"""The statistics of one tensor, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """What is known of one tensor once the tensor itself has been let go.

    `min`, `max`, `mean` and `rms` are over the finite elements only and are None where
    there is no finite element (or, for `mean` and `rms`, where they were not taken).
    The counts are over all elements; `zero` and `negative` are None where they were not taken.
    For a complex tensor the statistics are those of its real view.
    """

    shape: tuple[int, ...]
    dtype: str  # "float32", "bfloat16", "int64": torch's name without "torch."
    device: str  # "cpu", "cuda:0"
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    rms: float | None = None
    nan: int = 0
    pos_inf: int = 0
    neg_inf: int = 0
    zero: int | None = None
    negative: int | None = None
    name: str = ""  # the role in the op: "self", "weight", "other", or "" for an only output
    label: str = ""  # whose tensor it is, where that is known: "parameter fc.weight", "input x"

    @property
    def numel(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def nonfinite(self) -> int:
        """How many elements are NaN or infinite."""
        return self.nan + self.pos_inf + self.neg_inf

    @property
    def absmax(self) -> float | None:
        """The largest magnitude among the finite elements."""
        if self.min is None or self.max is None:
            return None
        return max(abs(self.min), abs(self.max))
