"""Values that were already bad when they entered the step: inputs, labels, parameters."""

from __future__ import annotations

from math import inf

from ..model import BadSource, Cause, Origin, Remedy, Snapshot
from .data_remedies import finite_instead_of_minus_infinity, for_input, for_missing_label, for_parameter, label_name
from .finding import Finding
from .index_remedies import for_label
from .indexing import is_label
from .numbers import number, plural, show, show_index
from .reading import generated_at

_LIKELIHOODS = ("nll_loss", "nll_loss2d")


def bad_input(snapshot: Snapshot) -> Finding | None:
    """NaN or Inf was already in the batch.

    Certain: the value was found in the batch as the tape kept it: its name, its place, and how many there are.
    """
    source = snapshot.source_value
    if source is None or source.kind != "input":
        return None
    name = _plain(source.name)
    sample = f", sample {source.index[0]} of the batch" if source.index else ""
    to = f" given to {source.entry or 'the model'}" if source.entry is not None else ""
    evidence = [f"input {name}{show_index(source.index)} = {show(source.value)}{to}{sample}", _counts(source)]
    evidence += _consumer(snapshot.origin)
    advice = for_input(snapshot, name)
    return Finding(Cause.BAD_INPUT, "certain", tuple(evidence), advice)


def bad_label(snapshot: Snapshot) -> Finding | None:
    """A label is missing (NaN) or impossible.

    Certain: the NaN was found in the labels; or a label is none of the classes; or its class has a log-probability
    of -inf; or a CTC target is longer than its input.
    Likely: ctc_loss of finite log-probabilities is inf, and the lengths are not known.
    """
    source = snapshot.source_value
    if source is not None and source.kind == "label":
        return _missing_label(snapshot, source)
    if masked := _masked_class(snapshot.origin):
        return masked
    facts = snapshot.index
    if facts is not None and is_label(facts):
        text = f"label {facts.value} at {facts.operand}{show_index(facts.position)} is none of the {facts.high} classes"
        return Finding(Cause.BAD_LABEL, "certain", (text,), for_label(snapshot, facts))
    return _impossible_alignment(snapshot)


def _masked_class(origin: Origin | None) -> Finding | None:
    """The label is a class that the model masks: its log-probability is -inf, and so is the loss."""
    if origin is None or origin.op not in _LIKELIHOODS or origin.example is None:
        return None
    scores = origin.example.operand("self")
    if scores is None or scores.value != -inf or scores.index is None or len(scores.index) < 2:
        return None
    sample, label = scores.index[0], scores.index[1]
    evidence = f"label[{sample}] = {label}, and the log-probability of class {label} is -inf there: the class is masked"
    advice = (
        Remedy(
            "Make label and mask agree: never mask the class of the label, or leave that sample out of the loss.",
            f"keep = torch.isfinite(logits.gather(1, labels[:, None])[:, 0])  # sample {sample} is not\n"
            "loss = criterion(logits[keep], labels[keep])",
        ),
        Remedy("Mask with a large finite negative such as -1e4 instead of -inf: the loss then stays finite."),
    )
    return Finding(Cause.BAD_LABEL, "certain", (evidence,), advice)


def _missing_label(snapshot: Snapshot, source: BadSource) -> Finding:
    name = label_name(snapshot.origin, _plain(source.name))
    evidence = [f"label {name}{show_index(source.index)} = {show(source.value)}", _counts(source)]
    origin = snapshot.origin
    evidence += _consumer(origin)
    if snapshot.symptom.kind == "gradient":
        evidence.append(
            "a mask applied after the loss does not help: the gradient of a masked element is 0 * nan = nan"
        )
    advice = for_missing_label(snapshot, source, name)
    return Finding(Cause.BAD_LABEL, "certain", tuple(evidence), advice)


def _impossible_alignment(snapshot: Snapshot) -> Finding | None:
    """A CTC target that is longer than its input has no alignment, so its loss is infinite."""
    origin = generated_at(snapshot, "ctc_loss", "cudnn_ctc_loss")
    if origin is None or not any(found.pos_inf for found in origin.outputs):
        return None
    inputs, targets = origin.arguments.get("input_lengths"), origin.arguments.get("target_lengths")
    text, confidence = (
        "ctc_loss of finite log-probabilities is inf: some target has no alignment with its input",
        "likely",
    )
    if isinstance(inputs, (list, tuple)) and isinstance(targets, (list, tuple)):
        for sample, (length, target) in enumerate(zip(inputs, targets, strict=False)):
            if (number(target) or 0) > (number(length) or 0):
                labels, frames = plural(int(target), "label"), plural(int(length), "frame")
                text = f"sample {sample} has {labels} for {frames}: no alignment exists"
                confidence = "certain"
                break
    advice = (
        Remedy("Leave out samples whose target is longer than their input (repeated labels need a frame more)."),
        Remedy("Or let ctc_loss count them as 0.", "F.ctc_loss(..., zero_infinity=True)"),
    )
    return Finding(Cause.BAD_LABEL, confidence, (text,), advice)


def bad_parameter(snapshot: Snapshot) -> Finding | None:
    """A parameter or a buffer was not finite before the step began.

    Certain: the value was found in the parameter or buffer as the step began, with the step since which it is
    there.
    """
    source = snapshot.source_value
    if source is None or source.kind not in ("parameter", "buffer"):
        return None
    evidence = [f"{source.kind} {source.name}{show_index(source.index)} = {show(source.value)}", _counts(source)]
    first = snapshot.history.steps[0].step if snapshot.history.steps else None
    start = source.since_step == 0 or (source.since_step is None and snapshot.step == 0)
    if start:
        evidence.append("it was bad in step 0 already, so training did not make it: initialisation or checkpoint")
    elif source.since_step is not None:
        oldest = " (the oldest step that is still recorded)" if source.since_step == first else ""
        evidence.append(f"it has been bad since step {source.since_step}{oldest}; this is step {snapshot.step}")
    evidence += _consumer(snapshot.origin)
    init = for_parameter(source)
    check = Remedy(
        "If it comes from a checkpoint, load an earlier one; check it right after loading.",
        "bad = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]",
    )
    advice = (init, check) if start else (check, init)
    if source.value == -inf:
        advice = (finite_instead_of_minus_infinity(source), check)
    return Finding(Cause.BAD_PARAMETER, "certain", tuple(evidence), advice)


def _plain(name: str) -> str:
    return name.removeprefix("input ").removeprefix("label ") or "x"


def _counts(source: BadSource) -> str:
    found = source.summary
    kinds = [(found.nan, "nan"), (found.pos_inf, "inf"), (found.neg_inf, "-inf")]
    told = ", ".join(f"{count} {kind}" for count, kind in kinds if count)
    shape = ", ".join(str(size) for size in found.shape)
    return f"{found.nonfinite} of {plural(found.numel, 'value')} (shape [{shape}]) not finite: {told}"


def _consumer(origin: Origin | None) -> list[str]:
    if origin is None:
        return []
    where = f" in {origin.module}" if origin.module else ""
    return [f"the first op that read it is {origin.op}{where}"]
