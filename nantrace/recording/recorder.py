"""The recorder: listens to one thread's training, keeps the ring and the tape, and raises the alarm.

The parts follow what they listen to: module calls, the engine, glue, optimizers. They share a `Session`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from ..model import Forecast
from ..torch_private import EngineArguments
from . import patches, schedules
from .alarm import Alarm, Named
from .calls import CallRecorder
from .clock import StepClock
from .compiled import CompiledInPlace
from .engine import EngineRecorder, Ticket
from .forecast import Forecaster
from .glue import GlueHandler, GlueMode, lift, put_back
from .glue_ops import FailedGlue, GlueRecorder
from .gradients import Gradients
from .intervals import ModuleIntervals
from .names import ModuleNames
from .observer import ObservedGlue, ObservedRecorder, ObservedRing, OpObserver
from .refusal import Refusal
from .ring import Ring
from .scalers import ScalerRecorder
from .session import Session
from .tape import EntryCall, Tape
from .updates import UpdateRecorder
from .wrapping import WrappedCalls, wrappable

MAX_TAPE_EVENTS = 20_000
MAX_TAPE_BYTES = 1 << 30


class Recorder:
    """Records one watch. `on_alarm` is called with each alarm, before the value can have consequences; it may raise.

    With `skips`, an alarm for which it returns True is refused: its step ends as if the batch had not been there.
    With `on_forecast`, magnitudes that will leave their dtype's range are told to it, between two steps.

    Everything else is guarded: a fault of our own is logged once and recording degrades, the run goes on.
    """

    def __init__(
        self,
        modules: tuple[torch.nn.Module, ...],
        *,
        capacity: int,
        statistics: bool,
        strict: bool,
        on_alarm: Callable[[Alarm], bool],
        skips: bool,
        explain_loss: Callable[[torch.Tensor], Any],
        intervals: ModuleIntervals | None = None,
        observer: OpObserver | None = None,
        on_forecast: Callable[[list[Forecast]], None] | None = None,
    ) -> None:
        names = ModuleNames(modules)
        tape = Tape(MAX_TAPE_EVENTS, MAX_TAPE_BYTES)
        self.thread = threading.get_ident()
        clock, gradients = StepClock(names), Gradients(names)
        ring = Ring(capacity) if observer is None else ObservedRing(capacity, observer)
        self.session = Session(names, ring, tape, clock, on_alarm, strict, gradients, self.thread)
        self.session.explain_loss = explain_loss
        if on_forecast is not None:
            self.session.forecaster, self.session.on_forecast = Forecaster(_widest(names)), on_forecast
        self.intervals = intervals
        if skips:
            self.session.refusal = Refusal(self.session)
        self._updates = UpdateRecorder(self.session, keeps_foreign=statistics)
        self._scalers = ScalerRecorder(self.session, self._updates)
        self._calls = CallRecorder(self.session, self._updates.repair, statistics=statistics)
        self._engine = EngineRecorder(self.session, self._calls.weights)
        self._glue = GlueRecorder(self.session)
        # bound once: a module's call happens hundreds of times a step, and every layer between costs
        self.module_begins = self._calls.begins
        self.module_ends = self._calls.ends
        self.observer = observer
        self._listener: Any = self
        handler: GlueHandler = self._glue
        if observer is not None:
            self._listener = ObservedRecorder(self, self.session, observer)
            handler = ObservedGlue(self._glue, self.session, observer)
        self.session.mode = GlueMode(handler)
        # calls that are compiled in place are told to whom the other calls are told
        told = self._listener
        self._compiled = CompiledInPlace(modules, told.module_begins, told.module_ends)
        self._wrapped = WrappedCalls(names, self._calls) if observer is None and wrappable(names) else None

    # What is asked of it

    @property
    def names(self) -> ModuleNames:
        """The module paths and parameter names."""
        return self.session.names

    @property
    def ring(self) -> Ring:
        """The ring buffer."""
        return self.session.ring

    @property
    def tape(self) -> Tape:
        """The running step's tape."""
        return self.session.tape

    @property
    def clock(self) -> StepClock:
        """The step counter."""
        return self.session.clock

    @property
    def contained(self) -> int:
        """How many non-finite values had no consequences."""
        return self.session.contained

    @property
    def faults(self) -> int:
        """How many faults of nantrace's own were survived."""
        return self.session.faults

    @property
    def failed_glue(self) -> FailedGlue | None:
        """The last op outside the modules that raised."""
        return self._glue.failed

    def quiet(self) -> list[Any] | None:
        """Lift the glue mode, so that our own ops are not recorded; give the result to `loud`."""
        return self.session.quiet()

    def loud(self, above: list[Any] | None) -> None:
        """Put the glue mode back."""
        self.session.loud(above)

    # Starting and stopping

    def start(self) -> None:
        """Begin to listen. The glue mode goes on this thread's stack."""
        patches.listen(self._listener)
        if self._wrapped is None:
            patches.listen_to_modules(self._listener)
        if self.intervals is not None:
            self.intervals.listen_to(self.session)
        self.session.listening = True
        calls = self._wrapped or self._compiled
        calls.start()
        if self.session.refusal is not None:
            schedules.listen(self.session.refusal)
        try:
            if self.observer is not None:
                self._listener.start()
            self.session.mode.__enter__()
        except BaseException:
            self._stop_listening()
            calls.stop()
            raise

    def stop(self) -> None:
        """Take off every hook, patch and mode of ours."""
        self.session.listening = False
        self._stop_listening()
        (self._wrapped or self._compiled).stop()
        lift(self.session.mode)
        # leave through the mode's own __exit__, which restores torch's flags; the user's modes stay where they are
        put_back(self.session.mode, [])
        self.session.mode.__exit__(None, None, None)
        if self.observer is not None:
            self._listener.take_off()
        self.session.calls.clear()

    def _stop_listening(self) -> None:
        patches.stop_listening(self._listener)
        if self.intervals is not None:
            self.intervals.stop()
        if self.session.refusal is not None:
            self.session.refusal.stop()
            schedules.stop_listening(self.session.refusal)

    def at_end(self) -> None:
        """The watched block ends without an exception: a pending loss or bad gradients still wait for their update."""
        session = self.session
        session.tell_forecasts()
        if session.gradients.present and not session.gradients.dropped():
            parameters: list[Named] = [(name, parameter) for parameter, name in self.names.parameters.values()]
            above = session.quiet()
            try:
                self._updates.check_at_end(parameters)
            finally:
                session.loud(above)
        elif session.pending is not None:
            session.contained += 1
        session.pending = None

    @property
    def entry(self) -> EntryCall | None:
        """The outermost call that is running, or None."""
        return self._calls.entry

    # What it is told

    def engine_begins(self, call: EngineArguments) -> Ticket | None:
        """The engine is about to run."""
        self._updates.repair()
        return self._engine.begins(call)

    def engine_ends(self, ticket: Ticket | None, result: Any) -> None:
        """The engine has run."""
        self._engine.ends(ticket, result)

    def optimizer_begins(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """An optimizer is about to step."""
        self._updates.begins(optimizer, closure)

    def optimizer_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped."""
        self._updates.ends(optimizer)

    def scaler_scales(self, loss: Any, scaled: Any) -> None:
        """A GradScaler has scaled a loss."""
        self._scalers.scales(loss, scaled)

    def scaler_begins(self, scaler: Any, optimizer: torch.optim.Optimizer) -> bool:
        """A GradScaler decides whether to step; returns whether that is refused."""
        return self._scalers.begins(scaler, optimizer)

    def scaler_ends(self, scaler: Any, optimizer: torch.optim.Optimizer) -> None:
        """A GradScaler has stepped or skipped."""
        self._scalers.ends(scaler, optimizer)

    def scaler_updates(self, scaler: Any) -> bool:
        """A GradScaler is about to move its scale; returns whether that is refused."""
        return self._scalers.updates(scaler)


def _widest(names: ModuleNames) -> torch.dtype:
    """The dtype that the norm of all gradients is computed in, at least."""
    dtypes = {parameter.dtype for parameter, _ in names.parameters.values() if parameter.is_floating_point()}
    return max(dtypes | {torch.float32}, key=lambda dtype: torch.finfo(dtype).max)
