"""Snapshots without a watch: from the live autograd graph of a tensor, or from the gradients that a backward left."""

from __future__ import annotations

import math

import torch

from ..model import BadSource, Origin, ReplayFacts, Snapshot, Symptom
from ..recording.names import clean
from .apart import apart
from .autograd_graph import read_graph
from .environment import environment
from .live import Explanation, explain_graph
from .ownership import ByParameters, Nowhere
from .summaries import describe, first_bad_element

NO_STEP = -1  # no watch counted


def trace_graph(tensor: torch.Tensor, model: torch.nn.Module | None) -> Snapshot | None:
    """The snapshot of a bad tensor that has a graph."""
    symptom = _symptom(tensor)

    def explain() -> tuple[Explanation | None, dict[str, str]]:
        graph = read_graph([tensor])
        places = ByParameters(model, graph) if model is not None else Nowhere()
        return explain_graph(graph, places), places.types()

    told, types = apart(explain)
    if told is None:
        return None
    reasons = ("traced from the live autograd graph, as no watch was on", *told.reasons)
    return Snapshot(
        step=NO_STEP,
        phase=told.phase,
        symptom=symptom,
        origin=told.origin,
        path=told.path,
        ops=told.ops,
        edges=told.edges,
        modules=types,
        replay=ReplayFacts(None, reasons, doubts=tuple(told.doubts)),
        source_value=told.source,
        environment=environment(),
    )


def trace_parameter(parameter: torch.Tensor, model: torch.nn.Module | None) -> Snapshot:
    """The snapshot of a leaf that holds bad values itself: nothing that autograd knows has made it."""
    name = _name_of(parameter, model) or "the leaf"
    bad = first_bad_element(parameter.detach()) or ((), math.nan)
    source = BadSource("parameter", name, describe(parameter.detach(), name), *bad)
    reasons = ("the tensor is a leaf: no op that autograd knows of has made it",)
    symptom = Symptom("parameter", name, source.summary, where="it was given to nantrace.trace")
    return _bare("parameters", symptom, reasons, model, source=source)


def trace_gradients(parameter: torch.Tensor, model: torch.nn.Module | None) -> Snapshot:
    """The snapshot of a finite parameter with a bad gradient: which parameters' gradients are bad says how far it came.

    The graph cannot be reached from a leaf. In the backward the gradients of the last layers are made first: the
    value was born between the last finite gradient and the first bad one.
    """
    assert parameter.grad is not None
    name = _name_of(parameter, model) or ""
    symptom = Symptom(
        "gradient", name, describe(parameter.grad.detach(), "grad"), where="it was given to nantrace.trace"
    )
    reasons = ["no graph leads from a parameter to the backward that made its gradient: watch the step to find the op"]
    if model is None:
        reasons.append("give the model as well, and the first layer with a bad gradient is named")
        return _bare("backward", symptom, tuple(reasons))
    graded = [(clean(name), p.grad) for name, p in model.named_parameters() if p.grad is not None]
    bad = [name for name, gradient in graded if first_bad_element(gradient) is not None]
    order = [name for name, _ in graded]
    first = bad[-1]
    reasons.append(
        f"{len(bad)} of {len(graded)} parameters have gradients that are not finite; in the backward {first} is the "
        "first of them, if the layers run in the order in which the model holds them"
    )
    later = order[order.index(first) + 1 :]
    if later:
        reasons.append(f"{later[0]}, which comes before it in the backward, has a finite gradient")
    path = first.rpartition(".")[0]
    kind = type(model.get_submodule(path)).__name__ if path in dict(model.named_modules()) else None
    origin = Origin(op=(kind or "module").lower(), module=path, module_type=kind)
    return _bare("backward", symptom, tuple(reasons), model, origin=origin)


def _bare(
    phase: str,
    symptom: Symptom,
    reasons: tuple[str, ...],
    model: torch.nn.Module | None = None,
    *,
    origin: Origin | None = None,
    source: BadSource | None = None,
) -> Snapshot:
    types = {clean(path): type(m).__name__ for path, m in model.named_modules()} if model is not None else {}
    return Snapshot(
        step=NO_STEP,
        phase=phase,
        symptom=symptom,
        origin=origin,
        modules=types,
        replay=ReplayFacts(None, reasons),
        source_value=source,
        environment=environment(),
    )


def _symptom(tensor: torch.Tensor) -> Symptom:
    values = tensor.detach()
    if values.numel() == 1 and not values.is_complex():
        return Symptom("loss", "", describe(values), float(values), "it was given to nantrace.trace")
    return Symptom("result", "", describe(values), None, "it was given to nantrace.trace")


def _name_of(parameter: torch.Tensor, model: torch.nn.Module | None) -> str | None:
    if model is None:
        return None
    return next((clean(name) for name, p in model.named_parameters() if p is parameter), None)
