"""How much of each part a report shows; what is past a limit is counted, never dropped in silence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The most of each part on one screen."""

    context: int = 1  # lines of code before and after
    operands: int = 6
    evidence: int = 4
    trend: bool = True  # the loss and the gradient norm of the last steps
    path_head: int = 4
    path_tail: int = 3
    remedies: int = 3
    remedy_code: int = 5  # lines


ROOMY = Limits()
TIGHT = Limits(
    context=0, operands=4, evidence=2, trend=False, path_head=3, path_tail=2, remedies=2, remedy_code=4
)  # for a report that would not fit its screen
TIGHTEST = Limits(context=0, operands=3, evidence=2, trend=False, path_head=2, path_tail=1, remedies=1, remedy_code=4)
