"""Functions applied outside their domain: root, power, arcus and their kin."""

from __future__ import annotations

from math import inf, isfinite, isnan

from ..model import Cause, Origin, Remedy, Snapshot
from .edits import change, edit_bound, edit_operand
from .finding import Finding
from .numbers import fractional, inside_one, limits, margin, number, plural, show, show_index
from .reading import (
    dtype_of,
    element,
    equation,
    generated_at,
    main_element,
    main_operand,
    main_summary,
    maker,
    summary,
)
from .rewriting import atom, operand_text, submodule

_BOUNDS = {
    "acos": (-1.0, 1.0, "[-1, 1]"),
    "asin": (-1.0, 1.0, "[-1, 1]"),
    "atanh": (-1.0, 1.0, "(-1, 1)"),
    "erfinv": (-1.0, 1.0, "(-1, 1)"),
    "acosh": (1.0, float("inf"), "[1, inf)"),
    "ndtri": (0.0, 1.0, "(0, 1)"),
    "entr": (0.0, float("inf"), "[0, inf)"),
}
_POLES = ("lgamma", "digamma", "polygamma", "mvlgamma", "gammaln", "psi")


def sqrt_domain(snapshot: Snapshot) -> Finding | None:
    """The square root of a negative number was taken.

    Certain: the operand at the failing element was read and is negative. Where it is a difference, the rounding
    error of its terms is compared with it.
    Likely: only the operand's range is known, and it goes below 0.
    """
    origin = generated_at(snapshot, "sqrt", "rsqrt", "batch_norm")
    if origin is None:
        return None
    if origin.op == "batch_norm":
        return _negative_variance(origin)
    x, found = main_element(origin), main_summary(origin)
    if x is not None:
        if not x < 0:
            return None
        evidence, confidence = [equation(origin, f"{origin.op}({show(x)})")], "certain"
    else:
        if found is None or found.min is None or found.min >= 0 or found.nonfinite:
            return None
        evidence, confidence = [f"{origin.op} was taken of values down to {show(found.min)}"], "likely"
    cancelled = cancellation(snapshot, x if x is not None else found.min if found is not None else None)
    if cancelled:
        evidence.append(cancelled)
    name = operand_text(origin, 0, "x")
    eps = margin(dtype_of(origin))
    edit = edit_operand(origin, 0, "{}.clamp_min(" + eps + ")", f"torch.{origin.op}({atom(name)}.clamp_min({eps}))")
    advice = [
        edit.remedy(
            f"Clamp the negative operand before the root; a bound of {eps} instead of 0 also keeps the gradient "
            "finite.",
            change(snapshot, "clamp", "self", float(eps), inf),
        )
    ]
    if cancelled:
        advice.append(
            Remedy(
                "Compute the variance in a way that cannot cancel: x.var(), or the mean of (x - mean) ** 2.",
                "std = x.var(dim=-1, unbiased=False).clamp_min(" + eps + ").sqrt()",
            )
        )
    return Finding(Cause.SQRT_DOMAIN, confidence, tuple(evidence), tuple(advice))


def _negative_variance(origin: Origin) -> Finding | None:
    """A batch norm in eval mode takes the root of its running variance."""
    variance, found = element(origin, "running_var"), summary(origin, "running_var")
    eps = number(origin.arguments.get("eps")) or 0.0
    if variance is None or found is None or not variance + eps < 0:
        return None
    name = (found.label or "running_var").removeprefix("buffer ")
    advice = Remedy(
        "No data makes a variance negative: running_var was written or loaded wrongly. Load it from a good checkpoint, "
        "or reset the statistics and run in training mode until they are learned again.",
        f"{submodule(name.rpartition('.')[0])}.reset_running_stats()",
    )
    counted = f"{name} holds {plural(found.negative or 1, 'negative value')}, down to {show(found.min or variance)}"
    text = equation(origin, f"... / sqrt({show(variance)} + {show(eps)})")
    return Finding(Cause.SQRT_DOMAIN, "certain", (text, counted), (advice,))


def cancellation(snapshot: Snapshot, value: float | None) -> str | None:
    """A sentence where the origin's operand is a difference that rounding error alone can explain."""
    made = maker(snapshot, "self")
    if made is None or made.name not in ("sub", "rsub", "add") or value is None or len(made.inputs) < 2:
        return None
    sizes = [found.absmax for found in made.inputs if found.absmax is not None]
    grain = limits(made.outputs[0].dtype if made.outputs else made.inputs[0].dtype)
    if not sizes or grain is None:
        return None
    error = max(sizes) * grain.eps
    if abs(value) > 16 * error:
        return None
    return (
        f"it is the difference of two numbers as large as {show(max(sizes))}, which {grain.dtype} rounds by up to "
        f"{show(error)}: cancellation made {show(value)} of a value that cannot be negative"
    )


def pow_domain(snapshot: Snapshot) -> Finding | None:
    """A negative base was raised to a fractional exponent.

    Certain: base and exponent at the failing element were read: one negative, one fractional.
    Likely: the exponent is fractional, and of the base only the range is known.
    """
    origin = generated_at(snapshot, "pow", "float_power")
    if origin is None:
        return None
    base, exponent = element(origin, "self"), element(origin, "exponent")
    found = summary(origin, "self")
    if base is not None and exponent is not None:
        if not base < 0 or not fractional(exponent):
            return None
        evidence, confidence = equation(origin, f"({show(base)}) ** {show(exponent)}"), "certain"
    elif exponent is not None and fractional(exponent) and found is not None and found.negative and not found.nonfinite:
        evidence = (
            f"{plural(found.negative, 'negative value')} down to {show(found.min or 0)} raised to {show(exponent)}"
        )
        confidence = "likely"
    else:
        return None
    eps = margin(dtype_of(origin))
    name = operand_text(origin, 0, "x")
    edit = edit_operand(origin, 0, "{}.clamp_min(" + eps + ")", f"{atom(name)}.clamp_min({eps}) ** exponent")
    advice = (
        edit.remedy(
            "Clamp the negative base before the power (relu gives 0, whose gradient is infinite below exponent 1: "
            f"use {eps}).",
            change(snapshot, "clamp", "self", float(eps), inf),
        ),
        Remedy(
            "Or keep the sign apart: raise the abs to the power and multiply by the sign.",
            f"{atom(name)}.sign() * {atom(name)}.abs().clamp_min({eps}) ** exponent",
        ),
    )
    return Finding(Cause.POW_DOMAIN, confidence, (evidence,), advice)


def domain(snapshot: Snapshot) -> Finding | None:
    """A function was applied outside its domain: acos, asin, atanh, acosh, erfinv, lgamma and their kin.

    Certain: the operand at the failing element was read and is outside the interval, or is a pole.
    Likely: only the operand's range is known, and it leaves the interval.
    """
    origin = generated_at(snapshot)
    if origin is None:
        return None
    op = origin.op.removeprefix("special_")
    x, found = main_element(origin), main_summary(origin)
    if op in _POLES:
        if x is None or x > 0 or not isfinite(x) or fractional(x):
            return None
        edit = edit_operand(origin, 0, "{}.clamp_min(1e-6)", f"torch.{op}(x.clamp_min(1e-6))")
        advice = edit.remedy(
            f"Keep the argument of {op} above 0, with softplus or a clamp: at 0 and at every negative whole number "
            "it has a pole.",
            change(snapshot, "clamp", "self", 1e-6, inf),
        )
        return Finding(Cause.DOMAIN, "certain", (equation(origin, f"{op}({show(x)}), a pole"),), (advice,))
    if op not in _BOUNDS:
        return None
    low, high, interval = _BOUNDS[op]
    open_ends = interval.startswith("(") or op == "atanh"
    values = [x] if x is not None else [v for v in (found.min, found.max) if v is not None] if found else []
    out = [v for v in values if v < low or v > high or open_ends and v in (low, high)]
    if not out or any(isnan(v) for v in values):
        return None
    worst = out[-1]
    where = show_index(index.index) if (index := main_operand(origin)) is not None else ""
    evidence = [
        equation(origin, f"{op}({show(worst)})") if x is not None else f"{op} was given values up to {show(worst)}"
    ]
    name = operand_text(origin, 0, "x")
    beyond = min(abs(worst - low), abs(worst - high))
    grain = limits(dtype_of(origin))
    rounding = grain is not None and 0 < beyond <= 64 * grain.eps
    evidence.append(
        f"{op} is defined on {interval}; {atom(name)}{where} is outside by {show(beyond)}"
        + (f", a few roundings of {dtype_of(origin)} (eps {show(grain.eps)})" if rounding and grain is not None else "")
    )
    sure = "certain" if x is not None else "likely"
    return Finding(Cause.DOMAIN, sure, tuple(evidence), domain_remedies(snapshot, origin))


def domain_remedies(snapshot: Snapshot, origin: Origin) -> tuple[Remedy, ...]:
    """How to keep the operand inside the function's domain, and its derivative finite."""
    op = origin.op.removeprefix("special_")
    eps = inside_one(dtype_of(origin))
    name = operand_text(origin, 0, "x")
    small = float(eps)
    if op == "acosh":
        inside, ends = f"clamp_min(1 + {eps})", (1 + small, inf)
    elif op == "entr":
        inside, ends = f"clamp_min({eps})", (small, inf)
    elif op == "ndtri":
        inside, ends = f"clamp({eps}, 1 - {eps})", (small, 1 - small)
    else:
        inside, ends = f"clamp(-1 + {eps}, 1 - {eps})", (-1 + small, 1 - small)
    snippet = f"torch.{op}({atom(name)}.{inside})"
    # A clamp that stands there already has the domain's own two ends; one at a single end may bound the other too.
    edit = edit_operand(origin, 0, "{}." + inside, snippet) if inf in ends else edit_bound(origin, 0, inside, snippet)
    advice = [
        edit.remedy(
            f"Clamp the operand strictly inside the domain, a small eps ({eps}) short of its ends, where the "
            "derivative is infinite.",
            change(snapshot, "clamp", "self", *ends),
        )
    ]
    if op in ("acos", "asin"):
        advice.append(
            Remedy(
                "For an angle between vectors use atan2 of the cross and the dot product: exact near 0 and pi, no "
                "clamp needed.",
                "angle = torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1))",
            )
        )
    return tuple(advice)
