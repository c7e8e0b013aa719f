"""What was measured, as plain data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some figures, with their quartiles."""

    low: float
    middle: float
    high: float
    count: int

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """The spread of at least one figure."""
        if len(figures) == 1:
            return cls(figures[0], figures[0], figures[0], 1)
        low, middle, high = statistics.quantiles(figures, n=4, method="inclusive")
        return cls(low, middle, high, len(figures))


@dataclass(frozen=True, slots=True)
class Missing:
    """Why there is no figure."""

    reason: str


Cell = Spread | Missing


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured, and with what."""

    processor: str
    cores: int
    load: float | None  # how many processes wanted to run when it began
    device: str
    python: str
    torch: str
    nantrace: str
    threads: int
    kernel: str  # whether the C kernel reads CPU tensors, and why not
    clock: str
    dtype: str
    compiled: bool


@dataclass(frozen=True, slots=True)
class Overhead:
    """One work: a plain step, and the ratio of each tool's step to the plain one beside it."""

    work: str
    plain_s: Cell
    ratios: Mapping[str, Cell] = field(default_factory=dict)  # by the key of the column


@dataclass(frozen=True, slots=True)
class Peak:
    """The peak of one program over its first steps, in bytes above what there was before."""

    resident: Spread
    tensors: Spread


@dataclass(frozen=True, slots=True)
class Memory:
    """One work: its own peaks, and those under each tool."""

    work: str
    plain: Peak | Missing
    watched: Mapping[str, Peak | Missing] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """What one anomaly took, in seconds and bytes."""

    report_s: float
    save_s: float
    load_s: float
    dump_bytes: int


@dataclass(frozen=True, slots=True)
class Reported:
    """Reports of one fault in one size of program."""

    born: str  # the phase
    blocks: int
    nodes: int
    step_s: float
    failures: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """The start of one command, in seconds of CPU and of wall time."""

    command: str
    cpu_s: Cell
    wall_s: Cell


@dataclass(frozen=True, slots=True)
class Growth:
    """One quantity over one parameter: (parameter, figure) points."""

    over: str
    quantity: str
    unit: str  # "s" or "B"
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that one run measured; what was not asked for is empty."""

    machine: Machine
    overhead: tuple[Overhead, ...] = ()
    memory: tuple[Memory, ...] = ()
    report: tuple[Reported, ...] = ()
    start: tuple[Start, ...] = ()
    growth: tuple[Growth, ...] = ()
