"""The logarithm of zero or of a negative number."""

from __future__ import annotations

from math import isnan

from ..model import Cause, Origin, Remedy, Snapshot, TensorSummary
from .finding import Finding
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
from .rewriting import atom, operand_text, rewritten

_LOGARITHMS = {"log": 0.0, "log2": 0.0, "log10": 0.0, "log1p": -1.0}


def log_domain(snapshot: Snapshot) -> Finding | None:
    """The logarithm of zero or of a negative number was taken.

    Certain: the operand at the failing element was read and is at or below the pole: 0, for log1p -1, for logit
    also 1.
    Likely: only the operand's range is known, and it reaches the pole; or a log-determinant of a finite matrix is
    not finite.
    """
    origin = generated_at(snapshot)
    if origin is None:
        return None
    op = origin.op.removeprefix("special_")
    if op in ("xlogy", "xlog1py"):
        return _product_with_logarithm(snapshot, origin)
    if op == "logit":
        return _logit(origin)
    if _of_determinant(origin) and any(found.nonfinite for found in origin.outputs):
        made = "negative" if any(found.nan for found in origin.outputs) else "zero (the matrix is singular)"
        return Finding(
            Cause.LOG_DOMAIN,
            "likely",
            (f"the log-determinant of a finite matrix is not finite: its determinant is {made}",),
            (
                Remedy(
                    "Add a small multiple of the identity, eps * I, before the determinant.",
                    "torch.logdet(a + 1e-6 * eye)",
                ),
            ),
        )
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


def _of_determinant(origin: Origin) -> bool:
    """Whether the op is a log-determinant; torch.logdet chooses its NaN with `where`."""
    source = origin.source
    called = (source.expression or source.code or "") if source is not None else ""
    return origin.op in ("logdet", "slogdet", "linalg_slogdet") or origin.op == "where" and "logdet(" in called


def _product_with_logarithm(snapshot: Snapshot, origin: Origin) -> Finding | None:
    a, b = element(origin, "self"), element(origin, "other")
    end = -1.0 if origin.op.endswith("log1py") else 0.0
    if a is None or b is None or isnan(a) or isnan(b) or b > end or a == 0:
        return None
    text = equation(origin, f"{origin.op}({show(a)}, {show(b)})")
    return Finding(Cause.LOG_DOMAIN, "certain", (text,), _for_log(snapshot, origin, position=1))


def _logit(origin: Origin) -> Finding | None:
    x, eps = main_element(origin), dtype_of(origin)
    if x is None or 0 < x < 1 or isnan(x):
        return None
    text = equation(origin, f"logit({show(x)}) = log({show(x)} / (1 - {show(x)}))")
    advice = Remedy(
        "Give logit an eps, or keep the logits from before the sigmoid.", f"torch.logit(p, eps={inside_one(eps)})"
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
    dtype = dtype_of(origin)
    eps = margin(dtype)
    x = operand_text(origin, position, "x")
    name = origin.op if position == 0 else "log"
    made = list(makers(snapshot, "other" if position else "self", depth=4))
    above = [op.name for op in made]
    saturated = _saturated(snapshot)
    underflowed = any(op.name in ("exp", "exp2") and op.outputs and holds_zero(op.outputs[0]) for op in made)
    advice = [
        Remedy(
            f"Keep the operand of {name} above 0: clamp it to (or add) a small eps such as {eps}.",
            rewritten(origin, position, "{}.clamp_min(" + eps + ")", f"torch.{name}({atom(x)}.clamp_min({eps}))"),
        )
    ]
    if "sigmoid" in above:
        advice.insert(
            0,
            Remedy(
                "Compute the log-probability from the logits: F.logsigmoid, or F.binary_cross_entropy_with_logits "
                "(BCEWithLogitsLoss) on the value before the sigmoid; it cannot saturate.",
                "F.binary_cross_entropy_with_logits(logits, target)",
            ),
        )
    elif saturated == "softmax":
        advice.insert(
            0,
            Remedy(
                "Replace softmax followed by log by F.log_softmax (or F.cross_entropy on the logits).",
                "F.log_softmax(logits, dim=-1)",
            ),
        )
    elif underflowed:
        advice.insert(
            0,
            Remedy(
                "exp underflowed to 0 before the logarithm: stay in log space, and add the terms with torch.logsumexp.",
                "torch.logsumexp(log_weights + log_densities, dim=-1)",
            ),
        )
    elif set(above) & {"rand", "uniform", "rand_like"}:
        advice.append(
            Remedy(
                "The random draw may be exactly 0: use F.gumbel_softmax, Tensor.exponential_(), or draw in float32.",
                "g = -torch.empty_like(logits).exponential_().log()",
            )
        )
    elif "div" in above:
        advice.append(
            Remedy(
                "Or write the loss without the logarithm of a ratio that may be 0: 1 - iou, GIoU, or log(a + eps) - "
                "log(b + eps)."
            )
        )
    if not underflowed and not set(above) & {"sigmoid", "softmax", "rand", "uniform", "rand_like", "div"}:
        advice.append(
            Remedy(
                "If it is a probability, work with logits: F.log_softmax, F.logsigmoid or "
                "F.binary_cross_entropy_with_logits.",
            )
        )
    return tuple(advice)
