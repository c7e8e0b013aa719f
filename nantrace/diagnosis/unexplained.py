"""What can be said when no op is to blame: it did not happen again, or no rule has evidence."""

from __future__ import annotations

from ..model import Cause, Origin, Remedy, Snapshot
from .finding import Finding
from .numbers import plural, show, show_index
from .reading import place


def transient(snapshot: Snapshot) -> Finding | None:
    """The step was replayed with all its state restored, and came out finite.

    Likely: the replay is exact (nothing was taken for granted, nothing had changed) and has ops, and no bad value
    came in from outside. It is never certain: what does not happen again proves nothing.
    """
    replay = snapshot.replay
    outside = snapshot.source_value is not None or snapshot.index is not None
    if replay.reproduced is not False or replay.doubts or replay.changed or outside or not replay.ops:
        return None
    value = f" ({show(snapshot.symptom.value)})" if snapshot.symptom.value is not None else ""
    seen = f"{snapshot.symptom.kind} {snapshot.symptom.name}".strip()
    evidence = (
        f"the {seen} was not finite{value} in step {snapshot.step}, but the replay of the step, "
        f"{plural(replay.ops, 'op')}, "
        "came out finite",
        *replay.reasons,
        *_seen_live(snapshot.origin),
    )
    advice = (
        Remedy(
            "Look for what differs between two runs of the same step: non-deterministic kernels, a race between "
            "streams or "
            "threads, memory that is read before it is written.",
            "torch.use_deterministic_algorithms(True)",
        ),
        Remedy(
            "If it comes back only on one machine, test its memory and its accelerator; rerun the step with "
            "synchronous kernels.",
            "CUDA_LAUNCH_BLOCKING=1 python train.py",
        ),
        Remedy("Watch every op live: what cannot be replayed is seen as it runs.", 'nantrace.watch(model, level="op")'),
    )
    return Finding(Cause.TRANSIENT, "likely", evidence, advice)


def _seen_live(origin: Origin | None) -> tuple[str, ...]:
    """What the live autograd graph still knew of the op."""
    if origin is None or origin.example is None:
        return ()
    values = (f"{one.name} = {show(one.value)}" for one in origin.example.operands if one.value is not None)
    told = ", ".join(values)
    return (
        f"in the live run {origin.op} made {place(origin.example)} = {show(origin.example.value)}"
        + (f" of {told}" if told else ""),
    )


def undetermined(snapshot: Snapshot) -> Finding:
    """No rule has evidence: say what is known, and nothing more."""
    origin, symptom = snapshot.origin, snapshot.symptom
    evidence = known_of(origin) if origin is not None else []
    if origin is None:
        where = f" {symptom.name}" if symptom.name else ""
        evidence.append(
            f"the {symptom.kind}{where} is not finite in step {snapshot.step}; which op made it is not known"
        )
    evidence += list(snapshot.replay.reasons)
    advice = () if origin is None or origin.example is not None else (_see_more(),)
    return Finding(Cause.UNDETERMINED, "undetermined", tuple(evidence) or ("nothing is known of the step",), advice)


def known_of(origin: Origin) -> list[str]:
    """What the op made of what, without a conclusion."""
    evidence = []
    if origin.example is not None:
        told = ", ".join(
            f"{found.name}{show_index(found.index)} = {show(found.value)}"
            for found in origin.example.operands
            if found.value is not None
        )
        made = f"{place(origin.example)} = {show(origin.example.value)}"
        evidence.append(f"{origin.op} made {made}" + (f" of {told}" if told else ""))
    for found in origin.outputs:
        if found.nonfinite:
            evidence.append(f"{found.nonfinite} of {plural(found.numel, 'value')} that {origin.op} made are not finite")
    for found in origin.inputs:
        if found.min is not None and found.max is not None:
            evidence.append(
                f"{found.name or 'an input'} ({found.dtype}) goes from {show(found.min)} to {show(found.max)}"
                + (f", {found.nonfinite} of {found.numel} not finite" if found.nonfinite else "")
            )
    return evidence


def _see_more() -> Remedy:
    return Remedy(
        "Where the step could not be replayed, let torch name the first backward op that made NaN.",
        "with torch.autograd.detect_anomaly():\n    loss.backward()",
    )
