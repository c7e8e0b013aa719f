"""The op that generated the non-finite value, and where the value came in from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .example import Example, OperandValue
from .source import Frame, Source
from .summary import TensorSummary


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin, in the contract's words (see `Report.origin`)."""

    op: str
    module: str | None  # module path, "" in the root's own forward, None outside every watched module
    module_type: str | None = None
    autograd_node: str | None = None
    source: Source | None = None
    inputs: tuple[TensorSummary, ...] = ()
    outputs: tuple[TensorSummary, ...] = ()
    example: Example | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)  # non-tensor arguments by name
    id: int | None = None  # the op's id in the snapshot's ops
    aten: str = ""
    derivative: bool = False  # True: the op's derivative made the value (phase "backward")
    derivative_aten: str = ""  # the aten op of the backward that made it, when `derivative`


@dataclass(frozen=True, slots=True)
class BadSource:
    """A value that was already non-finite when it entered the step."""

    kind: str  # "input" | "label" | "parameter" | "buffer"
    name: str  # the argument, the expression, or the parameter's full path
    summary: TensorSummary
    index: tuple[int, ...]  # the first bad element
    value: float
    entry: str | None = None  # the module path that was called with it, for "input"
    since_step: int | None = None  # the first recorded step in which it was seen bad
    made: Frame | None = None  # the user's line that gave the module this parameter or buffer


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """An index that left its range (or a label that cannot be)."""

    op: str
    operand: str  # the name of the index operand: "indices", "target", "index"
    value: int
    position: tuple[int, ...]
    low: int
    high: int  # the allowed range is low <= index < high
    count: int  # how many indices are out of range
    table_shape: tuple[int, ...] = ()
    least: int | None = None  # the smallest of all the indices, those that are ignored left out
    most: int | None = None  # the largest
    made: Frame | None = None  # the user's line that made the module whose table it is


@dataclass(frozen=True, slots=True)
class OptimizerFacts:
    """The optimizer that stepped (or was about to), as numbers."""

    type: str  # "Adam"
    settings: Mapping[str, Any] = field(default_factory=dict)  # lr, eps, betas, weight_decay, ...
    parameter: str | None = None  # the first parameter that became bad in the step
    parameter_dtype: str | None = None
    state: tuple[OperandValue, ...] = ()  # gradient and state at the failing element after the step
    spoiled_state: str | None = None  # the state that was not finite before the step
    spoiled_in: int | None = None  # and the step that made it so, where that was seen
    elements: int | None = None  # how many numbers it updates, over all its parameters
    made: Frame | None = None  # the user's line that constructed the optimizer
