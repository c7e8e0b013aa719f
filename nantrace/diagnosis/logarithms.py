"""The logarithm of zero or of a negative number."""

from __future__ import annotations

from math import inf, isnan

from ..model import Cause, Change, Origin, Remedy, Snapshot, TensorSummary
from .edits import change, edit_operand, edit_result
from .factorizations import jittered
from .finding import Finding
from .fusing import fused
from .keywords import eps_of_call
from .numbers import inside_one, margin, plural, show
from .reading import (
    dtype_of,
    element,
    equation,
    generated_at,
    holds_zero,
    main_element,
    main_summary,
    maker,
    makers,
)
from .rewriting import atom, operand_text
from .widening import as_origin

_LOGARITHMS = {"log": 0.0, "log2": 0.0, "log10": 0.0, "log1p": -1.0}


def log_domain(snapshot: Snapshot) -> Finding | None:
    """The logarithm of zero or of a negative number was taken.

    Certain: the operand at the failing element was read and is at or below the pole: 0, for log1p -1, for logit
    also 1.
    Likely: only the operand's range is known, and it reaches the pole.
    """
    origin = generated_at(snapshot)
    if origin is None:
        return None
    op = origin.op.removeprefix("special_")
    if op in ("xlogy", "xlog1py"):
        return _product_with_logarithm(snapshot, origin)
    if op == "logit":
        return _logit(snapshot, origin)
    if op not in _LOGARITHMS:
        return None
    end, x, found = _LOGARITHMS[op], main_element(origin), main_summary(origin)
    if x is not None:
        if isnan(x) or x > end:
            return None
        text = equation(origin, f"{op}({show(x)})")
        return Finding(
            Cause.LOG_DOMAIN, "certain", (text, *_story(snapshot, origin, found)), _for_log(snapshot, origin)
        )
    if found is None or found.min is None or found.min > end or found.nonfinite:
        return None
    text = f"{op} was taken of values down to {show(found.min)}" + (
        f", {plural(found.zero, 'exact zero')} among them" if found.zero else ""
    )
    return Finding(Cause.LOG_DOMAIN, "likely", (text, *_story(snapshot, origin, None)), _for_log(snapshot, origin))


def _product_with_logarithm(snapshot: Snapshot, origin: Origin) -> Finding | None:
    a, b = element(origin, "self"), element(origin, "other")
    end = -1.0 if origin.op.endswith("log1py") else 0.0
    if a is None or b is None or isnan(a) or isnan(b) or b > end or a == 0:
        return None
    text = equation(origin, f"{origin.op}({show(a)}, {show(b)})")
    return Finding(Cause.LOG_DOMAIN, "certain", (text,), _for_log(snapshot, origin, position=1))


def _logit(snapshot: Snapshot, origin: Origin) -> Finding | None:
    x, eps = main_element(origin), inside_one(dtype_of(origin))
    if x is None or 0 < x < 1 or isnan(x):
        return None
    text = equation(origin, f"logit({show(x)}) = log({show(x)} / (1 - {show(x)}))")
    inside = f"clamp({eps}, 1 - {eps})"
    edit = edit_operand(origin, 0, "{}." + inside, f"torch.logit(p.{inside})")
    advice = edit.remedy(
        f"Keep the probability strictly between 0 and 1 (torch.logit takes an eps for it), by {eps}; better, keep the "
        "logits from before the sigmoid.",
        change(snapshot, "clamp", "self", float(eps), 1 - float(eps)),
    )
    return Finding(Cause.LOG_DOMAIN, "certain", (text,), (advice,))


def _story(snapshot: Snapshot, origin: Origin, found: TensorSummary | None) -> tuple[str, ...]:
    """How many such operands there are, and which op made them."""
    told = []
    if found is not None and found.zero and found.zero > 1:
        told.append(f"{plural(found.zero, 'of the operands is', 'of the operands are')} exactly 0, of {found.numel}")
    made = maker(snapshot, found.name if found is not None else "self")
    saturated = _saturated(snapshot)
    if saturated:
        told.append(f"the {saturated} upstream has saturated: it reached the end of its range in {dtype_of(origin)}")
    elif made is not None:
        told.append(f"the operand was made by {made.name}" + (f" in `{made.source.code}`" if made.source else ""))
    return tuple(told)


def _saturated(snapshot: Snapshot) -> str | None:
    for op in makers(snapshot, "self", depth=4):
        if op.name in ("sigmoid", "softmax", "tanh") and op.outputs:
            low, high = op.outputs[0].min, op.outputs[0].max
            if low == (-1 if op.name == "tanh" else 0) or high == 1:
                return op.name
    return None


def _for_log(snapshot: Snapshot, origin: Origin, *, position: int = 0) -> tuple[Remedy, ...]:
    built_in = eps_of_call(snapshot, origin)
    if built_in is not None:
        return (built_in,)
    dtype = dtype_of(origin)
    operand = "other" if position else "self"
    made = [op.name for op in makers(snapshot, operand, depth=4)]
    bounded = _bounded(snapshot, origin, position, operand, margin(dtype), inside_one(dtype))
    if bounded.replaces is None and (earlier := _where_made(snapshot, origin, operand, margin(dtype))) is not None:
        bounded = earlier
    both = _both_sides(snapshot, dtype)
    if both is not None:
        text = (
            "Better, compute the loss from the logits: F.binary_cross_entropy_with_logits (BCEWithLogitsLoss), which "
            "cannot saturate."
        )
        return (both, Remedy(text, "F.binary_cross_entropy_with_logits(logits, target)"))
    singular = _singular(snapshot, operand)
    if singular:
        return (*singular[:1], bounded, *singular[1:])
    one = fused(snapshot, origin) if position == 0 and origin.op == "log" else None
    if one is not None:
        # An edit of the line comes before a snippet, also where the snippet is the better advice.
        return (one, bounded) if one.replaces is not None else (bounded, one)
    return (bounded, *_besides(made, underflowed=_underflowed(snapshot, operand)))


def _singular(snapshot: Snapshot, operand: str) -> tuple[Remedy, ...]:
    """A zero on the diagonal of a factor: it is the matrix that was singular."""
    made = next((op for op in makers(snapshot, operand, depth=4) if op.name.startswith("linalg_cholesky")), None)
    moved = as_origin(snapshot, made) if made is not None else None
    return jittered(moved, moved.origin) if moved is not None and moved.origin is not None else ()


def _bounded(snapshot: Snapshot, origin: Origin, position: int, operand: str, eps: str, inside: str) -> Remedy:
    """The operand kept above the end of the logarithm's domain."""
    x = operand_text(origin, position, "x")
    name = origin.op if position == 0 else "log"
    end = f"-1 + {inside}" if origin.op.endswith("1p") or origin.op.endswith("log1py") else eps
    low = -1 + float(inside) if end != eps else float(eps)
    within = f"torch.{name}({atom(x)}.clamp_min({end}))"
    if origin.source is not None and ".log_prob(" in origin.source.expression:
        within = "dist.log_prob(value.clamp(1e-6, 1 - 1e-6))  # or the distribution's scale, rate or probabilities"
    edit = edit_operand(origin, position, "{}.clamp_min(" + end + ")", within)
    text = (
        f"Keep the operand of {name} above {'-1' if end != eps else '0'}: clamp it to (or add) a small eps such as "
        f"{inside if end != eps else eps}; a clamped element has no gradient."
    )
    return edit.remedy(text, change(snapshot, "clamp", operand, low, inf))


def _where_made(snapshot: Snapshot, origin: Origin, operand: str, eps: str) -> Remedy | None:
    """Where the op's own line cannot be edited (a distribution's log_prob): the operand bounded where it is made."""
    made = maker(snapshot, operand)
    # A density divides by its scale and by the square of it, which needs more room.
    bound = "1e-3" if origin.source is not None and ".log_prob(" in origin.source.expression else eps
    edit = edit_result(made, f"clamp_min({bound})") if made is not None else None
    if made is None or edit is None:
        return None
    text = (
        "Keep the operand of the logarithm above 0 in the line that makes it (a scale, a rate, a probability): an eps "
        f"of {bound} also keeps what is divided by it, and the gradients, in range."
    )
    return edit.remedy(text, Change("clamp", made.id, "out", (float(bound), inf)))


def _both_sides(snapshot: Snapshot, dtype: str) -> Remedy | None:
    """log(p) and log(1 - p) of one saturated sigmoid: p bounded at both ends where it is made."""
    made = next((op for op in makers(snapshot, "self", depth=2) if op.name == "sigmoid"), None)
    if made is None:
        return None
    below = {edge.downstream for edge in snapshot.edges if edge.upstream == made.id}
    below |= {edge.downstream for edge in snapshot.edges if edge.upstream in below}
    logs = [op for op in snapshot.ops if op.id in below and op.name == "log" and op.phase != "backward"]
    eps = inside_one(dtype)
    edit = edit_result(made, f"clamp({eps}, 1 - {eps})") if len(logs) > 1 else None
    if edit is None:
        return None
    text = (
        f"The loss takes log(p) and log(1 - p) of the same probability: clamp it to a small eps ({eps}) from both ends "
        "where it is made."
    )
    return edit.remedy(text, Change("clamp", made.id, "out", (float(eps), 1 - float(eps))))


def _underflowed(snapshot: Snapshot, operand: str) -> bool:
    """Whether an exponential upstream underflowed to 0."""
    return any(
        op.name in ("exp", "exp2") and op.outputs and holds_zero(op.outputs[0])
        for op in makers(snapshot, operand, depth=4)
    )


def _besides(made: list[str], *, underflowed: bool) -> tuple[Remedy, ...]:
    """What else helps, by what made the operand."""
    above = set(made)
    if "sigmoid" in above:
        text = (
            "Compute the log-probability from the logits: F.logsigmoid, or F.binary_cross_entropy_with_logits "
            "(BCEWithLogitsLoss) on the value before the sigmoid; it cannot saturate."
        )
        return (Remedy(text, "F.binary_cross_entropy_with_logits(logits, target)"),)
    if "softmax" in above:
        text = "Replace softmax followed by log by F.log_softmax (or F.cross_entropy on the logits)."
        return (Remedy(text, "F.log_softmax(logits, dim=-1)"),)
    if underflowed:
        text = "exp underflowed to 0 before the logarithm: stay in log space, and add the terms with torch.logsumexp."
        return (Remedy(text, "torch.logsumexp(log_weights + log_densities, dim=-1)"),)
    if above & {"rand", "uniform", "rand_like"}:
        text = "The random draw may be exactly 0: use F.gumbel_softmax, Tensor.exponential_(), or draw in float32."
        return (Remedy(text, "g = -torch.empty_like(logits).exponential_().log()"),)
    if "div" in above:
        text = "Or write the loss without the logarithm of a ratio that may be 0: 1 - iou, GIoU, or log(a + eps) - "
        return (Remedy(text + "log(b + eps)."),)
    text = (
        "If it is a probability, work with logits: F.log_softmax, F.logsigmoid or F.binary_cross_entropy_with_logits."
    )
    return (Remedy(text),)
