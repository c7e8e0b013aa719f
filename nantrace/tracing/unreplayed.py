"""The best answer where the step was not replayed, or where its replay failed.

In this order: the live autograd graph of a bad loss, read before its backward freed it; the gradients that arrived at
the modules' outputs, with what is left of the graph between them; the ring's first bad output; the live stack.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..model import Origin, ReplayFacts, Snapshot
from ..recording.alarm import Alarm
from ..recording.frames import innermost_outside_torch, source_at
from ..recording.recorder import Recorder
from .apart import apart
from .autograd_graph import read_graph
from .between import born_in_backward
from .live import Explanation, explain_graph
from .placing import ByRecord


def explain_loss(root: torch.Tensor, recorder: Recorder) -> Explanation | None:
    """What the live graph says of a bad loss: asked before its backward frees the saved tensors."""
    if root.grad_fn is None:
        return None

    def explain() -> Explanation | None:
        graph = read_graph([root])
        return explain_graph(graph, ByRecord(recorder, graph))

    return apart(explain)


def without_replay(snapshot: Snapshot, alarm: Alarm, recorder: Recorder | None, facts: ReplayFacts) -> Snapshot:
    """The snapshot with the best answer that there is, and what it rests on."""
    snapshot = replace(snapshot, replay=facts)
    told = alarm.explanation
    if isinstance(told, Explanation):
        alarm.meant = told.meant
        if told.origin is not None:
            return _placed_by_ring(from_explanation(snapshot, told), told, recorder)
    if alarm.kind in ("gradient", "write") and recorder is not None:
        found = apart(lambda: born_in_backward(snapshot, recorder))
        if found is not None:
            return found
    return _from_ring(snapshot) or _from_stack(snapshot, alarm)


def from_explanation(snapshot: Snapshot, told: Explanation) -> Snapshot:
    """What the live graph said, in place of what a replay would have said."""
    facts = snapshot.replay
    # what had changed before the replay does not touch what the graph had saved
    changed = (*facts.changed, *facts.doubts)
    limits = told.reasons if facts.reproduced is None else []  # of a replay that came out finite there is more to say
    facts = replace(facts, reasons=(*facts.reasons, *limits), doubts=tuple(told.doubts), changed=changed)
    return replace(
        snapshot,
        phase=told.phase,
        symptom=replace(snapshot.symptom, declared=told.declared),
        origin=told.origin,
        path=told.path,
        ops=told.ops,
        edges=told.edges,
        source_value=told.source,
        replay=facts,
    )


def _placed_by_ring(snapshot: Snapshot, told: Explanation, recorder: Recorder | None) -> Snapshot:
    """Where the module is a guess: a module without parameters below it, whose output was the first bad one."""
    origin = snapshot.origin
    first = next((e for e in snapshot.history.at(snapshot.step) if e.kind == "forward" and not e.finite), None)
    if not told.guessed or origin is None or origin.module is None or first is None or recorder is None:
        return snapshot
    below = f"{origin.module}." if origin.module else ""
    if not first.module.startswith(below) or any(
        name.startswith(f"{first.module}.") for _, name in recorder.names.parameters.values()
    ):
        return snapshot
    found = replace(origin, module=first.module, module_type=snapshot.modules.get(first.module))
    return replace(snapshot, origin=found)


def _from_ring(snapshot: Snapshot) -> Snapshot | None:
    """The first module whose output (or gradient) was not finite."""
    for kind, phase in (("forward", "forward"), ("gradient", "backward")):
        for event in snapshot.history.at(snapshot.step):
            if event.kind == kind and not event.finite:
                return replace(snapshot, phase=phase, origin=_module(snapshot, event.module))
    return None


def _from_stack(snapshot: Snapshot, alarm: Alarm) -> Snapshot:
    """Nothing but the line at which the alarm was raised."""
    position = innermost_outside_torch(alarm.stack)
    origin = None
    if position is not None:
        origin = Origin(op=alarm.kind, module=None, source=source_at(alarm.stack, position))
    return replace(snapshot, phase="loss" if alarm.kind == "loss" else "backward", origin=origin)


def _module(snapshot: Snapshot, path: str) -> Origin:
    kind = snapshot.modules.get(path)
    return Origin(op=(kind or "module").lower(), module=path, module_type=kind)
