"""The ring buffer's content as a table: step x event x statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One recorded summary: which tensor, where, when, and its statistics.

    `kind` is "forward" (a module's output) or "gradient" (the gradient arriving at it).
    `min` and `max` carry NaN and infinities; `finite` says whether all elements were finite.
    """

    step: int
    order: int  # within the step
    kind: str
    module: str
    output: int  # which of the module's output tensors
    numel: int
    dtype: str
    min: float
    max: float
    mean: float
    rms: float
    finite: bool

    @property
    def absmax(self) -> float:
        """The largest magnitude (NaN where the tensor held NaN)."""
        return max(abs(self.min), abs(self.max))


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What is known of one step as a whole."""

    step: int
    loss: float | None = None  # the last scalar that `backward` was called on
    grad_norm: float | None = None  # the 2-norm over all watched gradients before the update
    lr: float | None = None
    events: int = 0
    dropped: int = 0  # events past the bound on events per step, not recorded
    weight_norm: float | None = None  # the 2-norm over the parameters that were to be updated, before the update


@dataclass(frozen=True, slots=True)
class History:
    """The last `capacity` steps. Iterating gives the events in time order."""

    steps: tuple[StepRecord, ...] = ()
    events: tuple[Event, ...] = ()
    capacity: int = 0
    evicted_steps: int = 0  # older steps that the ring no longer holds

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def at(self, step: int) -> tuple[Event, ...]:
        """The events of one step, in order."""
        return tuple(event for event in self.events if event.step == step)

    def until(self, step: int) -> History:
        """The steps before this one, as a history of their own."""
        steps = tuple(record for record in self.steps if record.step < step)
        return History(steps, tuple(e for e in self.events if e.step < step), self.capacity, self.evicted_steps)

    def modules(self) -> tuple[str, ...]:
        """The module paths that have events, in order of first appearance."""
        return tuple(dict.fromkeys(event.module for event in self.events))

    def series(self, module: str, kind: str = "forward", statistic: str = "absmax") -> list[tuple[int, float]]:
        """One statistic of one module over the steps, as (step, value); the largest where a step has several."""
        found: dict[int, float] = {}
        for event in self.events:
            if event.module == module and event.kind == kind:
                value = getattr(event, statistic)
                known = found.get(event.step)
                found[event.step] = value if known is None or value != value or value > known else known
        return sorted(found.items())
