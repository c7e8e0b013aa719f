"""What was concluded from a snapshot."""

from __future__ import annotations

from dataclasses import dataclass

from .cause import Cause


@dataclass(frozen=True, slots=True)
class Remedy:
    """One thing to change. `verified` is None when it was not tried."""

    text: str
    code: str | None = None
    verified: bool | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The cause with its evidence in numbers, and what to change."""

    cause: Cause
    confidence: str  # "certain" | "likely" | "undetermined"
    evidence: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    also: tuple[Cause, ...] = ()  # other causes that have evidence too, in order
