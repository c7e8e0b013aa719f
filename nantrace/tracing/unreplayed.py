"""The best answer where the step was not replayed, or where its replay failed.

In this order: the live autograd graph of a bad loss, read before its backward freed it; the gradients that arrived at
the modules' outputs, with what is left of the graph between them; the ring's first bad output; the live stack.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..model import Event, Origin, ReplayFacts, Snapshot
from ..recording.alarm import Alarm
from ..recording.frames import innermost_outside_torch, source_at
from ..recording.recorder import Recorder
from ..recording.tape import EngineCall
from .apart import apart
from .autograd_graph import GraphNode, read_graph, read_nodes
from .live import Explanation, explain_graph
from .ownership import Home
from .placing import ByRecord
from .recipes import function_name

# ops whose derivative is infinite or undefined at finite operands, and those that overflow on the way back
_SINGULAR = frozenset(
    {
        "sqrt", "pow", "xlogy", "acos", "asin", "atanh", "acosh", "hypot", "norm", "linalg_vector_norm", "std", "var",
        "logsumexp", "linalg_eigh", "linalg_svd", "svd", "erfinv", "cumprod", "atan2", "dist", "cdist_dist", "logit",
    }
)  # fmt: skip
# and those whose derivative is bad only where their result is, which a mask may have hidden
_HIDDEN = frozenset({"div", "reciprocal", "rsqrt", "log", "log2", "log10", "log1p", "exp", "softmax", "log_softmax"})


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
    if isinstance(told, Explanation) and told.origin is not None:
        return from_explanation(snapshot, told)
    if alarm.kind in ("gradient", "write") and recorder is not None:
        found = apart(lambda: _born_in_backward(snapshot, recorder))
        if found is not None:
            return found
    return _from_ring(snapshot) or _from_stack(snapshot, alarm)


def from_explanation(snapshot: Snapshot, told: Explanation) -> Snapshot:
    """What the live graph said, in place of what a replay would have said."""
    facts = snapshot.replay
    # what had changed before the replay does not touch what the graph had saved
    facts = replace(facts, reasons=(*facts.reasons, *facts.doubts, *told.reasons), doubts=tuple(told.doubts))
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


# Born in backward


def _born_in_backward(snapshot: Snapshot, recorder: Recorder) -> Snapshot | None:
    """The value was made between the last finite gradient and the first bad one that arrived at a module's output.

    What lies between them is read from the graph: its nodes are still there, though their saved tensors are freed.
    """
    events = snapshot.history.at(snapshot.step)
    forward = [event for event in events if event.kind == "forward"]
    if any(not event.finite for event in forward):
        return None  # the forward was bad already
    gradients = [event for event in events if event.kind == "gradient"]
    bad = next((event for event in gradients if not event.finite), None)
    if bad is None and gradients and snapshot.symptom.name:
        return _after_the_last(snapshot)
    if bad is None:
        return None
    graph = read_nodes(_roots(recorder))
    places = ByRecord(recorder, graph)
    homes = [(node, places.home(node)) for node in graph.nodes if node.leaf is None]
    between = _nodes_between(homes, bad, gradients, recorder)
    able = [pair for pair in between if _is_singular(pair[0])]
    able = able or [pair for pair in between if function_name(pair[0].name) in _HIDDEN]
    note = f"the first gradient that is not finite arrived at the output of {bad.module or 'the root module'}"
    reasons = (*snapshot.replay.reasons, note)
    if len(able) == 1:
        node, home = able[0]
        origin = _derivative(node, home)
        doubt = f"the derivative of {origin.op} is named because it alone can be singular there: its operands are freed"
        return replace(
            snapshot,
            phase="backward",
            origin=origin,
            replay=replace(snapshot.replay, reasons=reasons, doubts=(*snapshot.replay.doubts, doubt)),
        )
    if able:
        listed = ", ".join(dict.fromkeys(function_name(node.name) for node, _ in able))
        reasons = (*reasons, f"several derivatives after it can be singular: {listed}")
    origin = _module(snapshot, _next_module(bad, gradients))
    return replace(snapshot, phase="backward", origin=origin, replay=replace(snapshot.replay, reasons=reasons))


def _after_the_last(snapshot: Snapshot) -> Snapshot:
    """Every gradient at a module's output was finite: the value was made inside the module that owns the parameter."""
    origin = _module(snapshot, snapshot.symptom.name.rpartition(".")[0])
    note = "every gradient that arrived at a module's output was finite: it was made on the way to the parameter"
    facts = replace(snapshot.replay, reasons=(*snapshot.replay.reasons, note))
    return replace(snapshot, phase="backward", origin=origin, replay=facts)


def _roots(recorder: Recorder) -> list[Any]:
    """The nodes that the step's backwards began at, as far as they are still alive."""
    if recorder.intervals is not None:
        return recorder.intervals.graphs
    calls = [event for event in recorder.tape.events if isinstance(event, EngineCall) and event.accumulate]
    tensors = [token.ref() for call in calls for token in call.roots]
    return [tensor.grad_fn for tensor in tensors if tensor is not None and tensor.grad_fn is not None]


def _nodes_between(
    homes: list[tuple[GraphNode, Home]], bad: Event, gradients: list[Event], recorder: Recorder
) -> list[tuple[GraphNode, Home]]:
    """The nodes that the backward ran between the two gradients: numbered after the bad one's module."""
    begin, end = _range(bad, gradients, recorder)
    if begin is not None:
        return [
            (n, h)
            for n, h in homes
            if n.sequence is not None and begin <= n.sequence and (end is None or n.sequence < end)
        ]
    inside = [n.sequence for n, h in homes if h.certain and h.module == bad.module and n.sequence is not None]
    if not inside:
        return [(n, h) for n, h in homes if h.module is None] if not bad.module else []
    before = _next_module(bad, gradients)
    limit = [n.sequence for n, h in homes if h.certain and h.module == before and n.sequence is not None]
    last = max(limit) if limit and before != bad.module else None
    return [
        (n, h)
        for n, h in homes
        if n.sequence is not None and n.sequence > max(inside) and (last is None or n.sequence <= last)
    ]


def _range(bad: Event, gradients: list[Event], recorder: Recorder) -> tuple[int | None, int | None]:
    """From the end of the bad gradient's module to the end of the one whose gradient came before it."""
    if recorder.intervals is None:
        return None, None
    ends = {one.path: one.end for one in recorder.intervals.finished}
    position = gradients.index(bad)
    later = [ends[event.module] for event in gradients[:position] if event.module in ends]
    later = [end for end in later if end > ends.get(bad.module, 0)]
    return ends.get(bad.module), min(later, default=None)


def _next_module(bad: Event, gradients: list[Event]) -> str:
    """The module whose output's gradient was the last finite one before the bad: its backward ran in between."""
    position = gradients.index(bad)
    return gradients[position - 1].module if position else bad.module


def _is_singular(node: GraphNode) -> bool:
    """Whether the derivative can be infinite where the result is finite; that of a whole positive power cannot."""
    exponent = node.saved.numbers.get("exponent")
    whole = isinstance(exponent, (int, float)) and exponent == int(exponent) and exponent >= 1
    return function_name(node.name) in _SINGULAR and not whole


def _derivative(node: GraphNode, home: Home) -> Origin:
    return Origin(
        op=function_name(node.name),
        module=home.module,
        module_type=home.module_type,
        autograd_node=node.name,
        source=home.source,
        derivative=True,
    )
