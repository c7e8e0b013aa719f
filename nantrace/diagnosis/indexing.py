"""Indices that left their range, and indices that read rows nobody wrote."""

from __future__ import annotations

import re
from math import inf, isfinite

from ..model import Cause, IndexFacts, OperandValue, Origin, Remedy, Snapshot
from .finding import Finding
from .index_remedies import for_label, for_range, for_unwritten
from .numbers import number, plural, show, show_index
from .reading import summary

READING = (
    "index",
    "index_select",
    "embedding",
    "gather",
    "take",
    "take_along_dim",
    "embedding_bag",
    "getitem",
    "select",
)
LABELLED = ("nll_loss", "nll_loss2d", "nll_loss_nd", "cross_entropy", "cross_entropy_loss", "multi_margin_loss")
_MESSAGES = (
    r"index (?P<value>-?\d+) is out of bounds for dimension \d+ with size (?P<high>\d+)",
    r"Target (?P<value>-?\d+) is out of bounds",
    r"index out of range",
    r"indices? should be|out of bounds",
)


def indexing(snapshot: Snapshot) -> Finding | None:
    """An index is out of its range, or reads rows that were never written.

    Certain: the index that torch refused was read, with its place and the allowed range; or the index is known
    whose row is not finite.
    Likely: only the message of the exception tells the range; or a table is read of which some rows are not finite
    while the rest is.
    """
    if snapshot.index is not None:
        return _out_of_range(snapshot, snapshot.index)
    if snapshot.exception is not None:
        return _refused(snapshot)
    return _unwritten(snapshot)


def is_label(facts: IndexFacts) -> bool:
    """Whether the index that left its range is a class label."""
    return facts.op in LABELLED or facts.operand == "target"


def _out_of_range(snapshot: Snapshot, facts: IndexFacts) -> Finding:
    at = f"{facts.operand}{show_index(facts.position)} = {facts.value}"
    count = f"; {plural(facts.count, 'index is', 'indices are')} out of range" if facts.count > 1 else ""
    if is_label(facts):
        ignored = number((snapshot.origin.arguments if snapshot.origin else {}).get("ignore_index"))
        ignored = -100.0 if ignored is None else ignored
        text = (
            f"{at}, but there are {facts.high} classes: labels must lie in [0, {facts.high}) or equal "
            f"ignore_index={show(ignored)}"
            + (count.replace("indices are", "labels are").replace("index is", "label is"))
        )
        return Finding(Cause.INDEXING, "certain", (text,), for_label(snapshot, facts))
    if facts.op.startswith("embedding"):
        text = f"{at}, but the table has num_embeddings={facts.high}: indices must lie in [0, {facts.high}){count}"
    else:
        text = f"{at} in {facts.op}: the allowed range is {facts.low} <= index < {facts.high}{count}"
    table = (f"the indexed tensor has shape {_shape(facts.table_shape)}",) if facts.table_shape else ()
    return Finding(Cause.INDEXING, "certain", (text, *table), for_range(snapshot, facts))


def _refused(snapshot: Snapshot) -> Finding | None:
    exception = snapshot.exception
    if (
        exception is None
        or "index" not in exception.type.lower() + exception.message.lower()
        and "Target" not in exception.message
    ):
        return None
    for pattern in _MESSAGES:
        found = re.search(pattern, exception.message)
        if found is not None:
            break
    else:
        return None
    name = snapshot.origin.op if snapshot.origin is not None else "an indexing op"
    text = f"{name} refused: {exception.message.splitlines()[0][:160]}"
    known = found.groupdict()
    if known.get("value") and known.get("high"):
        text += f"; the allowed range is 0 <= index < {known['high']}"
    advice = Remedy(
        "Check the range of the indices (or labels) before this line.",
        "assert (indices >= 0).all() and (indices < table.shape[0]).all(), (indices.min(), indices.max())",
    )
    return Finding(Cause.INDEXING, "likely", (text,), (advice,))


def _unwritten(snapshot: Snapshot) -> Finding | None:
    origin, source = snapshot.origin, snapshot.source_value
    if origin is None or origin.derivative or origin.op not in READING:
        return None
    if source is not None and (source.kind in ("input", "label") or source.value == -inf):
        return None  # -inf was written, to forbid something: memory that nobody wrote holds anything else
    table = source.summary if source is not None else summary(origin, "self", "weight", "input")
    if table is None or not table.nonfinite or table.nonfinite >= table.numel:
        return None
    name = (
        source.name
        if source is not None
        else (table.label or table.name).removeprefix("buffer ").removeprefix("parameter ")
    )
    read, index = _of_kind(origin, "read"), _of_kind(origin, "index")
    evidence = []
    certain = False
    if (
        index is not None
        and index.value is not None
        and isfinite(index.value)
        and (read is None or any(not isfinite(v) for v in read.values))
    ):
        value = next((v for v in read.values if not isfinite(v)), None) if read is not None else None
        row = int(index.value)
        wraps = f" (which wraps to row {row + table.shape[0]})" if row < 0 and table.shape else ""
        where = f"index {row}{wraps} reads {name}[{row}]"
        evidence.append(f"{where} = {show(value)}" if value is not None else f"{where}, which is not finite")
        certain = True
    elif source is not None:
        evidence.append(f"{name}{show_index(source.index)} = {show(source.value)} was read")
    rows = _rows(table.shape, table.nonfinite)
    evidence.append(f"{rows} of {name} (shape {_shape(table.shape)}) are not finite while the rest is: never written")
    return Finding(
        Cause.INDEXING, "certain" if certain else "likely", tuple(evidence), for_unwritten(origin, name, source)
    )


def _of_kind(origin: Origin, kind: str) -> OperandValue | None:
    return next((o for o in origin.example.operands if o.kind == kind), None) if origin.example is not None else None


def _rows(shape: tuple[int, ...], bad: int) -> str:
    width = 1
    for size in shape[1:]:
        width *= size
    if shape and width and bad % width == 0:
        return f"{bad // width} of {shape[0]} rows"
    return f"{plural(bad, 'element')}"


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"
