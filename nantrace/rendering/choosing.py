"""Which ops of a graph are worth drawing, and which are folded into counted boxes.

Reads a snapshot, knows nothing of how a graph is drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ..model import Op, Snapshot, Status

_MOST_OPS = 44  # with folds, leaves and symptom about 60 boxes: more than that no layout keeps readable
_PARTS = {"before": 2, "between": 1, "after": 1}  # boxes of folded ops on each side, per direction
_SEEDS = frozenset({"ones_like", "ones", "full_like", "detach", "alias", "item"})
_PATH_HEAD = 7
_PATH_TAIL = 5
_MOST_NEIGHBOURS = 4  # on one side of one op: a row of ten siblings says no more than four
_SHORT_PATH = 8  # whose neighbours are drawn as well


@dataclass(frozen=True, slots=True)
class Folded:
    """Ops that stand in one box. `side` is "path", "before", "after" or "between"."""

    ids: tuple[int, ...]
    side: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What to draw of a snapshot."""

    shown: tuple[int, ...]  # in order of execution
    folds: tuple[Folded, ...]
    loss: int | None  # the op that made the loss, where one stands out
    unrelated: int  # ops that neither reach nor are reached from what is shown


@dataclass(slots=True)
class _Neighbours:
    up: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    down: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))


def choose(snapshot: Snapshot) -> Choice:
    """The origin, the path, the forward op of a backward origin, the loss, and what touches them."""
    ops = {op.id: op for op in snapshot.ops}
    near = _neighbours(snapshot, ops)
    path = [one for one in snapshot.path if one in ops]
    middle = path[_PATH_HEAD : len(path) - _PATH_TAIL] if len(path) > _PATH_HEAD + _PATH_TAIL else []
    loss = _loss(snapshot)
    shown: dict[int, None] = {}
    for one in _by_importance(snapshot, ops, near, path, loss):
        if len(shown) == _MOST_OPS:
            break
        if one in ops and one not in middle:
            shown[one] = None
    folds, unrelated = _fold(ops, near, set(shown), middle)
    return Choice(tuple(sorted(shown)), folds, loss if loss in shown else None, unrelated)


def _neighbours(snapshot: Snapshot, ops: dict[int, Op]) -> _Neighbours:
    near = _Neighbours()
    for edge in snapshot.edges:
        if edge.upstream in ops and edge.downstream in ops and edge.upstream != edge.downstream:
            near.up[edge.downstream].append(edge.upstream)
            near.down[edge.upstream].append(edge.downstream)
    return near


def _by_importance(
    snapshot: Snapshot, ops: dict[int, Op], near: _Neighbours, path: list[int], loss: int | None
) -> Iterator[int]:
    origin = snapshot.origin.id if snapshot.origin is not None else None
    heads = [origin] if origin is not None and origin in ops else []
    heads += [forward for one in heads if (forward := ops[one].forward_id) is not None and forward in ops]
    yield from heads
    yield from path
    if loss is not None:
        yield loss
    if not heads and not path:
        yield from [op.id for op in snapshot.ops if op.status is not Status.CLEAN][:12]
    for one in heads:
        yield from near.up[one][:_MOST_NEIGHBOURS]
    for one in heads:
        yield from near.down[one][:_MOST_NEIGHBOURS]
        if len(near.up[one]) <= 2:
            for upstream in near.up[one]:
                yield from near.up[upstream][:2]
    if len(path) <= _SHORT_PATH:
        for one in path:
            yield from near.up[one][:_MOST_NEIGHBOURS]
        for one in path:
            yield from near.down[one][:_MOST_NEIGHBOURS]


def _loss(snapshot: Snapshot) -> int | None:
    """The last one-element result before the backward pass began (its first gradient apart)."""
    backward = min((op.id for op in snapshot.ops if op.phase == "backward"), default=None)
    forward = [
        op
        for op in snapshot.ops
        if op.phase in ("forward", "loss") and op.name not in _SEEDS and (backward is None or op.id < backward)
    ]
    last = max(forward, key=lambda op: op.id, default=None)
    return last.id if last is not None and last.outputs and last.outputs[0].numel == 1 else None


def _fold(ops: dict[int, Op], near: _Neighbours, shown: set[int], middle: list[int]) -> tuple[tuple[Folded, ...], int]:
    """The hidden ops in groups that hang together and lie on the same side of what is shown."""
    hidden = {one for one in ops if one not in shown and one not in middle}
    after = _reached(shown, near.down.__getitem__) & hidden
    before = _reached(shown, near.up.__getitem__) & hidden
    sides = {"before": before - after, "between": before & after, "after": after - before}
    folds = [Folded(tuple(middle), "path")] if middle else []
    for side, members in sides.items():
        for backward in (False, True):
            part = {one for one in members if (ops[one].phase == "backward") is backward}
            folds += [Folded(tuple(sorted(group)), side) for group in _groups(part, near, _PARTS[side])]
    return tuple(folds), len(hidden - before - after)


def _groups(members: set[int], near: _Neighbours, most: int) -> list[list[int]]:
    """What hangs together, in at most so many groups: a row of boxes that say "1 more op" helps nobody."""
    parts = sorted(_connected(members, near), key=len, reverse=True)
    if len(parts) > most:
        parts = [*parts[: most - 1], [one for part in parts[most - 1 :] for one in part]]
    return parts


def _reached(start: Iterable[int], step: Callable[[int], list[int]]) -> set[int]:
    found: set[int] = set()
    waiting = list(start)
    while waiting:
        for one in step(waiting.pop()):
            if one not in found:
                found.add(one)
                waiting.append(one)
    return found


def _connected(members: set[int], near: _Neighbours) -> Iterator[list[int]]:
    left = set(members)
    while left:
        part = [left.pop()]
        for one in part:
            for other in (*near.up[one], *near.down[one]):
                if other in left:
                    left.remove(other)
                    part.append(other)
        yield part
