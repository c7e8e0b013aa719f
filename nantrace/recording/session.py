"""The state that the parts of a recorder share, and the end of a step, which concerns all of it."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..model import Forecast
from .alarm import Alarm, Pending
from .clock import StepClock
from .forecast import Forecaster
from .glue import lift, put_back
from .gradients import Gradients
from .names import ModuleNames
from .ring import Ring
from .tape import EntryCall, Tape
from .undo import Memories

log = logging.getLogger("nantrace")


@dataclass(slots=True)
class Session:
    """One watch while it runs."""

    names: ModuleNames
    ring: Ring
    tape: Tape
    clock: StepClock
    on_alarm: Callable[[Alarm], bool]  # raises, or says whether the update is to be refused
    strict: bool
    gradients: Gradients
    thread: int
    memories: Memories = field(default_factory=Memories)
    refusal: Any = None  # with on_anomaly="skip": what refuses and undoes a step's updates
    explain_loss: Callable[[torch.Tensor], Any] = lambda root: None  # asked while the graph of a bad loss is alive
    forecaster: Forecaster | None = None  # with forecast=True
    on_forecast: Callable[[list[Forecast]], None] = lambda forecasts: None  # warns
    mode: Any = None  # the glue mode, set once its handlers exist
    listening: bool = False
    contained: int = 0
    faults: int = 0
    calls: list[str] = field(default_factory=list)  # paths of the watched modules whose calls are running
    in_engine: int = 0
    in_closure: int = 0  # optimizer steps with a closure that run: the model is called and updated inside
    pending: Pending | None = None
    hand_written: bool = False  # glue has written a parameter since the last backward
    update_point: int = 0  # the tape's length after the last backward
    step_point: int = 0  # the tape's length after the last optimizer step
    scaled: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = field(default_factory=dict)

    def quiet(self) -> list[Any] | None:
        """Lift the glue mode, so that what runs now is not recorded as glue; give the result to `loud`."""
        return lift(self.mode)

    def loud(self, above: list[Any] | None) -> None:
        """Put the glue mode back."""
        put_back(self.mode, above)

    def raise_alarm(self, alarm: Alarm) -> bool:
        """Raise it, or go on; returns whether the update is to be refused."""
        if self.refusal is not None:
            self.refusal.judge(alarm)
        return self.on_alarm(alarm)

    def fault(self, error: Exception) -> None:
        """A fault of nantrace's own: logged once, and the run goes on without that part of the recording."""
        self.faults += 1
        if self.faults == 1:
            log.warning("nantrace: a fault of its own, recording goes on without that part: %r", error, exc_info=error)

    def tell_forecasts(self) -> None:
        """Give out what the steps that have ended lead to. May raise, where warnings are errors."""
        if self.forecaster is not None and self.forecaster.due:
            self.on_forecast(self.forecaster.take())

    def begin_step_if_dropped(self) -> None:
        """The gradients of the last backward are gone and nothing has stepped: the user skipped that step."""
        if self.gradients.present and not self.in_closure and not self.clock.stepped and self.gradients.dropped():
            if self.pending is not None:
                self.pending = None
                self.contained += 1
            if self.gradients.served_others or self.tape.serves_another_leaf():
                self.gradients.forget()  # of another model's step, or of an attack on an input: nothing was skipped
            else:
                self.end_step(self.update_point)

    def end_step(self, position: int, *, keep_gradients: bool = False) -> None:
        """End the running step: what is on the tape after `position` belongs to the next one."""
        if self.refusal is not None:
            self.refusal.end_step()
        self.memories.end_step()
        taken = self.ring.close(self.clock.advance())
        self.contained += self.ring.count_bad_events()
        if self.forecaster is not None and self.clock.graded:
            self._forecast(self.forecaster)
        if position >= len(self.tape.events):
            self.tape.clear()
        else:
            if keep_gradients:  # an update lies between: what ran before it saw other weights
                self.tape.cut(position)
            for event in self.tape.events:
                if isinstance(event, EntryCall):
                    left = {number: order - taken for number, order in event.events.items()}
                    event.events = {number: order for number, order in left.items() if order >= 0}
        if not keep_gradients:
            self.gradients.forget()
        self.update_point = self.step_point = 0
        self.hand_written = False
        self.scaled.clear()

    def _forecast(self, forecaster: Forecaster) -> None:
        above = self.quiet()
        try:
            forecaster.step_ended(self.ring.rows[-1], scaled=bool(self.scaled))
        except Exception as error:
            self.forecaster = None
            self.fault(error)
        finally:
            self.loud(above)
