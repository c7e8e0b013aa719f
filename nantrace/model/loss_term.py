"""One additive term of the loss."""

from __future__ import annotations

from dataclasses import dataclass

from .source import Source


@dataclass(frozen=True, slots=True)
class LossTerm:
    """What one term gave to the loss of the failing step, and to its gradient."""

    name: str  # the user's own: "kl" in `loss = recon + beta * kl`
    value: float | None  # of the term itself, without its weight
    weight: float  # what it is multiplied by: beta
    gradient_norm: float | None = None  # of weight * term, over all watched parameters; None where it was not measured
    source: Source | None = None  # the line that computed it
    count: int = 1  # how many terms of that line these are (a loss for each time step): their sum
