"""What was concluded from a snapshot."""

from __future__ import annotations

from dataclasses import dataclass

from .cause import Cause
from .change import Change
from .source import Frame


@dataclass(frozen=True, slots=True)
class Remedy:
    """One thing to change. `verified` is None when it was not tried.

    `change` is what trying it means. Where `code` is a line of the user's own program written anew, `replaces` is
    that line; else `code` is a snippet to adapt.
    """

    text: str
    code: str | None = None
    verified: bool | None = None
    change: Change | None = None
    replaces: Frame | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The cause with its evidence in numbers, and what to change."""

    cause: Cause
    confidence: str  # "certain" | "likely" | "undetermined"
    evidence: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    also: tuple[Cause, ...] = ()  # other causes that have evidence too, in order
