"""Arithmetic on infinities that the program wrote itself: inf - inf, 0 * inf, inf / inf."""

from __future__ import annotations

from math import inf, isinf, isnan

from ..model import Cause, OperandValue, Origin, Remedy, Snapshot
from .edits import Edit, change, edit_operand, frame_of, is_plain
from .finding import Finding
from .numbers import plural, show
from .reading import (
    dtype_of,
    element,
    equation,
    made_infinity,
    made_nan,
    main_summary,
)
from .rewriting import Call, atom, call_of, filled, operand_text, target


def inf_arithmetic(snapshot: Snapshot) -> Finding | None:
    """An infinity that was written on purpose met inf - inf, 0 * inf or inf / inf.

    Certain: the operands at the failing element (or a term of the row and column, or the entries of the slice) were
    read: inf - inf, 0 * inf, inf / inf, or a sum that an infinity went into.
    Likely: NaN was made of operands without NaN, one of which holds infinities.
    """
    origin = snapshot.origin
    if origin is None or snapshot.source_value is not None:
        return None
    if not (made_nan(origin) or origin.derivative):
        summed = _summed(origin)
        return _declared(snapshot, origin, (summed,), "certain") if summed is not None else None
    clash = _clash(origin) or _slice_clash(origin) or _vector_clash(origin)
    if clash is not None:
        return _declared(snapshot, origin, (clash,), "certain")
    holding = [found for found in origin.inputs if found.pos_inf or found.neg_inf]
    if origin.derivative or not holding or any(found.nan for found in origin.inputs) or origin.op.endswith("softmax"):
        return None
    if origin.example is not None and not any(isinf(v) for o in origin.example.operands for v in o.values):
        return None
    worst = holding[0]
    count = plural(worst.pos_inf + worst.neg_inf, "infinity", "infinities")
    text = f"{origin.op} made NaN of operands without NaN; {worst.name or 'one'} holds {count}"
    return _declared(snapshot, origin, (text,), "likely")


def _summed(origin: Origin) -> str | None:
    """A sum or mean that a declared infinity went into: the result is infinite."""
    found = next((o for o in origin.example.operands if o.kind == "slice"), None) if origin.example else None
    if found is None or origin.op not in (*_SUMS, "logsumexp") or not made_infinity(origin):
        return None
    up, down, total = _infinities(found)
    if origin.op == "logsumexp":
        return f"logsumexp reads {plural(total, 'value')} that are all -inf, so it is -inf" if down == total else None
    if not (up or down) or any(given.nan for given in origin.inputs):
        return None
    which = plural(up + down, "infinity", "infinities")
    return equation(origin, f"{origin.op} of {total} values, {which} among them")


_SUMS = ("sum", "mean", "cumsum", "dot", "mv", "trace", "linalg_vector_norm", "mse_loss", "l1_loss")


def _clash(origin: Origin) -> str | None:
    a, b = element(origin, "self"), element(origin, "other")
    if origin.derivative and origin.op in ("logaddexp", "logaddexp2") and a is not None and a == b and isinf(a):
        return f"both operands of {origin.op} are {show(a)}, so its derivative exp({show(a)} - {show(a)}) is undefined"
    if origin.derivative:
        factors = [factor for factor in (a, b) if factor is not None and isinf(factor)]
        if origin.op != "mul" or element(origin, "grad") != 0 or not factors:
            return None
        return f"the derivative of a product multiplies the gradient 0 by the factor {show(factors[0])}: 0 * inf = nan"
    if a is not None and b is None and isinf(a) and origin.op in ("sin", "cos", "tan", "fmod", "remainder"):
        return equation(origin, f"{origin.op}({show(a)})")
    if a is None or b is None or not (isinf(a) or isinf(b)) or isnan(a) or isnan(b):
        return None
    match origin.op:
        case "mul" if a == 0 or b == 0:
            return equation(origin, f"{show(a)} * {show(b)}")
        case "div" | "true_divide" if isinf(a) and isinf(b):
            return equation(origin, f"{show(a)} / {show(b)}")
        case "add" if isinf(a) and isinf(b) and a != b:
            return equation(origin, f"{show(a)} + {show(b)}")
        case "sub" | "rsub" if a == b:
            return equation(origin, f"{show(a)} - {show(b)}")
        case _:
            return None


def _slice_clash(origin: Origin) -> str | None:
    found = next((o for o in origin.example.operands if o.kind == "slice"), None) if origin.example else None
    if found is None:
        return None
    up, down, total = _infinities(found)
    if origin.op == "logsumexp" and down and down == total:
        verb = "its derivative exp(x - logsumexp) is exp(-inf - -inf), undefined" if origin.derivative else "it is -inf"
        return f"logsumexp reads {plural(total, 'value')} that are all -inf, so {verb}"
    if up and down:
        return equation(origin, f"{origin.op} of {plural(up, 'value')} inf and {plural(down, 'value')} -inf")
    if (up or down) and origin.op in ("std", "var", "softmax", "log_softmax", "std_mean", "var_mean"):
        if origin.op.endswith("softmax") and not up:
            return None
        return equation(origin, f"{origin.op} of a slice with {plural(up + down, 'infinity', 'infinities')}")
    return None


def _infinities(found: OperandValue) -> tuple[int, int, int]:
    if found.summary is not None:
        return found.summary.pos_inf, found.summary.neg_inf, found.summary.numel
    up = sum(isinf(v) and v > 0 for v in found.values)
    return up, sum(isinf(v) and v < 0 for v in found.values), len(found.values)


def _vector_clash(origin: Origin) -> str | None:
    row = next((o for o in origin.example.operands if o.kind == "row"), None) if origin.example else None
    column = next((o for o in origin.example.operands if o.kind == "column"), None) if origin.example else None
    if row is None or column is None or any(isnan(v) for v in (*row.values, *column.values)):
        return None
    for i, (a, b) in enumerate(zip(row.values, column.values, strict=False)):
        if isinf(a) and b == 0 or a == 0 and isinf(b):
            return equation(origin, f"... + {show(a)} * {show(b)} (term {i}) + ...")
    products = {a * b for a, b in zip(row.values, column.values, strict=False)}
    if float("inf") in products and float("-inf") in products:
        return equation(origin, "... + inf + ... - inf + ...")
    return None


def _declared(snapshot: Snapshot, origin: Origin, evidence: tuple[str, ...], confidence: str) -> Finding:
    holding = [found.label for found in origin.inputs if (found.pos_inf or found.neg_inf) and not found.nan]
    where = f", in {holding[0]}" if holding and holding[0] else ""
    told = (f"the infinity was written on purpose (a mask or a fill){where}",) if holding else ()
    advice: tuple[Remedy, ...]
    if origin.op == "mul" and not origin.derivative and (selected := _selected(snapshot, origin)) is not None:
        advice = (selected, _finite_mask(origin))
    elif origin.op in _SUMS and not origin.derivative:
        advice = (_left_out(snapshot, origin), _finite_mask(origin))
    else:
        advice = (_bounded(snapshot, origin), _finite_mask(origin))
    return Finding(Cause.INF_ARITHMETIC, confidence, (*evidence, *told), advice)


def _selected(snapshot: Snapshot, origin: Origin) -> Remedy | None:
    """0 * inf: the infinite factor filled where the other one is 0."""
    call = call_of(origin)
    a, b = element(origin, "self"), element(origin, "other")
    if call is None or len(call.spans) != 2:
        return None
    infinite = 1 if a == 0 or b is not None and isinf(b) else 0
    zero = call.operand(1 - infinite) or ""
    told = (
        f"Select instead of multiplying: where {zero} is 0 the product must not be formed, for 0 * inf is NaN; fill "
        "the other factor there (masked_fill, torch.where), which also keeps the gradient finite."
    )
    tried = change(snapshot, "where-zero", "other" if infinite else "self", 0.0)
    snippet = f"product = torch.where({zero} == 0, 0.0, product)"
    if not is_plain(zero):
        return Edit(snippet).remedy(told, tried)
    return edit_operand(origin, infinite, "{}.masked_fill(" + f"{atom(zero)} == 0, 0.0)", snippet).remedy(told, tried)


def _left_out(snapshot: Snapshot, origin: Origin) -> Remedy:
    """A sum or mean over infinities: they count as 0."""
    x = operand_text(origin, 0, "x")
    name = (main_summary(origin) or origin.inputs[0]).name if origin.inputs else "self"
    told = f"Take the masked elements out before the {origin.op} (torch.where, masked_fill): they count as 0 then."
    snippet = f"{target(x)} = {atom(x)}.masked_fill({atom(x)}.isinf(), 0.0)"
    edit = edit_operand(origin, 0, "{}.masked_fill({}.isinf(), 0.0)", snippet)
    return edit.remedy(told, change(snapshot, "finite", name, 0.0))


def _bounded(snapshot: Snapshot, origin: Origin) -> Remedy:
    """The infinite operands brought to a large finite number, at the op."""
    infinite = [i for i, given in enumerate(origin.inputs) if given.neg_inf or given.pos_inf]
    both = any(given.pos_inf for given in origin.inputs)
    ends, bound = ((-1e4, 1e4), "clamp(-1e4, 1e4)") if both else ((-1e4, inf), "clamp_min(-1e4)")
    told = (
        "Bring the mask's infinity to a large finite number such as -1e4 before this op: it vanishes in a softmax or "
        "a logsumexp all the same, its differences are finite, and 0 times it is 0."
    )
    snippet = f"x = x.{bound}"
    if len(infinite) == 2 and (call := call_of(origin)) is not None and len(call.spans) == 2 and not call.written:
        # The second first, so that the first one's place in the line stays.
        later = Call(call.with_operand(1, filled("{}." + bound, call.operand(1) or "")), call.span, call.spans)
        line = later.with_operand(0, filled("{}." + bound, later.operand(0) or ""))
        frame = frame_of(origin.source, call) if origin.source is not None else None
        return Edit(line, frame).remedy(told, change(snapshot, "clamp", "", *ends))
    position = infinite[0] if infinite else 0
    name = origin.inputs[position].name if origin.inputs else "self"
    tried = change(snapshot, "clamp", name or "self", *ends)
    if len(origin.inputs) > 1 and origin.op not in ("add", "sub", "mul", "div"):
        return Edit(snippet).remedy(told, tried)
    return edit_operand(origin, position, "{}." + bound, snippet).remedy(told, tried)


def _finite_mask(origin: Origin) -> Remedy:
    dtype = dtype_of(origin)
    lowest = f"torch.finfo(torch.{dtype}).min" if dtype.startswith(("float", "bfloat")) else "-1e4"
    return Remedy(
        "Or mask with a large finite negative such as -1e4 (or torch.finfo(dtype).min) instead of -inf, where the mask "
        "is made.",
        f"masked_fill(~mask, {lowest if origin.op != 'logsumexp' else '-1e4'})",
    )
