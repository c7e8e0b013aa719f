"""A cast whose gradient does not fit into the dtype that was cast from."""

from __future__ import annotations

from math import isfinite

from ..model import Cause, Remedy, Snapshot
from .finding import Finding
from .magnitude import CASTS
from .numbers import limits, show, show_limit
from .reading import derivative_at, dtype_of, element


def narrowed_gradient(snapshot: Snapshot) -> Finding | None:
    """The gradient of a cast goes back to the dtype of the operand, which is too narrow for it.

    Certain: the gradient was read, is finite, and is past the end of the dtype that was cast from.
    """
    origin = derivative_at(snapshot)
    if origin is None or origin.op not in CASTS:
        return None
    gradient = element(origin, "grad")
    dtype = origin.inputs[0].dtype if origin.inputs else ""
    end = limits(dtype)
    if gradient is None or end is None or not isfinite(gradient) or abs(gradient) <= end.max:
        return None
    text = f"the gradient {show(gradient)} is cast back from {dtype_of(origin)} to {dtype}, {show_limit(dtype)}"
    advice = (
        Remedy(
            "Scale the loss less, or let torch.amp.GradScaler scale it: it skips a step whose gradients overflow, and "
            "lowers the scale.",
            "scaler.scale(loss).backward()\nscaler.step(optimizer)\nscaler.update()",
        ),
        Remedy(f"Or train in bfloat16, which has the range of float32, instead of {dtype}."),
    )
    return Finding(Cause.OVERFLOW, "certain", (text,), advice)
