"""Composes the picture of a snapshot: what the boxes and the links say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise

from ..model import Diagnosis, Edge, Op, Snapshot, Status, TensorSummary
from . import numbers
from .choosing import Choice, Folded, choose
from .clusters import Home, home, nested
from .ends import ends_of, kind_of, origin_lines, tensor_lines
from .harmless import shorten
from .headline import headline
from .picture import Box, Link, Picture
from .words import name, place, state

_MOST_MODULES = 60
_MOST_FOLD_LINKS = 2  # a folded box into and out of everything is a knot
_SIDES = {"path": "on the path", "before": "upstream", "after": "downstream", "between": "between them"}


def compose(snapshot: Snapshot, diagnosis: Diagnosis) -> Picture:
    """The view of ops: origin and path drawn, the rest folded."""
    ops = {op.id: op for op in snapshot.ops}
    choice = choose(snapshot)
    homes: dict[Home, list[Box]] = defaultdict(list)
    box_of: dict[int, str] = {}
    for one in choice.shown:
        box_of[one] = f"op{one}"
        homes[home([ops[one]], snapshot.modules)].append(_op_box(snapshot, ops, ops[one], choice.loss == one))
    for number, fold in enumerate(choice.folds):
        identity = f"fold_{fold.side}{number}"
        box_of |= dict.fromkeys(fold.ids, identity)
        homes[home((ops[one] for one in fold.ids), snapshot.modules)].append(_fold_box(identity, fold, ops))
    every = _once([*_links(snapshot, ops, box_of), *_path_links(snapshot, box_of)])
    links = _thinned(every, box_of, snapshot.path)
    note = _note(snapshot, choice, len(every) - len(links))
    ends = ends_of(snapshot, box_of)
    homes[False, None] += ends.boxes
    links += ends.links
    return Picture(_title(snapshot, diagnosis), nested(homes, snapshot.modules), tuple(links), note)


def compose_modules(snapshot: Snapshot, diagnosis: Diagnosis) -> Picture:
    """The coarse view: one box per module and direction, as deep as at most 60 boxes allow."""
    ops = {op.id: op for op in snapshot.ops}
    groups = _modules(snapshot.ops)
    box_of = {op.id: f"module{number}" for number, members in enumerate(groups.values()) for op in members}
    boxes = [_module_box(snapshot, f"module{number}", key, groups[key]) for number, key in enumerate(groups)]
    links = [Link(link.tail, link.head, (), link.kind) for link in _links(snapshot, ops, box_of)]
    ends = ends_of(snapshot, box_of)
    boxes += ends.boxes
    links += ends.links
    note = f"{numbers.counted(len(ops), 'op')} by module"
    return Picture(_title(snapshot, diagnosis), nested({(False, None): boxes}, {}), _once(links), note)


def _title(snapshot: Snapshot, diagnosis: Diagnosis) -> tuple[str, ...]:
    told = headline(snapshot, diagnosis)
    lines = (f"{told.value}: {told.text}", told.place, f"cause: {diagnosis.cause}")
    return tuple(shorten(line, 110) for line in lines if line)


def _op_box(snapshot: Snapshot, ops: Mapping[int, Op], op: Op, is_loss: bool) -> Box:
    backward = op.phase == "backward"
    origin = snapshot.origin is not None and snapshot.origin.id == op.id and snapshot.source_value is None
    differentiated = ops.get(op.forward_id) if op.forward_id is not None else None
    title = name(op.name, 30)
    if backward:
        title = f"backward of {name(differentiated.name, 30)}" if differentiated is not None else f"{title} (backward)"
    if origin:
        lines = origin_lines(snapshot)
    else:
        held = state(op) if op.status is not Status.CLEAN else ""
        facts = ("the loss" if is_loss else "", _verb(op.status, held), place(op.source))
        lines = tuple(fact for fact in facts if fact)
    return Box(f"op{op.id}", title, lines, "", op.status.value, backward, origin)


def _verb(status: Status, held: str) -> str:
    return status.value + (f": {held}" if held and held != "finite" else "") if status is not Status.CLEAN else held


def _fold_box(identity: str, fold: Folded, ops: Mapping[int, Op]) -> Box:
    members = [ops[one] for one in fold.ids]
    return Box(identity, numbers.counted(len(members), "more op"), (_SIDES[fold.side], _held(members)), look="fold")


def _held(members: Iterable[Op]) -> str:
    found = list(members)
    bad = sum(any(output.nonfinite for output in op.outputs) for op in found)
    if not bad:
        return "all finite"
    return "all non-finite" if bad == len(found) else f"{numbers.grouped(bad)} of them non-finite"


def _links(snapshot: Snapshot, ops: Mapping[int, Op], box_of: Mapping[int, str]) -> Iterable[Link]:
    path = set(snapshot.path)
    for edge in snapshot.edges:
        tail, head = box_of.get(edge.upstream), box_of.get(edge.downstream)
        if tail is None or head is None or tail == head:
            continue
        tensor = _tensor(edge, ops)
        kind = kind_of(tensor)
        if "fold" in tail + head:
            on_path = edge.upstream in path and edge.downstream in path
            # A box of ops from before and after a shown op makes cycles: the path alone sets the order.
            cyclic = not on_path and (tail.startswith(("fold_between", "fold_path")) or head.startswith("fold_path"))
            yield Link(tail, head, (), kind if on_path else "folded", cyclic)
        else:
            yield Link(tail, head, tensor_lines(tensor), kind)
    origin = snapshot.origin
    made = ops.get(origin.id) if origin is not None and origin.id is not None else None
    if made is not None and made.forward_id is not None and {made.id, made.forward_id} <= box_of.keys():
        yield Link(box_of[made.forward_id], box_of[made.id], ("derivative of",), "derivative", free=True)


def _thinned(links: Iterable[Link], box_of: Mapping[int, str], path: tuple[int, ...]) -> list[Link]:
    """The links with few enough to a folded box, and words only where they touch the path."""
    on_path = {box_of[one] for one in path if one in box_of}
    ports: dict[tuple[str, str], set[str]] = defaultdict(set)
    kept = []
    for link in links:
        if link.kind == "folded" and "fold_path" in link.tail + link.head:
            continue
        if link.kind == "folded":
            fold, other, side = (link.tail, link.head, "out") if "fold" in link.tail else (link.head, link.tail, "in")
            others = ports[fold, side]
            if len(others) >= _MOST_FOLD_LINKS and other not in others:
                continue
            others.add(other)
        near = link.kind == "derivative" or link.tail in on_path or link.head in on_path
        kept.append(link if near or not on_path else Link(link.tail, link.head, (), link.kind, link.free))
    return kept


def _path_links(snapshot: Snapshot, box_of: Mapping[int, str]) -> Iterable[Link]:
    """The steps of the path that no edge shows (a value that went through a buffer or a view)."""
    known = {(box_of.get(edge.upstream), box_of.get(edge.downstream)) for edge in snapshot.edges}
    boxes = [box_of[one] for one in snapshot.path if one in box_of]
    for tail, head in pairwise(boxes):
        if tail != head and (tail, head) not in known:
            yield Link(tail, head, (), "nan")


def _tensor(edge: Edge, ops: Mapping[int, Op]) -> TensorSummary | None:
    outputs, inputs = ops[edge.upstream].outputs, ops[edge.downstream].inputs
    if edge.output < len(outputs):
        return outputs[edge.output]
    return inputs[edge.operand] if edge.operand < len(inputs) else None


def _once(links: Iterable[Link]) -> tuple[Link, ...]:
    """One link per pair of boxes; the worst kind names it."""
    worst = ("finite", "folded", "derivative", "inf", "nan", "both")
    found: dict[tuple[str, str], Link] = {}
    for link in links:
        known = found.get((link.tail, link.head))
        if known is None or worst.index(link.kind) > worst.index(known.kind):
            found[link.tail, link.head] = link
    return tuple(found.values())


def _note(snapshot: Snapshot, choice: Choice, links_left: int) -> str:
    """What the picture leaves out, in numbers."""
    ops_left = choice.unrelated + snapshot.ops_left_out
    told = f"{numbers.counted(ops_left, 'more op')} of the step" if ops_left else ""
    arrows = numbers.counted(links_left, "arrow") + " of folded ops" if links_left else ""
    left = " and ".join(part for part in (told, arrows) if part)
    return f"not drawn: {left}" if left else ""


def _modules(ops: Iterable[Op]) -> dict[Home, list[Op]]:
    """The ops by direction and module, the paths cut to the depth that gives few enough groups."""
    found = list(ops)
    for depth in (8, 6, 4, 3, 2, 1):
        groups: dict[Home, list[Op]] = defaultdict(list)
        for op in found:
            path = ".".join(op.module.split(".")[:depth]) if op.module is not None else None
            groups[op.phase == "backward", path].append(op)
        if len(groups) <= _MOST_MODULES:
            break
    return groups


def _module_box(snapshot: Snapshot, identity: str, key: Home, members: list[Op]) -> Box:
    backward, path = key
    title = "outside every module" if path is None else name(path, 48) or "the root module"
    origin = snapshot.origin is not None and any(op.id == snapshot.origin.id for op in members)
    statuses = {op.status for op in members}
    worst = next((one for one in (Status.GENERATED, Status.PROPAGATED, Status.KILLED) if one in statuses), Status.CLEAN)
    lines = [f"{numbers.counted(len(members), 'op')}, {_held(members)}"]
    if origin:
        lines = [*origin_lines(snapshot), *lines]
    return Box(identity, f"backward of {title}" if backward else title, tuple(lines), "", worst.value, backward, origin)
