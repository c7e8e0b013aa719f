"""A bad branch that a mask hides: the forward and the loss are finite, and 0 * inf revives it in the backward."""

from __future__ import annotations

from ..model import Cause, Op, Snapshot, Status
from .division import zero_division
from .domains import domain, pow_domain, sqrt_domain
from .finding import Finding, Rule
from .gradient_remedies import double_where
from .logarithms import log_domain
from .overflow import overflow
from .reading import generated_at, holds_zero, readers

_MASKS = (
    "where",
    "masked_fill",
    "masked_select",
    "index",
    "index_put",
    "clamp",
    "clamp_min",
    "clamp_max",
    "nan_to_num",
    "maximum",
    "minimum",
    "masked_scatter",
    "gather",
    "index_select",
    "mul",
    "relu",
    "threshold",
    "hardtanh",
    "max",
    "min",
    "amax",
    "amin",
)
_BY_VALUE: tuple[Rule, ...] = (log_domain, zero_division, sqrt_domain, pow_domain, domain, overflow)


def mask_after(snapshot: Snapshot) -> Op | None:
    """The op downstream of the origin that may have taken its value out: a selection, or a product with zeros."""
    return next(
        (op for op in readers(snapshot, depth=3) if op.name in _MASKS and (op.name != "mul" or _zeros(op))), None
    )


def hidden_branch(snapshot: Snapshot) -> Finding | None:
    """An op made a bad value in the forward, a mask took it out again, and its derivative is 0 * inf.

    Certain: the operands at the failing element prove what the op made, the mask's result is finite, and the loss is
    finite where a gradient is not.
    Likely: of the op's operands only the range is known.
    """
    origin = generated_at(snapshot)
    if origin is None or snapshot.symptom.kind != "gradient":
        return None
    mask = next((op for op in readers(snapshot) if op.name in _MASKS and op.status is Status.KILLED), None)
    found = next((found for rule in _BY_VALUE if (found := rule(snapshot)) is not None), None)
    if mask is None or found is None:
        return None
    line = f" in `{mask.source.code}`" if mask.source is not None and mask.source.code else ""
    hidden = (
        f"{mask.name}{line} takes that value out again, so the loss is finite; but {origin.op} is differentiated all "
        "the same, and the gradient 0 times its infinite derivative is NaN"
    )
    advice = (double_where(snapshot, origin), *found.remedies[:1])
    return Finding(Cause.MASKED_GRADIENT, found.confidence, (*found.evidence, hidden), advice)


def _zeros(op: Op) -> bool:
    return any(holds_zero(found) for found in op.inputs)
