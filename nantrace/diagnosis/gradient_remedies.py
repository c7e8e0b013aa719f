"""What to change where a derivative is infinite: an eps inside the op, or the mask before it."""

from __future__ import annotations

from ..model import Origin, Remedy
from .numbers import margin
from .reading import dtype_of, operand
from .rewriting import Call, atom, call_of, operand_text, rewritten


def for_root(origin: Origin, op: str) -> tuple[Remedy, ...]:
    """How to keep a derivative finite where its op has a pole at zero."""
    eps = margin(dtype_of(origin)) if dtype_of(origin) != "float32" else "1e-12" if op == "sqrt" else "1e-8"
    x = operand_text(origin, 0, "x")
    if operand(origin, "other") is not None and op in ("div", "true_divide"):
        b = operand_text(origin, 1, "denominator")
        return (
            Remedy(
                f"Clamp the denominator away from 0 with a small eps ({eps}).",
                rewritten(origin, 1, "{}.clamp_min(" + eps + ")", f"{b} = {atom(b)}.clamp_min({eps})"),
            ),
        )
    if op in ("norm", "linalg_vector_norm", "hypot", "std", "var", "dist"):
        return (
            Remedy(
                f"Put a small eps under the root, where the derivative is undefined at zero: a safe {op}.",
                f"({atom(x)}.pow(2).sum(-1) + {eps}).sqrt()",
            ),
        )
    if op in ("sqrt", "rsqrt", "pow", "float_power", "log", "log2", "log10", "log1p", "reciprocal", "xlogy"):
        return (
            Remedy(
                f"Keep the operand of {op} away from 0 by a small eps ({eps}) inside it: clamp_min, or add it.",
                rewritten(origin, 0, "{}.clamp_min(" + eps + ")", f"torch.{op}({atom(x)}.clamp_min({eps}))"),
            ),
        )
    return (
        Remedy(
            f"Keep the derivative finite at zero: in the backward of {op}, clamp the divisor (such as sqrt(|x|)) to "
            "a small eps.",
            "return grad / (2 * x.abs().sqrt()).clamp_min(1e-6)  # in backward",
        ),
    )


def double_where(origin: Origin) -> Remedy:
    """How to fill the operand of a branch that a mask takes out."""
    text = (
        "Fill the operand before the op, not its result after it (double where): "
        "an unselected branch is differentiated too."
    )
    call = call_of(origin)
    x = call.operand(0) if call is not None else None
    if call is None or x is None:
        op = origin.op
        return Remedy(
            text, f"safe = torch.where(mask, x, torch.ones_like(x))\nout = torch.where(mask, {op}(safe), fallback)"
        )
    divides = origin.op in ("div", "true_divide")
    position = 1 if divides and len(call.spans) > 1 else 0
    inner = call.operand(position) or x
    condition = _condition(call, position, inner)
    return Remedy(text, call.with_operand(position, f"torch.where({condition}, {inner}, 1.0)"))


def _condition(call: Call, position: int, inner: str) -> str:
    """The user's own condition where the op stands inside torch.where(condition, ...), else a sign test."""
    head = call.line[: call.span[0]]
    _, where, after = head.rpartition("where(")
    condition = after.rstrip().rstrip(",")
    if where and condition and condition.count("(") == condition.count(")") and "," not in condition:
        return condition
    return f"{atom(inner)} != 0" if position else f"{atom(inner)} > 0"
