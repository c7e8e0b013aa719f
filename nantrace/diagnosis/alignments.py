"""CTC: a target that is longer than its input has no alignment, so its loss is infinite."""

from __future__ import annotations

from itertools import pairwise

from ..model import Cause, Origin, Remedy, Snapshot
from .edits import Edit, called_with, change, frame_of, is_statement
from .finding import Finding
from .keywords import keyword_edit
from .numbers import number, plural
from .reading import generated_at, operand

_SNIPPET = "F.ctc_loss(..., zero_infinity=True)"


def impossible_alignment(snapshot: Snapshot) -> Finding | None:
    """A CTC target is longer than its input.

    Certain: the lengths of the failing sample were read, and its labels, with a blank between equal ones, need more
    frames than it has.
    Likely: ctc_loss of finite log-probabilities is infinite, and the lengths are not known.
    """
    origin = generated_at(snapshot, "ctc_loss", "cudnn_ctc_loss")
    if origin is None or not any(found.pos_inf for found in origin.outputs):
        return None
    if any(found.nonfinite for found in origin.inputs):
        return None
    proof = _proof(origin)
    text = proof or "ctc_loss of finite log-probabilities is inf: some target has no alignment with its input"
    advice = (
        _zero_infinity(origin).remedy(
            "Let ctc_loss count such samples as 0, without a gradient: zero_infinity=True.", change(snapshot, "zero")
        ),
        Remedy("Or leave out samples whose target is longer than their input (repeated labels need a frame more)."),
    )
    return Finding(Cause.BAD_LABEL, "certain" if proof else "likely", (text,), advice)


def _proof(origin: Origin) -> str | None:
    """The sample whose target does not fit, where the lengths are known."""
    frames, labels = _lengths(origin, "input_lengths"), _lengths(origin, "target_lengths")
    index = origin.example.index if origin.example is not None else ()
    samples = [index[0]] if index else range(min(len(frames), len(labels)))
    for sample in samples:
        if sample >= len(frames) or sample >= len(labels):
            return None
        length, target = frames[sample], labels[sample]
        repeats = _repeats(origin, sample, labels)
        if target > length:
            return f"sample {sample} has {plural(target, 'label')} for {plural(length, 'frame')}: no alignment exists"
        if target + repeats > length:
            return (
                f"sample {sample} has {plural(target, 'label')} of which {repeats} repeat the one before, so it needs "
                f"{target + repeats} frames and has {length}: no alignment exists"
            )
    return None


def _lengths(origin: Origin, name: str) -> list[int]:
    """The lengths per sample, from a tensor or a tuple; none where not all are known."""
    found = operand(origin, name)
    if found is not None and found.kind == "slice":
        whole = found.summary.numel if found.summary is not None else len(found.values)
        return [int(value) for value in found.values] if len(found.values) == whole else []
    given = origin.arguments.get(name)
    return [int(number(one) or 0) for one in given] if isinstance(given, (list, tuple)) else []


def _repeats(origin: Origin, sample: int, labels: list[int]) -> int:
    """How many labels of the sample's target equal the one before: each needs a blank in between."""
    found = operand(origin, "targets")
    shape = found.summary.shape if found is not None and found.summary is not None else ()
    if found is None or not shape:
        return 0
    start = sample * shape[1] if len(shape) == 2 else sum(labels[:sample])
    target = found.values[start : start + labels[sample]]
    if len(target) < labels[sample]:
        return 0
    return sum(a == b for a, b in pairwise(target))


def _zero_infinity(origin: Origin) -> Edit:
    """The call with zero_infinity=True; for a module, which has it as an attribute, a line before the call."""
    call, source = called_with(origin), origin.source
    called = call.text.partition("(")[0] if call is not None else ""
    if called.endswith("ctc_loss"):
        return keyword_edit(origin, "zero_infinity", "True", _SNIPPET)
    if call is None or source is None or not is_statement(source) or not called.replace(".", "").isidentifier():
        return Edit("nn.CTCLoss(zero_infinity=True)")
    frame = frame_of(source, call)
    return Edit(f"{called}.zero_infinity = True\n{source.code}" if frame is not None else _SNIPPET, frame)
