"""What a watch with `forecast=True` saw coming."""

from __future__ import annotations

from dataclasses import dataclass

_WHAT = {"forward": "the output of", "gradient": "the gradient at the output of"}


@dataclass(frozen=True, slots=True)
class Forecast:
    """A magnitude that leaves its dtype's range soon, if it goes on as it does."""

    step: int  # the last step that was seen
    kind: str  # "forward" | "gradient" (of a module's output) | "loss" | "gradient norm"
    module: str | None  # the module path; None for the loss and the gradient norm
    absmax: float  # at that step
    factor: float  # the growth per step
    since: int  # the step since which it was seen to grow like that
    dtype: str
    limit: float  # the largest number of the dtype
    steps_left: int

    @property
    def what(self) -> str:
        """What grows, in words: "the output of encoder.layers.3"."""
        if self.module is None:
            return f"the {self.kind}"
        return f"{_WHAT[self.kind]} {self.module or 'the model'}"

    def __str__(self) -> str:
        steps = "step" if self.steps_left == 1 else "steps"
        return (
            f"{self.what} will overflow {self.dtype} in about {self.steps_left} {steps}: at step {self.step} its "
            f"largest magnitude is {self.absmax:.3g} and has grown {_shown(self.factor)}x per step since step "
            f"{self.since}; {self.dtype} ends at {self.limit:.3g}"
        )


def _shown(factor: float) -> str:
    """A factor with the digits that tell it from 1."""
    return f"{factor:.3f}" if factor < 1.1 else f"{factor:.3g}"
