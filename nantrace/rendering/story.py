"""The display data of a report: what a face prints, and nothing of how it prints it.

A story is a headline and sections; a section is a label and rows; a row is one of the frozen
values below. All text in it is harmless already (see harmless.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Headline:
    """What, where and why in one sentence, and where to look."""

    value: str  # "NaN", "-inf", "IndexError"
    text: str
    place: str = ""  # "torch.log(1.0 - fake) at train.py:41"


@dataclass(frozen=True, slots=True)
class Sentence:
    """Prose, wrapped to the width at hand."""

    text: str
    role: str = "body"  # a field of Style


@dataclass(frozen=True, slots=True)
class CodeLine:
    """One line of the program; `marks` are the columns to underline, end excluded."""

    number: int
    text: str
    marks: tuple[tuple[int, int], ...] = ()
    current: bool = False


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """The line that called the op, with its neighbours where they are known."""

    place: str  # "train.py:41 in discriminator_loss"
    lines: tuple[CodeLine, ...] = ()


@dataclass(frozen=True, slots=True)
class OperandLine:
    """One tensor at the failing element: `(1.0 - fake)[3, 0]`, `0`, `float32[16, 1], 0 .. 0.98`."""

    name: str
    value: str
    facts: str
    role: str = "body"


@dataclass(frozen=True, slots=True)
class Operands:
    """The operand lines, to be aligned with each other."""

    lines: tuple[OperandLine, ...]


@dataclass(frozen=True, slots=True)
class PathLine:
    """One stop on the way from the origin to where the value was noticed."""

    kind: str  # "origin" | "step" | "end"
    what: str  # the op, or what was noticed
    module: str = ""  # the module's path, only where it changes
    module_type: str = ""
    place: str = ""
    state: str = ""  # "2 -inf of 16"


@dataclass(frozen=True, slots=True)
class Fold:
    """Stops that are not shown."""

    count: int
    note: str  # "all non-finite, through 3 modules"


@dataclass(frozen=True, slots=True)
class Trail:
    """The stops in order, to be aligned with each other."""

    stops: tuple[PathLine | Fold, ...]


@dataclass(frozen=True, slots=True)
class Fix:
    """One remedy. `verified` is True, False, or None (not tried); `place` is the line that `code` replaces."""

    number: int
    text: str
    code: tuple[str, ...] = ()
    verified: bool | None = None
    place: str = ""


Row = Sentence | CodeBlock | Operands | Trail | Fix


@dataclass(frozen=True, slots=True)
class Section:
    """Rows that answer one question: Code, Where, Why, Path, Fix, State."""

    label: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Story:
    """A whole report for one screen."""

    headline: Headline
    sections: tuple[Section, ...]
