"""Gradients (or values) that grew from call to call inside one step, and what helps."""

from __future__ import annotations

from dataclasses import dataclass

from ..model import Remedy, Snapshot
from .growth import Growth, healthy_gradient_norm
from .numbers import limits, show
from .rates import clipping
from .reading import dtype_of
from .reuse import Through, reused, through_depth, through_time
from .rewriting import submodule
from .updates import large_before

_BOUNDED = 1e6  # forward values up to here are no sign of divergence


@dataclass(frozen=True, slots=True)
class Explosion:
    """A growth inside a step, told in sentences."""

    through: Through
    evidence: tuple[str, ...]
    calls: tuple[str, int] | None  # the module that is used again, and how often
    bounded: float | None  # the largest forward value, where all of them stayed small


def explosion(snapshot: Snapshot) -> Explosion | None:
    """The first growth through the calls of a module; else that through the depth of the failing step's backward."""
    history = snapshot.history

    def matters(kind: str, step: int) -> bool:
        if step == snapshot.step:  # values born in the forward owe nothing to the gradients after it
            return kind == "forward" or snapshot.phase in ("backward", "optimizer")
        return kind == "forward" or large_before(snapshot, step + 1) is not False  # its update spoiled the weights

    through = through_time(history, matters) or through_depth(history, snapshot.step, snapshot.ops)
    if through is None:
        return None
    forward = [event.absmax for event in history.at(through.step) if event.kind == "forward"]
    bounded = max(forward, default=0.0) if all(value <= _BOUNDED for value in forward) else None
    way = "backward" if through.kind == "gradient" else "forward"
    what = "the gradient" if through.kind == "gradient" else f"the output of {through.module or 'the model'}"
    grown = through.growth
    evidence = [
        f"in the {way} of step {through.step} {what} grew {grown.per(through.unit)}, {grown.points} of them in a row "
        f"({show(grown.first)} -> {show(grown.last)})"
    ]
    calls = (through.module or "the model", through.calls) if through.module is not None else _calls(snapshot)
    if calls is not None:
        evidence.append(
            f"{calls[0]} was called {calls[1]} times in this step, so its Jacobian is multiplied {calls[1]} times"
        )
    norm = next((one.grad_norm for one in history.steps if one.step == through.step), None)
    if through.step < snapshot.step and norm is not None:
        evidence.append(f"that left a gradient norm of {show(norm)}, and the update with it spoiled the weights")
    if through.kind == "gradient" and bounded:
        evidence.append(f"the forward values stayed bounded: at most {show(bounded)}")
    return Explosion(through, tuple(evidence), calls, bounded)


def explosion_over_steps(snapshot: Snapshot, over: Growth) -> Explosion | None:
    """A gradient norm that grew from step to step, while the forward values of the failing step stayed bounded."""
    forward = [event.absmax for event in snapshot.history.at(snapshot.step) if event.kind == "forward"]
    if any(not value <= _BOUNDED for value in forward):
        return None
    bounded = max(forward, default=0.0)
    evidence = (f"the forward values stayed bounded: at most {show(bounded)}",) if bounded else ()
    return Explosion(Through(over.until, "gradient", None, 0, over, "step"), evidence, _calls(snapshot), bounded)


def for_explosion(snapshot: Snapshot, found: Explosion) -> tuple[Remedy, ...]:
    """A sound initialisation, fewer products, and clipping where the gradient is still finite."""
    origin, calls = snapshot.origin, found.calls
    end = limits(dtype_of(origin)) if origin is not None else None
    own = found.through.module or (origin.module if origin is not None else None)
    finite = found.through.step < snapshot.step  # the step that exploded had a gradient that could be clipped
    clip = clipping(snapshot, healthy_gradient_norm(snapshot.history) if not finite else None)
    limit = f" ({end.dtype} ends at {show(end.max)})" if end is not None else ""
    late = f" It keeps moderate growth from doing harm; one that has overflowed cannot be clipped any more{limit}."
    clip = Remedy(clip.text + ("" if finite else late), clip.code, change=clip.change)
    weights = Remedy(
        "Initialise the weights so that their largest singular value (spectral radius) is about 1: orthogonal "
        "initialisation, or spectral_norm; a gated cell (LSTM, GRU) or a residual connection bounds the product too.",
        f"nn.init.orthogonal_({submodule(own)}.weight)" if own else None,
    )
    advice = [clip, weights] if finite and found.through.kind == "gradient" else [weights, clip]
    if calls is not None:
        advice.insert(
            1,
            Remedy(
                f"Truncate the backward through time: detach the state every few of the {calls[1]} steps.",
                "h = h.detach()  # every k steps",
            ),
        )
    return tuple(advice)


def _calls(snapshot: Snapshot) -> tuple[str, int] | None:
    """The module of the origin, where it was called several times in the step."""
    origin = snapshot.origin
    if origin is None or origin.module is None:
        return None
    counted = reused(snapshot.history.at(snapshot.step)).get(origin.module) or sum(
        op.phase == "forward" and op.module == origin.module and op.name == origin.op for op in snapshot.ops
    )
    return (origin.module or "the model", counted) if counted > 1 else None
