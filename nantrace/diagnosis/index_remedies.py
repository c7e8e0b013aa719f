"""What to change where an index, or a class label, is out of its range."""

from __future__ import annotations

import ast

from ..model import BadSource, IndexFacts, Origin, Remedy, Snapshot
from .data_remedies import for_parameter
from .edits import Edit, line_of
from .keywords import number_replaced, with_keyword
from .numbers import show
from .rewriting import is_number, operand_text, parsed, target
from .spots import Spot, spot_of


def for_range(snapshot: Snapshot, facts: IndexFacts) -> tuple[Remedy, ...]:
    """The table made long enough, or the index brought into its range; and the check that names the sample."""
    spot = spot_of(snapshot.origin)
    position = _position(spot)
    name = (spot.operand(position) if spot is not None and position is not None else None) or "indices"
    low = max(facts.low, 0)
    check = Remedy(
        "Check the indices where they are made, so that the batch and the sample can be named.",
        f"assert ({name} >= {low}).all() and ({name} < {facts.high}).all(), ({name}.min(), {name}.max())",
    )
    if facts.value < 0:
        text = (
            f"A negative index such as {facts.value} (padding, 'not found') wraps around or is refused: give it a row "
            "of its own or mask it out."
        )
        return (_brought_in(text, spot, position, name, "clamp_min(0)"), check)
    inside = _brought_in(
        f"Or map what is unknown to a row that exists, here the last, {facts.high - 1}.",
        spot, position, name, f"clamp({low}, {facts.high - 1})",
    )  # fmt: skip
    if facts.op.startswith("embedding"):
        return (_longer(facts), inside, check)
    past = "one" if facts.value == facts.high else facts.value - facts.high + 1
    off = Remedy(
        f"The index {facts.value} is {past} past the last row ({facts.high - 1}): check for an off-by-one or a table "
        "that is too short."
    )
    return (off, inside, check)


def for_label(snapshot: Snapshot, facts: IndexFacts) -> tuple[Remedy, ...]:
    """What a label out of range most often means: counted from 1, a mark for "none", or a class too many."""
    check = Remedy(
        "Find the samples with such labels: check them once, where the data set makes them.",
        f"assert ((target >= 0) & (target < {facts.high})).all(), target.unique()",
    )
    if facts.value == facts.high and facts.least != 0:
        return (_shifted(snapshot, facts), check)
    if facts.value < 0 or facts.value == 255:
        return (_ignored(snapshot, facts), check)
    needed = max(facts.value, facts.most or 0) + 1
    first = Remedy(
        f"Map the labels to [0, {facts.high}), or give the last layer at least {needed} outputs.",
        f"nn.Linear(..., {needed})",
    )
    return (first, check)


def for_unwritten(origin: Origin, name: str, source: BadSource | None) -> tuple[Remedy, ...]:
    """Read only what was written, or write it all at the start."""
    index = operand_text(origin, 1, "idx")
    read = Remedy(
        f"Read only rows of {name} that were written: check the range of the index against how far the buffer is "
        "filled.",
        f"assert {index}.max() < filled, ({index}.max(), filled)",
    )
    text = f"Initialise {name} with torch.zeros instead of torch.empty: uninitialised rows may hold anything."
    if source is not None and source.kind in ("parameter", "buffer"):
        made = for_parameter(source)
        return (read, Remedy(text, made.code, change=made.change, replaces=made.replaces))
    code = f"{name.rpartition('.')[2]} = torch.zeros(...)  # instead of torch.empty(...)"
    return (read, Remedy(text, code))


def _longer(facts: IndexFacts) -> Remedy:
    rows = max(facts.value, facts.most or 0) + 1
    text = (
        f"Make the table as large as the vocabulary: at least {rows} rows (tokens added to the tokenizer need "
        "model.resize_token_embeddings), or map unknown ids to one that exists."
    )
    edit = _first_argument(facts, rows)
    if edit is None:
        return Remedy(text, f"nn.Embedding({rows}, {facts.table_shape[-1] if facts.table_shape else 'dim'})")
    return Remedy(text, edit.code, replaces=edit.replaces)


def _first_argument(facts: IndexFacts, rows: int) -> Edit | None:
    """The line that made the embedding, with its number of rows written anew."""
    tree = parsed(facts.made.code) if facts.made is not None else None
    calls = [node for node in (ast.walk(tree) if tree is not None else ()) if _makes_embedding(node)]
    if facts.made is None or len(calls) != 1 or not isinstance(calls[0], ast.Call) or not calls[0].args:
        return None
    first = calls[0].args[0]
    return number_replaced(facts.made, (first.col_offset, first.end_col_offset or 0), float(facts.high), str(rows))


def _makes_embedding(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Call(func=ast.Name(id=name)):
            return name.startswith("Embedding")
        case _:
            return False


def _brought_in(text: str, spot: Spot | None, position: int | None, name: str, call: str) -> Remedy:
    edit = spot.with_operand(position, "{}." + call) if spot is not None and position is not None else None
    if edit is None:
        return Remedy(text, f"{target(name)} = {name}.{call}")
    return Remedy(text, edit.code, replaces=edit.replaces)


def _position(spot: Spot | None) -> int | None:
    """Which operand is the index: the only one of a module's call, else the last that is no number."""
    texts = [spot.operand(i) for i in range(len(spot.call.spans))] if spot is not None else []
    found = [i for i, text in enumerate(texts) if not is_number(text)]
    return found[-1] if found else None


def _shifted(snapshot: Snapshot, facts: IndexFacts) -> Remedy:
    text = (
        "The largest label equals the number of classes: labels that start at 1 must be shifted to start at 0, or the "
        f"last layer needs {facts.value + 1} outputs."
    )
    spot = spot_of(snapshot.origin)
    edit = spot.with_operand(1, "{} - 1") if spot is not None and facts.least is not None else None
    if edit is None:
        return Remedy(text, "target = target - 1")
    return Remedy(text, edit.code, replaces=edit.replaces)


def _ignored(snapshot: Snapshot, facts: IndexFacts) -> Remedy:
    text = f"If {show(facts.value)} marks labels to be left out, say so with ignore_index."
    frame = line_of(snapshot.origin.source) if snapshot.origin is not None else None
    for function in ("cross_entropy", "nll_loss"):
        edit = with_keyword(frame, function, "ignore_index", str(facts.value))
        if edit is not None:
            return Remedy(text, edit.code, replaces=edit.replaces)
    return Remedy(text, f"F.cross_entropy(logits, target, ignore_index={facts.value})")
