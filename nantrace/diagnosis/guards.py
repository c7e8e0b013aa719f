"""What to write where there may be nothing to reduce: no elements, no label that counts, one element only."""

from __future__ import annotations

import ast

from ..model import Origin, Remedy, Snapshot
from .edits import Edit, called_with, change, guarded, is_plain
from .keywords import keyword_edit
from .numbers import number, show
from .reading import readers
from .rewriting import Call, atom, call_of


def for_empty(snapshot: Snapshot, origin: Origin) -> tuple[Remedy, ...]:
    """Count what has no elements as 0."""
    call = call_of(origin) or called_with(origin)
    x = (call.operand(0) if call is not None else None) or "x"
    snippet = f"loss = {atom(x)}.{origin.op}() if {atom(x)}.numel() else {atom(x)}.sum()  # the sum of nothing is 0"
    edit = Edit(snippet)
    if _is_scalar(origin, call):
        edit = guarded(origin, call, 0, "({call} if {x}.numel() else {x}.sum())", snippet)
    elif (template := _mean_along(origin, call)) is not None:
        edit = guarded(origin, call, 0, template, snippet)
    tried = change(snapshot, "zero")
    return (
        edit.remedy(
            f"Guard the empty case: {x} has no elements in this step, so count the term as 0 (the sum of nothing), or "
            "skip it.",
            tried,
        ),
        Remedy("Or divide the sum by a count of at least 1.", f"{atom(x)}.sum() / max({atom(x)}.numel(), 1)"),
    )


def _is_scalar(origin: Origin, call: Call | None) -> bool:
    """Whether the reduction gives one number: known from its result, or, where it was refused, from its arguments."""
    if origin.outputs:
        return origin.outputs[0].shape == ()
    return call is not None and len(call.spans) == 1


def _mean_along(origin: Origin, call: Call | None) -> str | None:
    """`x.mean(1)` as `x.sum(1) / max(x.shape[1], 1)`, for one known dimension."""
    dims = origin.arguments.get("dim")
    dims = dims if isinstance(dims, (list, tuple)) else [dims]
    if origin.op != "mean" or call is None or len(dims) != 1 or number(dims[0]) is None:
        return None
    x = call.operand(0) or ""
    method = f"{x}.mean("
    if not call.text.startswith(method):
        return None
    return "{x}.sum(" + call.text[len(method) :] + " / max({x}.shape[" + show(float(dims[0])) + "], 1)"


def for_ignored_labels(snapshot: Snapshot, origin: Origin, ignored: str) -> tuple[Remedy, ...]:
    """Count a batch without any label that counts as 0."""
    call = call_of(origin) or called_with(origin)
    tried = change(snapshot, "zero")
    summed = _summed(origin, call, "({x} != " + ignored + ").sum().clamp_min(1)")
    logits = call.operand(0) if call is not None else None
    skipped = guarded(
        origin,
        call,
        1,
        "({call} if ({x} != " + ignored + f").any() else {atom(logits or 'logits')}.sum() * 0.0)",
        f"if (labels != {ignored}).any():\n    loss = criterion(logits, labels)\nelse:\n    loss = logits.sum() * 0",
    )
    divide = summed.remedy(
        f"Sum the loss and divide by the count of labels that are not the ignore_index {ignored}, at least 1: a batch "
        "without any counts as 0.",
        tried,
    )
    skip = skipped.remedy(
        f"Skip the loss where no label counts (every one is the ignore_index {ignored}), or make sure that a batch "
        "always has one.",
        tried,
    )
    return (divide, skip) if summed.replaces is not None else (skip, divide)


def for_weightless_labels(snapshot: Snapshot, origin: Origin) -> tuple[Remedy, ...]:
    """Labels whose classes all have weight 0: divide by a total weight that is not 0."""
    call = call_of(origin)
    weight = _keyword(origin, "weight")
    edit = Edit('F.cross_entropy(logits, labels, weight=w, reduction="sum") / w[labels].sum().clamp_min(1e-8)')
    if weight is not None and is_plain(weight):
        edit = _summed(origin, call, f"{atom(weight)}[" + "{x}].sum().clamp_min(1e-8)", weighted=weight)
    told = "Divide by a total weight that cannot be 0, or give every class of the labels a weight above 0."
    return (edit.remedy(told, change(snapshot, "zero")),)


def _summed(origin: Origin, call: Call | None, divisor: str, *, weighted: str = "") -> Edit:
    """`F.cross_entropy(logits, labels)` as its sum over a divisor, where nothing else decides how it is reduced."""
    snippet = 'F.cross_entropy(logits, labels, reduction="sum") / ' + divisor.replace("{x}", "labels")
    called = call.text.partition("(")[0] if call is not None else ""
    decided = ["reduction", "label_smoothing", "size_average", "reduce"] + ([] if weighted else ["weight"])
    if call is None or not called.endswith(("cross_entropy", "nll_loss")) or len(call.spans) != 2:
        return Edit(snippet)
    if any(_keyword(origin, name) is not None for name in decided):
        return Edit(snippet)
    inside = call.text.rstrip()[:-1].rstrip().rstrip(",")
    if not is_plain(call.operand(1) or ""):
        return Edit(snippet)
    own = inside.replace("{", "").replace("}", "")
    if own != inside:
        return Edit(snippet)
    return guarded(origin, call, 1, f'{inside}, reduction="sum") / {divisor}', snippet)


def _keyword(origin: Origin, name: str) -> str | None:
    """The text of a keyword argument of the call that is the origin's expression."""
    text = origin.source.expression if origin.source is not None else ""
    try:
        node = ast.parse(text, mode="eval").body if text and text.isascii() else None
    except (SyntaxError, ValueError):
        return None
    given = node.keywords if isinstance(node, ast.Call) else []
    return next((ast.unparse(one.value) for one in given if one.arg == name), None)


def for_one_element(snapshot: Snapshot, origin: Origin, size: int) -> tuple[Remedy, ...]:
    """A deviation of one element: the biased estimate is 0 there."""
    told = f"A deviation of one element does not exist: use unbiased=False (correction=0), or guard groups of {size}."
    snippet = f"{origin.op}(dim=..., unbiased=False)"
    tried = change(snapshot, "zero")  # which is what the biased deviation of one element is
    call = call_of(origin)
    given = call.spans[1:] if call is not None else ((0, 0),) * 2
    if _keyword(origin, "unbiased") is not None:
        edit = keyword_edit(origin, "unbiased", "False", snippet)
    elif len(given) <= 1:
        edit = keyword_edit(origin, "correction", "0", snippet)
    else:
        edit = Edit(snippet)
    if any(op.name in ("div", "true_divide") for op in readers(snapshot, depth=1)):
        return (_divided_by(origin, edit, told), edit.remedy(told, tried))
    return (edit.remedy(told, tried),)


def _divided_by(origin: Origin, edit: Edit, told: str) -> Remedy:
    """The deviation is a denominator, so that 0 would not do."""
    text = f"{told} It is divided by, so it needs an eps as well."
    source = origin.source
    if edit.replaces is None or source is None or not source.expression:
        return Remedy(text, f"{origin.op}(dim=..., unbiased=False).clamp_min(1e-6)")
    start = source.code.index(source.expression)
    end = len(edit.code) - (len(source.code) - start - len(source.expression))
    return Remedy(text, f"{edit.code[:end]}.clamp_min(1e-6){edit.code[end:]}", replaces=edit.replaces)
