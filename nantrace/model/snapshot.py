"""Everything that was seen, as plain data: what a dump holds and what diagnosis reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .change import Trial
from .history import History
from .loss_term import LossTerm
from .op import Edge, Op
from .origin import BadSource, IndexFacts, OptimizerFacts, Origin
from .summary import TensorSummary


@dataclass(frozen=True, slots=True)
class Symptom:
    """Where the non-finite value was noticed.

    `kind` is "loss" (a scalar at `backward`), "gradient" (of the parameter `name`), "parameter"
    (`name`, after the update), "result" (of an entry call without gradients), or "exception".
    """

    kind: str
    name: str = ""  # parameter name for "gradient" and "parameter", entry path for "result"
    summary: TensorSummary | None = None
    value: float | None = None
    where: str = ""  # a sentence: "the optimizer Adam was about to step"
    declared: bool = False  # the program wrote the value on purpose: a placeholder, a mask


@dataclass(frozen=True, slots=True)
class ReplayFacts:
    """How the replay of the step went."""

    reproduced: bool | None = None  # None: there was no replay
    reasons: tuple[str, ...] = ()  # why it did not reproduce, or was not run, in sentences
    ops: int = 0
    seconds: float = 0.0
    doubts: tuple[str, ...] = ()  # what had changed since the live run, in sentences: a difference proves nothing then
    changed: tuple[str, ...] = ()  # the same, where the answer does not rest on the replay


@dataclass(frozen=True, slots=True)
class Expected:
    """Non-finite values that were seen and judged harmless."""

    what: str
    reason: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class ExceptionFacts:
    """The user's own exception that left the watched block."""

    type: str
    message: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that was seen of one anomaly. Holds no tensor, no module, no frame."""

    step: int
    phase: str  # "input" | "forward" | "loss" | "backward" | "optimizer" | "parameters"
    symptom: Symptom
    origin: Origin | None = None
    path: tuple[int, ...] = ()  # ids of ops from the origin to the symptom
    ops: tuple[Op, ...] = ()
    edges: tuple[Edge, ...] = ()
    ops_left_out: int = 0  # ops of the replay past the bound, not kept here
    modules: Mapping[str, str] = field(default_factory=dict)  # module path -> type name
    history: History = field(default_factory=History)
    replay: ReplayFacts = field(default_factory=ReplayFacts)
    source_value: BadSource | None = None  # phases "input" and "parameters"
    index: IndexFacts | None = None
    optimizer: OptimizerFacts | None = None
    exception: ExceptionFacts | None = None
    expected: tuple[Expected, ...] = ()
    also: tuple[Origin, ...] = ()  # other origins that are as good
    environment: Mapping[str, Any] = field(default_factory=dict)  # versions, device, threads, time, rank
    trials: tuple[Trial, ...] = ()  # remedies that were tried in a replay
    terms: tuple[LossTerm, ...] = ()  # of the loss, where it is a sum of at least two
