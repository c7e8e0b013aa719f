"""Optimizers and scalers: the last moment at which the weights are clean, and the first one after."""

from __future__ import annotations

import math
import sys
import weakref
from types import FrameType
from typing import Any

import torch

from ..torch_private import optimizer_file, step_supports_scaler
from .alarm import Alarm, Named, first_bad, gradients_of, total_norm
from .flatten import tensors_in
from .frames import raw_stack_here
from .session import Session
from .tape import EntryCall, Update


class UpdateRecorder:
    """Checks gradients before an optimizer's step and parameters after it, and counts steps."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._above: list[list[Any] | None] = []  # one per optimizer step that runs (they may nest)
        self._in_scaler = 0
        self._parameters: dict[int, tuple[weakref.ref[Any], tuple[int, ...], list[Named]]] = {}

    def begins(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """Look at the pending loss and the gradients.

        A step with a closure runs the model inside: its glue stays observed, its writes count as hand-written ones.
        """
        session = self._session
        above = None if closure else session.quiet()
        self._above.append(above)
        session.in_closure += closure
        try:
            parameters = self._watched(optimizer)
            if parameters and session.clock.stepped_already(optimizer):
                session.end_step(session.step_point, keep_gradients=True)
        except Exception as error:
            session.fault(error)
            return
        if closure or not parameters or (self._in_scaler and step_supports_scaler(optimizer)):
            return
        try:
            self.check(parameters, f"the optimizer {type(optimizer).__name__} was about to step", optimizer)
        except BaseException:
            self._above.pop()
            session.loud(above)
            raise

    def repair(self) -> None:
        """An exception left an optimizer's step without telling us: forget it, unless it is still on the stack."""
        if not self._above:
            return
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code.co_name == "wrapper" and frame.f_code.co_filename == optimizer_file():
                return
            frame = frame.f_back
        self._session.in_closure = 0
        self._session.loud(next((above for above in self._above if above is not None), None))
        self._above.clear()

    def ends(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the parameters that the step has written."""
        session = self._session
        above = self._above.pop() if self._above else None
        session.in_closure -= session.in_closure > 0
        alarm = None
        parameters: list[Named] = []
        try:
            parameters = self._watched(optimizer)
            if parameters:
                alarm = self._bad_parameters(parameters, optimizer)
                self._note_update(optimizer, parameters)
            else:
                session.gradients.served_others = True
        except Exception as error:
            session.fault(error)
        try:
            if alarm is not None:
                session.raise_alarm(alarm)
            if parameters:
                self._note_step(optimizer)
        finally:
            session.loud(above)

    def scaler_scales(self, loss: Any, scaled: Any) -> None:
        """A scaled loss may overflow where the loss is fine: remember which loss it was."""
        for original, result in zip(tensors_in(loss), tensors_in(scaled), strict=False):
            self._session.scaled[id(result)] = (weakref.ref(result), original.detach())

    def scaler_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """A loss that was bad before it was scaled is an anomaly, even where the scaler would skip the step."""
        self._in_scaler += 1
        session = self._session
        if session.pending is None:
            return
        pending, session.pending = session.pending, None
        if pending.still_there(self._watched(optimizer)):
            where = f"GradScaler was about to step {type(optimizer).__name__}"
            alarm = Alarm("loss", where, session.clock.step, tokens=[pending.root], stack=raw_stack_here(3))
            alarm.value, alarm.optimizer, alarm.explanation = pending.value, optimizer, pending.explanation
            above = session.quiet()
            try:
                session.raise_alarm(alarm)
            except BaseException:
                self._in_scaler -= 1
                raise
            finally:
                session.loud(above)

    def scaler_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """A step that the scaler skipped counts as a step."""
        self._in_scaler -= 1
        session = self._session
        if session.clock.stepped_already(optimizer) or not session.gradients.present or not self._watched(optimizer):
            return
        above = session.quiet()
        try:
            self._note_step(optimizer)
        finally:
            session.loud(above)

    def check(self, parameters: list[Named], where: str, optimizer: torch.optim.Optimizer | None) -> None:
        """Raise the alarm where a pending loss or a bad gradient is about to be used."""
        try:
            alarm = self._bad_gradients(parameters, where)
        except Exception as error:
            self._session.fault(error)
            return
        if alarm is not None:
            alarm.optimizer = optimizer
            self._session.raise_alarm(alarm)

    def _bad_gradients(self, parameters: list[Named], where: str) -> Alarm | None:
        session = self._session
        gradients = gradients_of(parameters)
        norm = total_norm([gradient for _, gradient in gradients])
        session.ring.grad_norm = norm
        pending, session.pending = session.pending, None
        if pending is not None:
            if pending.still_there(parameters):
                alarm = Alarm("loss", where, session.clock.step, tokens=[pending.root], stack=raw_stack_here(5))
                alarm.value, alarm.explanation = pending.value, pending.explanation
                return alarm
            session.contained += 1
        if not math.isfinite(norm):
            bad = first_bad(gradients)
            if bad:
                return Alarm("gradient", where, session.clock.step, named=bad, stack=raw_stack_here(5))
        return self._strict_alarm(where) if session.strict else None

    def _strict_alarm(self, where: str) -> Alarm | None:
        """A NaN in any module's output, be it without consequences."""
        session = self._session
        path = session.ring.first_nan()
        entries = [event for event in session.tape.events if isinstance(event, EntryCall) and not event.expected]
        if path is None or not entries:
            return None
        tokens = [token for entry in entries for token in entry.outputs]
        alarm = Alarm("result", where, session.clock.step, tokens=tokens, stack=entries[-1].stack)
        alarm.within = path
        return alarm

    def _bad_parameters(self, parameters: list[Named], optimizer: torch.optim.Optimizer) -> Alarm | None:
        updated = [(name, parameter) for name, parameter in parameters if parameter.grad is not None]
        if math.isfinite(total_norm([parameter for _, parameter in updated])):
            return None
        bad = first_bad(updated)
        if not bad:
            return None
        where = f"the parameter {bad[0][0]} is no longer finite after {type(optimizer).__name__} stepped"
        alarm = Alarm("parameter", where, self._session.clock.step, named=bad, stack=raw_stack_here(4))
        alarm.optimizer = optimizer
        return alarm

    def _note_update(self, optimizer: torch.optim.Optimizer, parameters: list[Named]) -> None:
        session = self._session
        session.ring.lr = float(optimizer.param_groups[0].get("lr", math.nan))
        session.tape.add(Update(frozenset(id(p) for _, p in parameters), type(optimizer).__name__))
        session.step_point = len(session.tape.events)
        session.ring.mark()

    def _note_step(self, optimizer: torch.optim.Optimizer) -> None:
        session = self._session
        try:
            if session.clock.note_step(optimizer):
                session.end_step(len(session.tape.events))
        except Exception as error:
            session.fault(error)

    def _watched(self, optimizer: torch.optim.Optimizer) -> list[Named]:
        """The watched parameters of an optimizer, found anew only when its groups or the model have grown."""
        shape = (len(self._session.names.parameters), *(len(group["params"]) for group in optimizer.param_groups))
        known = self._parameters.get(id(optimizer))
        if known is not None and known[0]() is optimizer and known[1] == shape:
            return known[2]
        found = self._session.names.watched(p for group in optimizer.param_groups for p in group["params"])
        if found:
            found += self._unwatched(optimizer)
        self._parameters[id(optimizer)] = (weakref.ref(optimizer), shape, found)
        return found

    def _unwatched(self, optimizer: torch.optim.Optimizer) -> list[Named]:
        """What else an optimizer of a watched model steps (learned codes, another model), by place in its groups."""
        return [
            (f"param_groups[{group}]['params'][{number}]", parameter)
            for group, members in enumerate(optimizer.param_groups)
            for number, parameter in enumerate(members["params"])
            if self._session.names.parameter(parameter) is None
        ]
