"""Division by exactly zero."""

from __future__ import annotations

import re
from math import inf, isinf, isnan

from ..model import Cause, Change, Origin, Remedy, Snapshot, TensorSummary
from .edits import Edit, change, edit_operand
from .finding import Finding
from .keywords import eps_of_call, keyword_edit
from .numbers import margin, number, plural, rounded, show, show_index
from .reading import (
    dtype_of,
    element,
    equation,
    generated_at,
    holds_zero,
    made_infinity,
    made_nan,
    main_element,
    main_summary,
    maker,
    makers,
    operand,
    place,
    summary,
    upstream,
)
from .rewriting import atom, operand_text, submodule, target

QUOTIENTS = ("div", "true_divide", "divide", "floor_divide", "remainder", "fmod")
_NORMS = ("layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm", "cudnn_batch_norm", "fused_rms_norm")


def zero_division(snapshot: Snapshot) -> Finding | None:
    """Something was divided by exactly zero.

    Certain: the divisor at the failing element (the base of a negative power, the norm in weight_norm) was read and is
    exactly 0 while the numerator is finite; or a normalisation with eps=0 was given equal values.
    Likely: only the divisor's range is known, and it holds zeros.
    """
    origin = generated_at(snapshot)
    if origin is None or not (made_infinity(origin) or made_nan(origin)):
        return None
    if origin.op in QUOTIENTS:
        return _quotient(snapshot, origin)
    if origin.op in ("reciprocal", "rsqrt"):
        return _of_one(snapshot, origin)
    if origin.op in ("pow", "float_power"):
        return _negative_power(snapshot, origin)
    if origin.op.startswith("weight_norm"):
        return _weight_norm(snapshot, origin)
    if origin.op == "addcdiv":
        divisor = element(origin, "tensor2")
        if divisor != 0:
            return None
        return _found(snapshot, origin, "tensor2", (f"{place(origin.example)}: addcdiv divided by 0",), "certain")
    return _normalisation(snapshot, origin) if origin.op in _NORMS else None


def denominator(origin: Origin) -> str | None:
    """The name of the operand that the origin divides by, where it divides by a tensor."""
    match origin.op:
        case "div" | "true_divide" | "divide" | "floor_divide" | "remainder" | "fmod":
            return "other"
        case "reciprocal" | "rsqrt":
            return "self"
        case "addcdiv":
            return "tensor2"
        case _:
            return None


def _quotient(snapshot: Snapshot, origin: Origin) -> Finding | None:
    top, bottom = element(origin, "self"), element(origin, "other")
    if bottom is not None:
        # An infinite numerator is inf whatever the denominator; 0 must be what made it.
        if bottom != 0 or top is not None and (isnan(top) or isinf(top)):
            return None
        found = operand(origin, "other")
        where = show_index(found.index) if found is not None else ""
        name = operand_text(origin, 1, "")
        evidence = (
            f"the denominator{f' {atom(name)}{where}' if name else ''} is exactly 0",
            equation(origin, f"{show(top) if top is not None else 'x'} / 0"),
        )
        return _found(snapshot, origin, "other", evidence, "certain")
    below = summary(origin, "other")
    if below is None or not holds_zero(below) or below.nonfinite:
        return None
    name = operand_text(origin, 1, "other")
    zeros = plural(below.zero, "exact zero") if below.zero else "exact zeros"
    text = f"the denominator {name} holds {zeros} among {below.numel} values"
    return _found(snapshot, origin, "other", (text,), "likely")


def _of_one(snapshot: Snapshot, origin: Origin) -> Finding | None:
    x = main_element(origin)
    if x == 0:
        text = "1 / sqrt(0)" if origin.op == "rsqrt" else "1 / 0"
        return _found(snapshot, origin, "self", (equation(origin, text),), "certain")
    found = main_summary(origin)
    if x is not None or found is None or not holds_zero(found) or found.nonfinite or not made_infinity(origin):
        return None
    return _found(
        snapshot,
        origin,
        "self",
        (f"{origin.op} of {plural(found.zero, 'exact zero') if found.zero else 'exact zeros'}",),
        "likely",
    )


def _negative_power(snapshot: Snapshot, origin: Origin) -> Finding | None:
    base, exponent = element(origin, "self"), element(origin, "exponent")
    if base != 0 or exponent is None or exponent >= 0:
        return None
    text = f"0 ** {show(exponent)} = 1 / 0 ** {show(-exponent)}"
    return _found(snapshot, origin, "self", (f"{place(origin.example)}: {text}",), "certain")


def _normalisation(snapshot: Snapshot, origin: Origin) -> Finding | None:
    eps = number(origin.arguments.get("eps"))
    # Statistics are taken in float32 also for half-precision inputs.
    if eps is None or rounded(eps, "float32") != 0:
        return None
    found = operand(origin, "input", "self")
    whole = found.summary if found is not None else None
    if whole is None or whole.min is None or whole.min != whole.max:
        return None
    values = f"{plural(whole.numel, 'equal value')} ({show(whole.min)})"
    text = f"{origin.op} of {values}: their variance is 0, and eps={show(eps)} is 0 too"
    layer = f"{submodule(origin.module)}.eps = 1e-5" if origin.module else "eps=1e-5"
    own = origin.source is not None and origin.op in origin.source.expression  # F.layer_norm(...), not a module's call
    edit = keyword_edit(origin, "eps", "1e-5", layer) if own else Edit(layer)
    advice = edit.remedy(f"Give {origin.op} an eps above 0, such as 1e-5.", change(snapshot, "argument", "eps", 1e-5))
    return Finding(Cause.ZERO_DIVISION, "certain", (text,), (advice,))


def _weight_norm(snapshot: Snapshot, origin: Origin) -> Finding | None:
    found = operand(origin, "v")
    whole = found.summary if found is not None and found.kind == "slice" else None
    if found is None or whole is None or whole.min != 0 or whole.max != 0:
        return None
    text = f"{origin.op} divides v by its norm, and the norm of {plural(whole.numel, 'zero')} is 0"
    advice = Remedy(
        "Give the rows of v that are zero a direction (weight_norm has no eps): initialise them, and do not prune or "
        "zero whole rows of a weight-normalised layer.",
        "with torch.no_grad():\n    v[v.norm(dim=1) == 0] = 1e-3",
        change=change(snapshot, "nonzero", "v", 1e-3),
    )
    return Finding(Cause.ZERO_DIVISION, "certain", (text,), (advice,))


def _found(snapshot: Snapshot, origin: Origin, name: str, evidence: tuple[str, ...], confidence: str) -> Finding:
    made = maker(snapshot, name)
    told = (f"it was made by {made.name}{_line(made.source.code if made.source else '')}",) if made is not None else ()
    return Finding(Cause.ZERO_DIVISION, confidence, (*evidence, *told), division_remedies(snapshot, origin, name))


def _line(code: str) -> str:
    return f" in `{code}`" if code else ""


def division_remedies(snapshot: Snapshot, origin: Origin, name: str) -> tuple[Remedy, ...]:
    """What to change where the origin divides by the operand of that name."""
    position = 2 if name == "tensor2" else 1 if name == "other" else 0
    below = summary(origin, name)
    if below is None and number(origin.arguments.get(name)) is not None:
        return (_plain_number(snapshot, origin, position, name),)
    built_in = eps_of_call(snapshot, origin)
    if built_in is not None:
        return (built_in,)
    made = [op.name for op in makers(snapshot, name, depth=2)]
    if below is not None and below.min is not None and below.min < 0:
        advice = [_not_zero(snapshot, origin, position, name)]
    elif below is not None and _counts(snapshot, name, below, operand_text(origin, position, "")):
        advice = [
            _clamped(snapshot, origin, position, name, "1"),
            Remedy("Or skip empty samples before this line, in the data loader or with the mask.", None),
        ]
    else:
        text = operand_text(origin, position, "denominator")
        advice = [
            _under_the_root(snapshot, origin, name)
            or _clamped(snapshot, origin, position, name, margin(dtype_of(origin))),
        ]
        if snapshot.phase != "optimizer":
            advice.append(
                Remedy(
                    "Or leave out what has nothing to divide by: an empty group, mask or constant row where "
                    f"{text} is 0."
                )
            )
    if {"norm", "linalg_vector_norm"} & set(made):
        advice.insert(1, Remedy("To normalise a vector, F.normalize has the eps built in.", "F.normalize(x, dim=-1)"))
    return tuple(advice)


def _counts(snapshot: Snapshot, name: str, below: TensorSummary, text: str) -> bool:
    """Whether the denominator is a count: whole numbers, or the sum of a mask of zeros and ones."""
    if "int" in below.dtype:
        return True
    made = next((op for op in makers(snapshot, name, depth=2) if op.name in ("sum", "count_nonzero", "bincount")), None)
    mask = made.inputs[0] if made is not None and made.inputs else None
    if made is None or mask is None:
        return False
    if made.name != "sum" or mask.dtype == "bool" or "int" in mask.dtype:
        return True
    above = upstream(snapshot, made.id, {0}, depth=1)
    if any(given.dtype == "bool" for op in above if op.name in ("to", "to_copy") for given in op.inputs):
        return True
    if mask.min is None or mask.min < 0 or mask.mean is None or mask.zero is None:
        return False
    if mask.max == 0:  # a mask that is all zeros looks like weights that are: its name decides
        return re.search(r"mask|count|num|valid|keep", text, re.IGNORECASE) is not None
    return mask.max == 1 and abs(mask.mean * mask.numel - (mask.numel - mask.zero)) < 0.5


def _clamped(snapshot: Snapshot, origin: Origin, position: int, name: str, bound: str) -> Remedy:
    """The denominator kept at the bound or above it."""
    text = operand_text(origin, position, "denominator")
    if bound == "1":
        told = (
            f"{text} counts or sums nothing here: give an empty group (an all-zero mask) a denominator of at least 1, "
            "so that 0 / 0 counts as 0."
        )
    else:
        told = f"Keep the denominator away from 0: clamp it to, or add, a small eps such as {bound}."
    edit = edit_operand(
        origin, position, "{}.clamp_min(" + bound + ")", f"{target(text)} = {atom(text)}.clamp_min({bound})"
    )
    return edit.remedy(told, change(snapshot, "clamp", name, float(bound), inf))


def _under_the_root(snapshot: Snapshot, origin: Origin, name: str) -> Remedy | None:
    """A denominator that is a root of 0: bounded inside the root, whose derivative is infinite at 0."""
    roots = (op for op in makers(snapshot, name, depth=2) if op.name == "sqrt" and op.inputs)
    root = next((op for op in roots if holds_zero(op.inputs[0])), None)
    if root is None:
        return None
    eps = "1e-8" if dtype_of(origin) == "float32" else margin(dtype_of(origin))
    line = Origin(root.name, root.module, source=root.source)
    edit = edit_operand(line, 0, "{}.clamp_min(" + eps + ")", "")
    if edit.replaces is None:
        return None
    told = (
        f"Keep the denominator away from 0 under its root: clamp what the root is taken of to a small eps such as "
        f"{eps}. A clamp after the root would leave the derivative of sqrt at 0, which is infinite."
    )
    return edit.remedy(told, Change("clamp", root.id, root.inputs[0].name, (float(eps), inf)))


def _not_zero(snapshot: Snapshot, origin: Origin, position: int, name: str) -> Remedy:
    """A denominator of either sign with its zeros replaced: a clamp would turn the negative ones around."""
    eps = margin(dtype_of(origin))
    text = operand_text(origin, position, "denominator")
    edit = edit_operand(origin, position, "{}.where({} != 0, " + eps + ")", f"torch.where({text} == 0, {eps}, {text})")
    told = (
        f"Replace a denominator of 0 by a small eps such as {eps}; it has both signs, so a clamp would change the rest."
    )
    return edit.remedy(told, change(snapshot, "nonzero", name, float(eps)))


def _plain_number(snapshot: Snapshot, origin: Origin, position: int, name: str) -> Remedy:
    """A Python number has no clamp_min."""
    counts = isinstance(origin.arguments.get(name), int)
    bound = "1" if counts else margin(dtype_of(origin))
    text = operand_text(origin, position, "denominator")
    edit = edit_operand(origin, position, "max({}, " + bound + ")", f"{target(text)} = max({text}, {bound})")
    told = (
        f"Keep {text} away from 0: give the {'count' if counts else 'schedule or count'} it comes from a lower bound."
    )
    return edit.remedy(told, change(snapshot, "argument", name, float(bound)))
