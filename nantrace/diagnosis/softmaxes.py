"""Softmax rows with nothing left in them."""

from __future__ import annotations

import ast
import re
from math import inf

from ..model import Cause, Change, Op, Origin, Remedy, Snapshot
from .edits import Edit, change, edit_operand, frame_of, is_plain
from .finding import Finding
from .keywords import keyword_edit
from .numbers import limits, number, plural, show_index
from .reading import (
    PLUMBING,
    element,
    equation,
    generated_at,
    made_nan,
    maker,
    makers,
    operand,
    summary,
    upstream,
)
from .rewriting import atom, call_at, call_of, operand_text, span_of, target

_SOFTMAXES = ("softmax", "log_softmax", "safe_softmax", "masked_softmax", "sparse_softmax", "softmin", "gumbel_softmax")
_MASK_ARGUMENTS = ("key_padding_mask", "src_key_padding_mask", "memory_key_padding_mask", "tgt_key_padding_mask")
_GUARD = (
    "Guard rows in which everything is masked (an empty sequence, padding only): leave them unmasked, which makes the "
    "row uniform and gives it no gradient, or drop the sample."
)


def masked_softmax(snapshot: Snapshot) -> Finding | None:
    """A softmax read a row in which every entry is -inf.

    Certain: the row was read and all its entries are -inf; or a softmax by hand subtracts the row's maximum, -inf,
    from -inf.
    Likely: finite scores and -inf alone made NaN, which only a row without a finite entry does.
    """
    origin = snapshot.origin
    if origin is None or snapshot.source_value is not None:
        return None
    if origin.op not in _SOFTMAXES and "attention" not in origin.op:
        return _softmax_by_hand(snapshot)
    row = operand(origin, "self", "input", "attn_mask", "scores")
    if row is not None and row.kind == "slice":
        whole = row.summary
        total, masked = (whole.numel, whole.neg_inf) if whole is not None else (len(row.values), _masked(row.values))
        if not total or masked != total:
            return None
        at = show_index(_row_index(origin))
        evidence = (
            f"row {at or '0'} of the {origin.op} holds nothing but -inf (all {plural(total, 'entry', 'entries')})"
        )
        return Finding(Cause.MASKED_SOFTMAX, "certain", (evidence, *_nan_rows(origin)), _for_row(snapshot, origin))
    scores = summary(origin, "self", "input", "attn_mask")
    # Finite numbers and -inf alone give NaN only where a row has no finite number at all.
    if scores is None or not scores.neg_inf or scores.nan or scores.pos_inf or not made_nan(origin):
        return None
    entries = plural(scores.neg_inf, "entry", "entries")
    evidence = f"the {origin.op} made NaN of finite scores and {entries} -inf: some row is all -inf"
    return Finding(Cause.MASKED_SOFTMAX, "likely", (evidence, *_nan_rows(origin)), _for_row(snapshot, origin))


def _softmax_by_hand(snapshot: Snapshot) -> Finding | None:
    origin = generated_at(snapshot, "sub")
    if origin is None:
        return None
    a, b = element(origin, "self"), element(origin, "other")
    made = maker(snapshot, "other")
    if a != float("-inf") or b != a or made is None or made.name not in ("amax", "max", "logsumexp"):
        return None
    text = equation(origin, f"-inf - -inf: the {made.name} of the row is -inf, so everything in it is masked")
    return Finding(Cause.MASKED_SOFTMAX, "certain", (text,), (_before_the_maximum(snapshot, made),))


def _masked(values: tuple[float, ...]) -> int:
    return sum(value == float("-inf") for value in values)


def _row_index(origin: Origin) -> tuple[int, ...]:
    index = list(origin.example.index) if origin.example is not None else []
    dim = number(origin.arguments.get("dim"))
    if index and dim is not None and -len(index) <= int(dim) < len(index):
        del index[int(dim)]
    return tuple(index)


def _nan_rows(origin: Origin) -> tuple[str, ...]:
    if not origin.outputs or not origin.outputs[0].nan:
        return ()
    out = origin.outputs[0]
    dim = number(origin.arguments.get("dim"))
    rank = len(out.shape)
    width = out.shape[int(dim)] if dim is not None and -rank <= int(dim) < rank else 0
    if not width or out.nan % width:
        return (f"{out.nan} of {out.numel} results are NaN",)
    return (f"{plural(out.nan // width, 'row')} of {out.numel // width} came out as NaN",)


def _for_row(snapshot: Snapshot, origin: Origin) -> tuple[Remedy, ...]:
    scores = operand_text(origin, 0, "scores")
    dim = _dimension(origin.arguments.get("dim"))
    opened = change(snapshot, "unmask", "self", dim)
    lowest = f"torch.finfo({atom(scores)}.dtype).min"
    end = limits(origin.inputs[0].dtype) if origin.inputs else None
    return (
        (_in_the_mask(snapshot, origin) or _open(origin, dim)).remedy(_GUARD, opened),
        edit_operand(
            origin,
            0,
            "{}.clamp_min(torch.finfo({}.dtype).min)",
            f"{target(scores)} = {atom(scores)}.masked_fill(pad, {lowest})",
        ).remedy(
            "Or mask with a large finite number: the row becomes uniform instead of NaN; zero its result afterwards.",
            change(snapshot, "clamp", "self", -end.max, inf) if end is not None else None,
        ),
    )


def _open(origin: Origin, dim: int) -> Edit:
    """The operand of the softmax with the rows filled that are masked as a whole."""
    snippet = "empty = pad.all(dim=-1, keepdim=True)  # rows without anything to attend to\npad = pad & ~empty"
    if call_of(origin) is None:
        return Edit(snippet)
    return edit_operand(origin, 0, "{}.masked_fill({}.isneginf()." + f"all({dim}, keepdim=True), 0.0)", snippet)


def _in_the_mask(snapshot: Snapshot, origin: Origin) -> Edit | None:
    """The padding mask that the line gives to an attention module, without the rows that it masks as a whole."""
    text = origin.source.expression if origin.source is not None else ""
    try:
        node = ast.parse(text, mode="eval").body if text else None
    except (SyntaxError, ValueError):
        return None
    given = node.keywords if isinstance(node, ast.Call) else []
    masks = [keyword for keyword in given if keyword.arg in _MASK_ARGUMENTS]
    if len(masks) != 1 or not _masks_by_truth(snapshot):
        return None
    mask = text[slice(*span_of(text, masks[0].value))]
    if not is_plain(mask):
        return None
    return keyword_edit(origin, masks[0].arg or "", f"{atom(mask)} & ~{atom(mask)}.all(dim=-1, keepdim=True)", "")


def _masks_by_truth(snapshot: Snapshot) -> bool:
    """Whether a boolean mask wrote the infinities: one of numbers cannot be inverted with ~."""
    filled = [op for op in makers(snapshot, "self", depth=4) if op.name == "masked_fill"]
    return any(given.dtype == "bool" for op in filled for given in op.inputs)


def _before_the_maximum(snapshot: Snapshot, made: Op) -> Remedy:
    """A softmax by hand: its rows must be opened before their maximum is taken."""
    source, dim = made.source, _dimension(made.arguments.get("dim"))
    call = call_at(source, made.name, made.module) if source is not None else None
    x = call.operand(0) if call is not None else None
    scores = next((op for op in upstream(snapshot, made.id, {0}, depth=1) if op.name not in PLUMBING), None)
    tried = Change("unmask", scores.id, "out", (dim,)) if scores is not None else None
    snippet = f"scores = scores.masked_fill(scores.isneginf().all({dim}, keepdim=True), 0.0)"
    if source is None or call is None or x is None or not re.fullmatch(r"[A-Za-z_]\w*", x):
        return Remedy(_GUARD, snippet, change=tried)
    frame = frame_of(source, call) if _is_whole(source.code) else None
    line = f"{x} = {x}.masked_fill({x}.isneginf().all({dim}, keepdim=True), 0.0)"
    edit = Edit(f"{line}\n{source.code}", frame) if frame is not None else Edit(snippet)
    return edit.remedy(_GUARD, tried)


def _dimension(given: object) -> int:
    """The one dimension that is reduced; the last where that is not known."""
    one = given[0] if isinstance(given, (list, tuple)) and len(given) == 1 else given
    found = number(one)
    return -1 if found is None else int(found)


def _is_whole(code: str) -> bool:
    """Whether the line is a statement of its own."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError):
        return False
    return len(body) == 1 and isinstance(body[0], (ast.Assign, ast.Return))
