"""The words for places and states, the same in the text, the picture and the page."""

from __future__ import annotations

from pathlib import PurePath, PureWindowsPath

from ..model import Frame, Op, Snapshot, Source, Symptom, TensorSummary
from .harmless import harmless, prose, shorten
from .numbers import grouped, headline_number, nonfinite

_NAME = 60  # longer names are shortened in the middle

BORN = {
    "input": "in the input",
    "forward": "in the forward pass",
    "loss": "in the loss",
    "backward": "in the backward pass",
    "optimizer": "in the optimizer's step",
    "parameters": "in the parameters, before the step began",
}


def name(text: object, limit: int = _NAME) -> str:
    """A name of the user's, harmless and of bearable length."""
    return shorten(harmless(text), limit)


def module(path: str | None, type_name: str | None) -> str:
    """A module with its type: `fc (Linear)`, `the root module (Net)`; empty outside every module."""
    if path is None:
        return ""
    spelled = name(path) if path else "the root module"
    return f"{spelled} ({name(type_name, 40)})" if type_name else spelled


def file_name(path: str) -> str:
    """The last part of a path of either kind: a dump may come from another system."""
    return name(PureWindowsPath(path).name if "\\" in path else PurePath(path).name or path, 40)


def place(source: Source | Frame | None) -> str:
    """`train.py:41`, or nothing."""
    return f"{file_name(source.file)}:{source.line}" if source is not None and source.file else ""


def expression(source: Source | None, limit: int = 60) -> str:
    """The expression on one line, or the whole line of code where Python is too old to tell."""
    if source is None:
        return ""
    return shorten(prose(source.expression or source.code), limit)


def state(op: Op) -> str:
    """What the op's outputs hold that is not finite: `2 -inf of 16`."""
    for output in op.outputs:
        if output.nonfinite:
            return holding(output)
    return "finite" if op.outputs else ""


def holding(summary: TensorSummary) -> str:
    """`2 -inf of 16`, or `nan` for a scalar."""
    if not summary.nonfinite:
        return "finite"
    if summary.numel == 1:
        return nonfinite(summary).split(" ", 1)[1]
    if summary.numel in (summary.nan, summary.pos_inf, summary.neg_inf):
        return f"all {nonfinite(summary)}"
    return f"{nonfinite(summary)} of {grouped(summary.numel)}"


def step_name(snapshot: Snapshot) -> str:
    """`step 7`; nothing where no watch counted steps."""
    return f"step {snapshot.step}" if snapshot.step >= 0 else ""


def symptom_name(symptom: Symptom) -> str:
    """Where it was noticed: `the loss`, `the gradient of fc.weight`."""
    owner = f" {name(symptom.name)}" if symptom.name else ""
    match symptom.kind:
        case "loss":
            return "the loss"
        case "gradient":
            return f"the gradient of{owner}" if owner else "a gradient"
        case "parameter":
            return f"the parameter{owner}"
        case "result":
            return f"the result of{owner}" if owner else "the model's result"
        case other:
            return prose(other)


def noticed(symptom: Symptom) -> str:
    """What was noticed: `the loss = NaN`, `the gradient of fc.weight: 3 nan of 80`."""
    what = symptom_name(symptom)
    if symptom.value is not None:
        return f"{what} = {headline_number(symptom.value)}"
    return f"{what}: {holding(symptom.summary)}" if symptom.summary is not None else what


def value_of(snapshot: Snapshot) -> float | None:
    """The value as it was born, else as it came in, else as it was noticed."""
    origin, source, symptom = snapshot.origin, snapshot.source_value, snapshot.symptom
    if source is not None:
        return source.value
    if origin is not None and origin.example is not None:
        return origin.example.value
    for summary in (*(origin.outputs if origin is not None else ()), symptom.summary):
        if summary is not None and summary.nonfinite:
            return float("nan") if summary.nan else float("inf") if summary.pos_inf else float("-inf")
    return symptom.value


def is_bad(value: float | None) -> bool:
    """Whether a value is NaN or infinite."""
    return value is not None and value - value != 0
