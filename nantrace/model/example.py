"""The first failing element, with everything that went into it."""

from __future__ import annotations

from dataclasses import dataclass

from .summary import TensorSummary


@dataclass(frozen=True, slots=True)
class OperandValue:
    """What one operand held where the failing element was computed from.

    `kind` says what `values` are: "element" (one value), "slice" (what a reduction read),
    "row" / "column" (of a matrix product), "index" (the integer index of an indexing op),
    "read" (what that index read), "state" (an optimizer's state at the element).
    `values` holds at most 64 of them, `summary` describes all of them.
    """

    name: str
    kind: str
    values: tuple[float, ...]
    index: tuple[int, ...] | None = None  # where in the operand, for "element" and "index"
    summary: TensorSummary | None = None

    @property
    def value(self) -> float | None:
        """The one value, where there is exactly one."""
        return self.values[0] if len(self.values) == 1 else None


@dataclass(frozen=True, slots=True)
class Example:
    """One failing element: out[index] = value, from these operand values."""

    index: tuple[int, ...]
    value: float
    operands: tuple[OperandValue, ...] = ()

    def operand(self, name: str) -> OperandValue | None:
        """The operand of that name, or None."""
        return next((operand for operand in self.operands if operand.name == name), None)
