"""GradScaler: its skipped steps are how it works; a bad loss, a NaN in forward and a long streak of skips are not."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch

from ..torch_private import forget_scaler_checks
from .alarm import Alarm, Named, first_bad, gradients_of
from .flatten import tensors_in
from .frames import raw_stack_here
from .session import Session
from .updates import UpdateRecorder

# torch's own initial scale is 2**16 and halves at a skip: sixteen skips in a row have divided a scale by all of it
LONG_STREAK = 16
# "If the scale falls below 1 and/or you are seeing NaNs in your gradients or loss, something is likely wrong"
# (documentation of GradScaler.update)
FLOOR = 1.0


@dataclass(slots=True)
class _Streak:
    """Skips in a row of one scaler."""

    skips: int = 0
    now: bool = False  # a step was skipped since the last `update`
    told: bool = False  # the warning of this streak is out
    refused: bool = False  # a step was refused since the last `update`


class ScalerRecorder:
    """Follows a GradScaler's steps: each is a step, also the one that it skips."""

    def __init__(self, session: Session, updates: UpdateRecorder) -> None:
        self._session = session
        self._updates = updates
        self._streaks: weakref.WeakKeyDictionary[Any, _Streak] = weakref.WeakKeyDictionary()
        self._refusals = 0  # how many updates had been refused when the running step of a scaler began

    def scales(self, loss: Any, scaled: Any) -> None:
        """A scaled loss may overflow where the loss is fine: remember which loss it was."""
        for original, result in zip(tensors_in(loss), tensors_in(scaled), strict=False):
            self._session.scaled[id(result)] = (weakref.ref(result), original.detach())

    def begins(self, scaler: Any, optimizer: torch.optim.Optimizer) -> bool:
        """A loss that was bad before it was scaled is an anomaly, even where the scaler would skip the step.

        Returns whether the step is refused.
        """
        session, refusal = self._session, self._session.refusal
        self._updates.in_scaler += 1
        self._updates.skips_inside = False
        above = session.quiet()
        try:
            parameters = self._updates.watched(optimizer)
            if not parameters:
                return False
            if refusal is not None:
                self._refusals = refusal.count
                if session.clock.stepped_already(optimizer):
                    session.end_step(session.step_point, keep_gradients=True)
                if refusal.refused:
                    refusal.refuse_another(optimizer)
                    return True
            return self._bad_loss(optimizer, parameters)
        except BaseException:
            self._updates.in_scaler -= 1
            raise
        finally:
            session.loud(above)

    def ends(self, scaler: Any, optimizer: torch.optim.Optimizer) -> None:
        """A step that the scaler skipped counts as a step."""
        self._updates.in_scaler -= 1
        session, refusal = self._session, self._session.refusal
        parameters = self._updates.watched(optimizer)
        if not parameters:
            return
        streak = self._streaks.setdefault(scaler, _Streak())
        if refusal is not None and refusal.count > self._refusals:
            streak.refused = True
        stepped = session.clock.stepped_already(optimizer) or not session.gradients.present
        above = session.quiet()
        try:
            if not streak.refused and (self._updates.skips_inside or not stepped):
                self._skipped(scaler, streak, optimizer, parameters)
            if not stepped:
                self._updates.note_step(optimizer)
        finally:
            session.loud(above)

    def updates(self, scaler: Any) -> bool:
        """Whether the scaler's update is refused: its scale must not move for a batch that is skipped."""
        streak = self._streaks.get(scaler)
        if streak is None:
            return False
        if not streak.now and not streak.refused:
            streak.skips, streak.told = 0, False
        refused, streak.refused, streak.now = streak.refused, False, False
        if refused:
            forget_scaler_checks(scaler)
        return refused

    # A bad loss, and skips that are more than a scale that is too large

    def _bad_loss(self, optimizer: torch.optim.Optimizer, parameters: list[Named]) -> bool:
        session = self._session
        pending, session.pending = session.pending, None
        if pending is None or not pending.still_there(parameters):
            return False
        where = f"GradScaler was about to step {type(optimizer).__name__}"
        alarm = Alarm("loss", where, session.clock.step, tokens=[pending.root], stack=raw_stack_here(4))
        alarm.value, alarm.optimizer, alarm.explanation = pending.value, optimizer, pending.explanation
        if not session.raise_alarm(alarm):
            return False
        session.refusal.refuse(optimizer)
        return True

    def _skipped(self, scaler: Any, streak: _Streak, optimizer: torch.optim.Optimizer, parameters: list[Named]) -> None:
        alarm = None
        try:
            if not streak.now:
                streak.skips, streak.now = streak.skips + 1, True
            alarm = self._hidden_nan(optimizer, parameters) or self._long_streak(scaler, streak, optimizer, parameters)
        except Exception as error:
            self._session.fault(error)
        if alarm is not None and self._session.raise_alarm(alarm):
            self._session.refusal.refuse(optimizer)
            streak.refused = True

    def _hidden_nan(self, optimizer: torch.optim.Optimizer, parameters: list[Named]) -> Alarm | None:
        """The scaler skips for a NaN that a module's output already held: no scale can heal that."""
        ring = self._session.ring
        modules = [module for module, low, high in ring.running_bounds("forward") if low != low or high != high]
        bad = first_bad(gradients_of(parameters)) if modules else []
        if not bad:
            return None
        where = f"GradScaler skipped the step of {type(optimizer).__name__}, with a NaN in the output of {modules[0]!r}"
        alarm = Alarm("gradient", where, self._session.clock.step, named=bad, stack=raw_stack_here(5))
        alarm.optimizer, alarm.unless_backward = optimizer, True
        return alarm

    def _long_streak(
        self, scaler: Any, streak: _Streak, optimizer: torch.optim.Optimizer, parameters: list[Named]
    ) -> Alarm | None:
        """One warning for a streak that is long, or that has brought the scale to its floor."""
        if streak.told:
            return None
        scale = scaler.get_scale() * scaler.get_backoff_factor()
        if streak.skips < LONG_STREAK and scale >= FLOOR:
            return None
        bad = self._first_overflowed_first(first_bad(gradients_of(parameters)))
        if not bad:
            return None
        streak.told = True
        many = f"{streak.skips} steps" if streak.skips > 1 else "a step"
        in_a_row = " in a row" if streak.skips > 1 else ""
        where = f"GradScaler has skipped {many}{in_a_row}, its scale is {scale:.4g} now: the gradient of {bad[0][0]}"
        where += " is the first that is not finite"
        alarm = Alarm("gradient", where, self._session.clock.step, named=bad, stack=raw_stack_here(5))
        alarm.optimizer, alarm.advisory = optimizer, True
        return alarm

    def _first_overflowed_first(self, bad: list[Named]) -> list[Named]:
        """The parameters of the module whose gradient was the first bad one in the backward, before the others."""
        for module, low, high in self._session.ring.running_bounds("gradient"):
            if not (math.isfinite(low) and math.isfinite(high)):
                return sorted(bad, key=lambda named: named[0].rpartition(".")[0] != module)
        return bad[::-1]  # without statistics: a backward reaches the last layers first
