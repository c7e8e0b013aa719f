"""One executed op, what it did with non-finite values, and the graph that ops form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .source import Source
from .summary import TensorSummary


class Status(str, Enum):
    """What an op did with non-finite values."""

    CLEAN = "clean"  # finite in, finite out
    GENERATED = "generated"  # finite (or declared) in, non-finite out
    PROPAGATED = "propagated"  # non-finite in, non-finite out
    KILLED = "killed"  # non-finite in, finite out
    DECLARED = "declared"  # non-finite on purpose: a mask, a fill, a literal

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Op:
    """One op as it was executed (in the replay, or live for glue)."""

    id: int  # the order of execution
    name: str  # "log", "addmm", "softmax": ATen's name made plain
    aten: str  # "aten::log.default"
    phase: str  # "forward" | "loss" | "backward" | "optimizer" : where it ran
    status: Status = Status.CLEAN
    module: str | None = None  # module path, "" for the root, None outside every watched module
    module_type: str | None = None
    autograd_node: str | None = None  # "LogBackward0"
    forward_id: int | None = None  # for an op of the backward: the op it differentiates
    source: Source | None = None
    inputs: tuple[TensorSummary, ...] = ()
    outputs: tuple[TensorSummary, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)  # non-tensor arguments by name


@dataclass(frozen=True, slots=True)
class Edge:
    """A tensor that went from one op to another (or from a source into an op)."""

    upstream: int
    downstream: int
    operand: int  # which of the downstream op's inputs
    output: int = 0  # which of the upstream op's outputs
