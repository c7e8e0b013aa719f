"""Growth inside one step: through the calls of one module (time), or through the modules of a backward (depth)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..model import Event, History, Op
from .growth import Growth, growth

LEAST_CALLS = 8  # of one module in one step: it is used again, as in a recurrence
# What a growth through time has to reach: healthy recurrences grow a little too, and sums over time (forward) more.
_LEAST_TOTAL = {"gradient": 300.0, "forward": 1e4}


@dataclass(frozen=True, slots=True)
class Through:
    """A growth inside a step."""

    step: int
    kind: str  # "forward" | "gradient"
    module: str | None  # the module that was called again and again; None: through depth
    calls: int  # of that module in the step
    growth: Growth
    unit: str  # what one of the points is: "call of cell.w_h", "module call", "mm"


def reused(events: Iterable[Event]) -> dict[str, int]:
    """The modules that one step called often, with how often."""
    counts: dict[str, int] = {}
    for event in events:
        if event.kind == "forward" and event.output == 0:
            counts[event.module] = counts.get(event.module, 0) + 1
    return {module: count for module, count in counts.items() if count >= LEAST_CALLS}


def through_time(history: History, matters: Callable[[str, int], bool]) -> Through | None:
    """The first recorded step in which values or gradients grew from call to call of one module.

    `matters(kind, step)` says whether a growth there can have had a part in what came after.
    """
    steps: dict[int, list[Event]] = {}
    for event in history.events:  # once: a history may hold a million
        steps.setdefault(event.step, []).append(event)
    for record in history.steps:
        events = steps.get(record.step, [])
        calls = reused(events)
        found = [
            through
            for module, count in calls.items()
            for kind in ("gradient", "forward")
            if matters(kind, record.step)
            if (through := _along(record.step, kind, module, count, events)) is not None
        ]
        if found:
            return max(found, key=lambda one: (one.growth.points, one.kind == "gradient"))
    return None


def through_depth(history: History, step: int, ops: Iterable[Op]) -> Through | None:
    """The growth of the gradient in one step's backward, read from the replayed ops, else from the recorded events."""
    groups: dict[tuple[str, tuple[int, ...]], list[float]] = {}
    for op in ops:
        if op.phase == "backward" and op.outputs and op.outputs[0].absmax is not None and op.outputs[0].nonfinite == 0:
            groups.setdefault((op.name, op.outputs[0].shape), []).append(op.outputs[0].absmax)
    best: Through | None = None
    for (name, _), values in groups.items():
        found = growth(enumerate(values)) if len(values) >= 5 else None
        if found is not None and (best is None or found.points > best.growth.points):
            best = Through(step, "gradient", None, 0, found, name)
    if best is not None:
        return best
    gradients = [event for event in history.at(step) if event.kind == "gradient" and event.finite]
    found = growth(enumerate(event.absmax for event in gradients)) if len(gradients) >= 4 else None
    return Through(step, "gradient", None, 0, found, "module call") if found is not None else None


def _along(step: int, kind: str, module: str, calls: int, events: Iterable[Event]) -> Through | None:
    values = [event.absmax for event in events if event.kind == kind and event.module == module and event.output == 0]
    if len(values) < LEAST_CALLS // 2:
        return None
    found = growth(enumerate(values))
    if found is None or found.last / found.first < _LEAST_TOTAL[kind]:
        return None
    return Through(step, kind, module, calls, found, f"call of {module or 'the model'}")
