"""A value born in the backward, without a replay: between the last finite gradient and the first bad one.

The gradients that arrived at the modules' outputs were recorded. The graph's saved tensors are freed, but its nodes are
still there: those that the backward ran between two gradients are the only ones that can have made the value.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

from ..model import Event, Origin, Snapshot
from ..recording.recorder import Recorder
from ..recording.tape import EngineCall
from .autograd_graph import AutogradGraph, GraphNode, read_nodes
from .ownership import Home
from .placing import ByRecord
from .recipes import function_name

# ops whose derivative is infinite or undefined at operands where their result is finite
_SINGULAR = frozenset(
    {
        "sqrt", "pow", "xlogy", "acos", "asin", "atanh", "acosh", "hypot", "logsumexp", "linalg_eigh", "linalg_svd",
        "erfinv", "cumprod", "logit",
    }
)  # fmt: skip
# and those whose derivative is bad only where their result is, which a mask may have hidden
_HIDDEN = frozenset({"div", "reciprocal", "rsqrt", "log", "log2", "log10", "log1p", "exp", "softmax", "log_softmax"})

Placed = list[tuple[GraphNode, Home]]


def born_in_backward(snapshot: Snapshot, recorder: Recorder) -> Snapshot | None:
    """The snapshot with the op or the module whose derivative made the value; None where the forward was bad."""
    events = snapshot.history.at(snapshot.step)
    if any(event.kind == "forward" and not event.finite for event in events):
        return None
    gradients = [event for event in events if event.kind == "gradient"]
    bad = next((event for event in gradients if not event.finite), None)
    if bad is None:
        return _after_the_last(snapshot) if gradients and snapshot.symptom.name else None
    graph = read_nodes(_roots(recorder))
    places = ByRecord(recorder, graph)
    nodes = _nodes_between(graph, bad, gradients, recorder, places)
    placed = [(node, places.home(node)) for node in nodes]
    note = f"the first gradient that is not finite arrived at the output of {bad.module or 'the root module'}"
    return _blame(_with_reason(snapshot, note), placed, _before(bad, gradients))


def _blame(snapshot: Snapshot, placed: Placed, module: str) -> Snapshot:
    """Name the derivative that alone can be singular; else the module in which it lies."""
    able = [pair for pair in placed if _is_singular(pair[0])]
    able = able or [pair for pair in placed if function_name(pair[0].name) in _HIDDEN]
    kinds = {(function_name(node.name), home.module) for node, home in able}
    if len(kinds) == 1:
        origin = _derivative(able)
        doubt = f"the derivative of {origin.op} is named because it alone can be singular there: its operands are freed"
        facts = replace(snapshot.replay, doubts=(*snapshot.replay.doubts, doubt))
        return replace(snapshot, phase="backward", origin=origin, replay=facts)
    if kinds:
        listed = ", ".join(sorted({name for name, _ in kinds}))
        snapshot = _with_reason(snapshot, f"several derivatives after it can be singular: {listed}")
    return replace(snapshot, phase="backward", origin=_module(snapshot, module))


def _after_the_last(snapshot: Snapshot) -> Snapshot:
    """Every gradient at a module's output was finite: the value was made inside the module that owns the parameter."""
    note = "every gradient that arrived at a module's output was finite: it was made on the way to the parameter"
    origin = _module(snapshot, snapshot.symptom.name.rpartition(".")[0])
    return replace(_with_reason(snapshot, note), phase="backward", origin=origin)


def _roots(recorder: Recorder) -> list[Any]:
    """The nodes that the step's backwards began at, as far as they are still alive."""
    if recorder.intervals is not None:
        return recorder.intervals.graphs
    calls = [event for event in recorder.tape.events if isinstance(event, EngineCall) and event.accumulate]
    tensors = [token.ref() for call in calls for token in call.roots]
    return [tensor.grad_fn for tensor in tensors if tensor is not None and tensor.grad_fn is not None]


def _nodes_between(
    graph: AutogradGraph, bad: Event, gradients: list[Event], recorder: Recorder, places: ByRecord
) -> list[GraphNode]:
    """Downstream of the module whose output's gradient is bad, up to outputs whose gradient was finite."""
    ends = _output_nodes(graph, bad, gradients, recorder)
    if ends is not None:
        return _downstream(graph, *ends)
    homes = [(node, places.home(node)) for node in graph.nodes if node.sequence is not None]
    inside = [node.id for node, home in homes if home.certain and home.module == bad.module]
    if not inside:
        return [node for node, home in homes if home.module is None] if not bad.module else []
    before = _before(bad, gradients)
    limit = [node.id for node, home in homes if home.certain and home.module == before and before != bad.module]
    last = max(limit, default=len(graph.nodes))
    return [node for node, _ in homes if max(inside) < node.id <= last]


def _output_nodes(
    graph: AutogradGraph, bad: Event, gradients: list[Event], recorder: Recorder
) -> tuple[GraphNode, set[int]] | None:
    """The node that made the bad one's output, and the ids of those whose outputs' gradients came in finite before.

    A module's calls and the gradients of its output come in opposite orders.
    """
    if recorder.intervals is None:
        return None
    by_sequence = {node.sequence: node for node in graph.nodes if node.sequence is not None}
    calls: dict[str, list[int]] = defaultdict(list)
    for interval in recorder.intervals.finished:
        calls[interval.path].append(interval.end - 1)
    finite: set[int] = set()
    for event in gradients:
        numbers = calls.get(event.module)
        node = by_sequence.get(numbers.pop()) if numbers else None
        if event is bad:
            return (node, finite) if node is not None else None
        if node is not None:
            finite.add(node.id)
    return None


def _downstream(graph: AutogradGraph, start: GraphNode, stops: set[int]) -> list[GraphNode]:
    readers: dict[int, list[GraphNode]] = defaultdict(list)
    for node in graph.nodes:
        for upstream, _ in node.edges:
            if upstream is not None:
                readers[upstream.id].append(node)
    found: dict[int, GraphNode] = {}
    waiting = list(readers[start.id])
    while waiting:
        node = waiting.pop()
        if node.id not in found:
            found[node.id] = node
            if node.id not in stops:
                waiting += readers[node.id]
    return list(found.values())


def _before(bad: Event, gradients: list[Event]) -> str:
    """The module whose output's gradient was the last finite one before the bad: its backward ran in between."""
    position = gradients.index(bad)
    return gradients[position - 1].module if position else bad.module


def _is_singular(node: GraphNode) -> bool:
    """Whether the derivative can be infinite where the result is finite; that of a whole positive power cannot."""
    if node.name.endswith("Backward") and not node.name.startswith(("Checkpoint", "Compiled")):
        return True  # a custom Function's own formula
    exponent = node.saved.numbers.get("exponent")
    whole = isinstance(exponent, (int, float)) and exponent == int(exponent) and exponent >= 1
    return function_name(node.name) in _SINGULAR and not whole


def _derivative(able: Placed) -> Origin:
    node, home = max(able, key=lambda pair: pair[0].id)  # the first that the backward ran
    lines = {(h.source.file, h.source.line) if h.source is not None else None for _, h in able}
    return Origin(
        op=function_name(node.name),
        module=home.module,
        module_type=home.module_type,
        autograd_node=node.name,
        source=home.source if len(lines) == 1 else None,
        derivative=True,
    )


def _module(snapshot: Snapshot, path: str) -> Origin:
    kind = snapshot.modules.get(path)
    return Origin(op=(kind or "module").lower(), module=path, module_type=kind)


def _with_reason(snapshot: Snapshot, reason: str) -> Snapshot:
    return replace(snapshot, replay=replace(snapshot.replay, reasons=(*snapshot.replay.reasons, reason)))
