"""What one rule found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..model import Cause, Remedy, Snapshot


@dataclass(frozen=True, slots=True)
class Finding:
    """A cause that has evidence. "certain" only where the operand values prove it."""

    cause: Cause
    confidence: str  # "certain" | "likely" | "undetermined"
    evidence: tuple[str, ...]
    remedies: tuple[Remedy, ...] = ()


Rule = Callable[[Snapshot], "Finding | None"]
