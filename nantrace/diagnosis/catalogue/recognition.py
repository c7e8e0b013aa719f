"""How a cause is recognised, in the words of the rules themselves: which rules find it, and what each asks for.

The first line of a rule's docstring is what it sees; "Certain:" and "Likely:" say what makes it so sure.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

from ...model import Cause
from ..rules import CAUSES_OF
from ..unexplained import undetermined


@dataclass(frozen=True, slots=True)
class Recognition:
    """What one rule sees, and when it calls that certain or likely; "" where it never does."""

    rule: str
    sees: str
    certain: str = ""
    likely: str = ""


def recognitions(cause: Cause) -> tuple[Recognition, ...]:
    """What the rules that find a cause say of themselves, in the order in which they are asked."""
    if cause is Cause.UNDETERMINED:
        return (recognition(undetermined),)
    return tuple(recognition(rule) for rule, causes in CAUSES_OF.items() if cause in causes)


def recognition(rule: Callable[..., object]) -> Recognition:
    """What the docstring of a rule says."""
    first, *parts = re.split(r"^(Certain|Likely): ", inspect.getdoc(rule) or "", flags=re.MULTILINE)
    told = {label: " ".join(text.split()) for label, text in zip(parts[::2], parts[1::2], strict=True)}
    return Recognition(rule.__name__, " ".join(first.split()), told.get("Certain", ""), told.get("Likely", ""))
