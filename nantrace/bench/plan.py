"""What is to be measured, as plain data: the works, the tools, the measures, and how long each may take."""

from __future__ import annotations

from dataclasses import dataclass

MEASURES = {
    "overhead": "the time of a step, each tool against none",
    "memory": "the peak memory of a step, each tool against none",
    "report": "from the alarm to the report, by the size of the graph",
    "start": "the start of the command line",
    "growth": "how all of this grows with modules, steps and tensor size",
}
WORKS = {
    "tiny-mlp": "tiny MLP",
    "small-transformer": "small Transformer",
    "medium-transformer": "medium Transformer",
    "resnet": "ResNet-style CNN",
    "tiny-cnn": "tiny CNN",
    "lstm-cells": "LSTM cells, 200 steps",
    "lstm": "nn.LSTM",
    "large-logits": "large logits, loss by hand",
    "gpt2": "GPT-2 124M",
}
LEVELS = ("loss", "module", "op")
TOOLS = {
    "nantrace": "nantrace, as installed",
    "torch-ops": "nantrace, torch ops only",
    "detect-anomaly": "`detect_anomaly`",
    "hf-debugger": "HF `DebugUnderflowOverflow`",
    "first-nan-mode": "first-NaN mode",
    "isnan-hooks": "`isnan` hooks",
}
OURS = ("nantrace", "torch-ops")
WIDTH = 32  # of the stack of blocks that is made to fail
PHASES = ("forward", "backward")  # in which the fault of a report is born
COMMANDS = (
    "python -c pass",
    "nantrace --help",
    "nantrace show DUMP",
    "nantrace history DUMP",
    "python -c 'import torch'",
)
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}

# What growth is measured of, with its unit, by the parameter that it is measured over.
_OF_A_STEP = {'a step, "loss"': "s", 'a step, "module"': "s", "memory held": "B"}
_OF_A_FAILURE = {"report": "s", "writing the dump": "s", "dump": "B"}
GROWTH = {
    "modules": {**_OF_A_STEP, **_OF_A_FAILURE},
    "elements": {**_OF_A_STEP, **_OF_A_FAILURE},
    "recorded": {"memory held": "B", **_OF_A_FAILURE},
    "steps": {"a step, watched": "s", "memory held": "B", "resident memory": "B"},
}
GROWTH_IN_WORDS = {
    "modules": "modules",
    "elements": "elements of a tensor",
    "recorded": "steps in the ring buffer",
    "steps": "steps past a full ring buffer",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One tool, at one level where it is ours: a column of the tables."""

    tool: str
    level: str = ""

    @classmethod
    def of(cls, key: str) -> Column:
        """The column of that key."""
        tool, _, level = key.rpartition("-")
        return cls(tool, level) if level in LEVELS else cls(key)

    @property
    def key(self) -> str:
        """Its name for programs."""
        return f"{self.tool}-{self.level}" if self.level else self.tool

    @property
    def label(self) -> str:
        """Its name in a table."""
        if self.tool == "nantrace":
            return f'`level="{self.level}"`'
        return f'torch ops, `"{self.level}"`' if self.level else TOOLS[self.tool]


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is measured: seconds of training per work, and the sizes that each measure goes through."""

    works: tuple[str, ...]  # where none are named
    memory_works: tuple[str, ...]
    memory_columns: tuple[str, ...]  # each takes child processes of its own
    seconds: float  # per work, over all tools
    block_s: float  # of a block of steps
    pairs: int  # at least so many
    repeats: int  # of a report and of a start
    children: int  # of each program and tool, for memory
    stacks: tuple[int, ...]  # blocks, for the report
    modules: tuple[int, ...]  # blocks, for growth
    rows: tuple[int, ...]  # of 32 elements, for growth with the size of tensors
    recorded: tuple[int, ...]  # steps in the ring buffer
    steps: tuple[int, ...]  # steps of one watch, past what the ring buffer holds


FULL = Pace(
    works=("tiny-mlp", "small-transformer", "medium-transformer", "resnet", "tiny-cnn", "lstm-cells", "lstm"),
    memory_works=("small-transformer", "large-logits"),
    memory_columns=("nantrace-loss", "nantrace-module", "nantrace-op", "detect-anomaly"),
    seconds=30.0,
    block_s=0.3,
    pairs=5,
    repeats=5,
    children=3,
    stacks=(40, 80, 160, 320),
    modules=(5, 20, 80, 320),
    rows=(16, 128, 1024, 8192),
    recorded=(10, 50, 250, 1000),
    steps=(200, 400, 800, 1600),
)
QUICK = Pace(
    works=("tiny-mlp", "small-transformer"),
    memory_works=("small-transformer",),
    memory_columns=("nantrace-module",),
    seconds=2.0,
    block_s=0.03,
    pairs=3,
    repeats=1,
    children=1,
    stacks=(5, 20),
    modules=(2, 8, 32),
    rows=(16, 64, 256),
    recorded=(5, 15, 45),
    steps=(110, 140, 170),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of the benchmark."""

    pace: Pace = FULL
    measures: tuple[str, ...] = tuple(MEASURES)
    works: tuple[str, ...] = ()  # none: those of the pace
    tools: tuple[str, ...] = tuple(TOOLS)
    levels: tuple[str, ...] = LEVELS
    steps: int | None = None  # of a block; None: as many as take `block_s`
    compiled: bool = False
    dtype: str = "fp32"
    device: str = "cpu"
    threads: int = 1

    @property
    def overhead_works(self) -> tuple[str, ...]:
        """The works whose steps are timed."""
        return self.works or self.pace.works

    @property
    def memory_works(self) -> tuple[str, ...]:
        """The works whose memory is measured."""
        return self.works or self.pace.memory_works

    @property
    def columns(self) -> tuple[Column, ...]:
        """The tools as columns: ours at each level."""
        found: list[Column] = []
        for tool in self.tools:
            found += [Column(tool, level) for level in self.levels] if tool in OURS else [Column(tool)]
        return tuple(found)

    @property
    def memory_columns(self) -> tuple[Column, ...]:
        """The tools whose memory is measured."""
        return tuple(column for column in self.columns if column.key in self.pace.memory_columns)
