"""What to change where a derivative is infinite: an eps inside the op, or the mask before it."""

from __future__ import annotations

import ast
from math import inf

from ..model import Change, Origin, Remedy, Snapshot, Source
from .edits import Edit, change, edit_bound, edit_operand, frame_of
from .numbers import inside_one, margin
from .reading import dtype_of, main_operand, maker, op_by_id, operand, summary
from .rewriting import Call, atom, call_of, operand_text, parsed, span_of, target
from .widening import as_origin

_OF_ONE = ("sqrt", "rsqrt", "pow", "float_power", "log", "log2", "log10", "log1p", "reciprocal")
_SPECTRAL_GAP = "1e-4"


def for_root(snapshot: Snapshot, origin: Origin, op: str) -> tuple[Remedy, ...]:
    """How to keep a derivative finite where its op has a pole at zero."""
    eps = margin(dtype_of(origin)) if dtype_of(origin) != "float32" else "1e-12" if op == "sqrt" else "1e-8"
    x = operand_text(origin, 0, "x")
    if operand(origin, "other") is not None and op in ("div", "true_divide"):
        return (_denominator(snapshot, origin, eps),)
    if op == "hypot":
        text = f"Keep the two sides from being 0 at once, where the derivative is 0 / 0: a small eps ({eps}) for a 0."
        edit = edit_operand(origin, 0, "{}.where({} != 0, " + eps + ")", f"torch.sqrt(a ** 2 + b ** 2 + {eps})")
        return (edit.remedy(text, change(snapshot, "nonzero", "self", float(eps))),)
    if op in ("norm", "linalg_vector_norm", "std", "var", "dist"):
        text = f"Put a small eps under the root, where the derivative is undefined at zero: a safe {op}."
        return (Remedy(text, f"({atom(x)}.pow(2).sum(-1) + {eps}).sqrt()"),)
    if op.startswith("xlog"):
        return (_second_operand(snapshot, origin, op, eps),)
    if op in _OF_ONE:
        low = f"-1 + {inside_one(dtype_of(origin))}" if op == "log1p" else eps
        bound = -1 + float(inside_one(dtype_of(origin))) if op == "log1p" else float(eps)
        edit = _raised(origin, low, f"torch.{op}({atom(x)}.clamp_min({low}))")
        told = (
            f"Keep the operand of {op} away from {'-1' if op == 'log1p' else '0'} by a small eps ({eps}) inside it: "
            "clamp_min, or add it."
        )
        return (edit.remedy(told, change(snapshot, "clamp", "self", bound, inf)),)
    return _in_custom_backward(snapshot, origin, op)


def root_above(snapshot: Snapshot, origin: Origin) -> tuple[Remedy, ...]:
    """The operand of the root that made a denominator of 0: its own derivative is infinite there as well."""
    made = maker(snapshot, "other") if origin.op in ("div", "true_divide") else None
    moved = as_origin(snapshot, made) if made is not None and made.name == "sqrt" else None
    if made is None or moved is None or moved.origin is None:
        return ()
    edit = edit_operand(moved.origin, 0, "{}.clamp_min(1e-12)", "torch.sqrt(x.clamp_min(1e-12))")
    told = (
        "Keep the root that makes the denominator away from 0, by a small eps (1e-12) inside it: at 0 the derivative "
        "of the root is infinite too, so a guard of the division alone is not enough."
    )
    return (edit.remedy(told, Change("clamp", made.id, "self", (1e-12, inf))),) if edit.replaces is not None else ()


def _raised(origin: Origin, low: str, otherwise: str) -> Edit:
    """The operand clamped from below, in place of a clamp to 0 that it has already."""
    call = call_of(origin)
    text = (call.operand(0) if call is not None else None) or ""
    from_below = text.endswith((".clamp_min(0)", ".clamp_min(0.0)", ".clamp(min=0)", ".clamp(min=0.0)", ".clamp(0)"))
    bound = f"clamp_min({low})"
    return edit_bound(origin, 0, bound, otherwise) if from_below else edit_operand(origin, 0, "{}." + bound, otherwise)


def _denominator(snapshot: Snapshot, origin: Origin, eps: str) -> Remedy:
    b = operand_text(origin, 1, "denominator")
    below = summary(origin, "other")
    if below is not None and below.min is not None and below.min < 0:
        edit = edit_operand(origin, 1, "{}.where({} != 0, " + eps + ")", f"torch.where({b} == 0, {eps}, {b})")
        told = (
            f"Replace a denominator of 0 by a small eps ({eps}); it has both signs, so a clamp would change the rest."
        )
        return edit.remedy(told, change(snapshot, "nonzero", "other", float(eps)))
    edit = edit_operand(origin, 1, "{}.clamp_min(" + eps + ")", f"{target(b)} = {atom(b)}.clamp_min({eps})")
    told = f"Clamp the denominator away from 0 with a small eps ({eps})."
    return edit.remedy(told, change(snapshot, "clamp", "other", float(eps), inf))


def _second_operand(snapshot: Snapshot, origin: Origin, op: str, eps: str) -> Remedy:
    """xlogy(x, y) differentiates to log(y) and x / y: it is y that must not be 0."""
    y = operand_text(origin, 1, "y")
    edit = edit_operand(origin, 1, "{}.clamp_min(" + eps + ")", f"torch.{op}(x, {atom(y)}.clamp_min({eps}))")
    told = f"Keep the operand under the logarithm of {op} away from 0 by a small eps ({eps}): clamp_min."
    return edit.remedy(told, change(snapshot, "clamp", "other", float(eps), inf))


def _in_custom_backward(snapshot: Snapshot, origin: Origin, op: str) -> tuple[Remedy, ...]:
    """A backward that the user wrote divides by what may be 0: mend it there, or keep 0 from being its operand."""
    made = op_by_id(snapshot, origin.id)
    divides = made is not None and made.phase == "backward" and made.name in ("div", "true_divide")
    # The derivative is the user's own code, so the op to change is the one that the backward ran.
    tried = Change("clamp", made.id, "other", (1e-6, inf)) if divides and made is not None else None
    if origin.source is not None and ".apply(" not in origin.source.code:
        return (_beside_zero(snapshot, origin, op),)
    within = Remedy(
        f"Keep the derivative finite at zero: in the backward of {op}, clamp what it divides by (such as sqrt(|x|)) to "
        "a small eps.",
        "return grad / divisor.clamp_min(1e-6)  # in backward",
        change=tried,
    )
    before = _before_apply(origin)
    return (within, before) if before is not None else (within,)


def _beside_zero(snapshot: Snapshot, origin: Origin, op: str) -> Remedy:
    """A function of torch whose derivative divides by its operand: no user can mend it inside."""
    x = operand_text(origin, 0, "x")
    edit = edit_operand(origin, 0, "{}.where({} != 0, 1e-3)", f"{target(x)} = {atom(x)}.where({x} != 0, 1e-3)")
    told = f"Fill the exact zeros before {op} with a small eps: its derivative divides by its operand."
    return edit.remedy(told, change(snapshot, "nonzero", "self", 1e-3))


def _before_apply(origin: Origin) -> Remedy | None:
    """The operand of a custom Function's `apply` with its zeros filled, where 0 is what it failed at."""
    found = main_operand(origin)
    call = _apply(origin.source) if origin.source is not None else None
    if found is None or found.value != 0 or call is None or origin.source is None:
        return None
    x = call.operand(0) or ""
    if not x.replace(".", "").isidentifier():
        return None
    line = call.with_operand(0, f"{x}.where({x} != 0, 1e-12)")
    told = "Or fill the exact zeros before it: a filled element has no gradient."
    return Edit(line, frame_of(origin.source, call)).remedy(told)


def _apply(source: Source) -> Call | None:
    """The one call of `Function.apply` with one argument in the line."""
    tree = parsed(source.code)
    found = [
        node
        for node in (ast.walk(tree) if tree is not None else ())
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "apply"
    ]
    if len(found) != 1 or len(found[0].args) != 1:
        return None
    return Call(source.code, span_of(source.code, found[0]), (span_of(source.code, found[0].args[0]),))


def separated(snapshot: Snapshot, origin: Origin) -> tuple[Remedy, ...]:
    """How to keep the eigenvalues or singular values of a matrix apart."""
    a = operand_text(origin, 0, "a")
    template = "{} + " + _SPECTRAL_GAP + " * {}.new_ones({}.shape[-1]).cumsum(0).diag()"
    edit = edit_operand(origin, 0, template, f"{target(a)} = {template.replace('{}', atom(a))}")
    name = origin.inputs[0].name if origin.inputs else "A"
    square = bool(origin.inputs) and origin.inputs[0].shape[-2:-1] == origin.inputs[0].shape[-1:]
    told = (
        f"Separate equal eigenvalues: add a small diagonal whose entries differ (by an eps of {_SPECTRAL_GAP}) to the "
        "matrix, or use only the values, not the vectors, in the loss."
    )
    if not square:
        return (Remedy(told, f"{target(a)} = {atom(a)} + {_SPECTRAL_GAP} * torch.rand_like({a})"),)
    return (edit.remedy(told, change(snapshot, "spread", name, float(_SPECTRAL_GAP))),)


def double_where(snapshot: Snapshot, origin: Origin) -> Remedy:
    """How to fill the operand of a branch that a mask takes out."""
    text = (
        "Fill the operand before the op, not its result after it (double where): "
        "an unselected branch is differentiated too."
    )
    call = call_of(origin)
    divides = origin.op in ("div", "true_divide")
    x = call.operand(0) if call is not None else None
    if call is None or x is None or origin.source is None:
        op = origin.op
        snippet = f"safe = torch.where(mask, x, torch.ones_like(x))\nout = torch.where(mask, {op}(safe), fallback)"
        return Remedy(text, snippet, change=_fill(snapshot, origin, divides))
    position = 1 if divides and len(call.spans) > 1 else 0
    inner = call.operand(position) or x
    filled = _under_its_condition(call, inner, _filling(origin.op))
    if filled is not None:
        edit = Edit(call.with_operand(position, filled), frame_of(origin.source, call))
    else:
        edit = edit_operand(origin, position, _test(origin, divides), f"safe = torch.where(mask, {inner}, 1.0)")
    return edit.remedy(text, _fill(snapshot, origin, divides))


def _fill(snapshot: Snapshot, origin: Origin, divides: bool) -> Change | None:
    """What the double where does to the values: what the op cannot take becomes what it can."""
    if divides:
        return change(snapshot, "nonzero", "other", 1.0)
    if origin.op == "reciprocal":
        return change(snapshot, "nonzero", "self", 1.0)
    if _arcus(origin.op):
        return change(snapshot, "fill", "self", -1.0, 1.0, 0.0)
    if origin.op in ("exp", "exp2", "expm1"):
        return change(snapshot, "fill", "self", -inf, _largest(origin), 0.0)
    return change(snapshot, "fill", "self", 0.0, inf, 1.0)


def _test(origin: Origin, divides: bool) -> str:
    """The same for the code, by the operand's own value: a condition elsewhere may not be known yet in this line."""
    if divides or origin.op == "reciprocal":
        return "{}.where({} != 0, 1.0)"
    if _arcus(origin.op):
        return "{}.where({}.abs() < 1, 0.0)"
    if origin.op in ("exp", "exp2", "expm1"):
        return "{}.where({} < " + f"{_largest(origin):g}" + ", 0.0)"
    return "{}.where({} > 0, 1.0)"


def _largest(origin: Origin) -> float:
    """An exponent that a step can bear: its exponential is far from the end of the dtype."""
    return 8.0 if dtype_of(origin) == "float16" else 50.0


def _arcus(op: str) -> bool:
    return op in ("acos", "asin", "atanh", "erfinv")


def _filling(op: str) -> str:
    return "0.0" if _arcus(op) or op in ("exp", "exp2", "expm1") else "1.0"


def _under_its_condition(call: Call, inner: str, filling: str) -> str | None:
    """The operand filled by the user's own condition, where the op stands inside torch.where(condition, a, b)."""
    tree = parsed(call.line)
    chosen = []
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Call) and len(node.args) == 3 and _is_where(node.func):
            condition = call.line[slice(*span_of(call.line, node.args[0]))]
            for branch in (1, 2):
                start, end = span_of(call.line, node.args[branch])
                if start <= call.span[0] and call.span[1] <= end:
                    chosen.append((branch, condition))
    if len(chosen) != 1:
        return None
    branch, condition = chosen[0]
    first, second = (inner, filling) if branch == 1 else (filling, inner)
    return f"torch.where({condition}, {first}, {second})"


def _is_where(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "where"
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
    )
