"""Optimizers: the last moment at which the weights are clean, and the first one after."""

from __future__ import annotations

import math
import sys
import weakref
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from ..torch_private import is_torch_optimizer, optimizer_file, step_supports_scaler
from .alarm import Alarm, Named, first_bad, gradients_of, total_norm
from .frames import raw_stack_here
from .session import Session
from .tape import EntryCall, Update
from .undo import Structure, at_risk, structure_of


@dataclass(frozen=True, slots=True)
class _Running:
    """An optimizer's step that runs."""

    optimizer: torch.optim.Optimizer
    above: list[Any] | None  # the user's modes over ours, while ours is lifted
    closure: bool
    inner: bool = False  # the step of a parent class, called by the step of the same optimizer


# bytes of weights up to which each step of a foreign optimizer is kept: with state and gradients about four times as
# much is copied, in a few milliseconds. Of larger ones only steps at risk are.
SMALL = 4 << 20


class UpdateRecorder:
    """Checks gradients before an optimizer's step and parameters after it, and counts steps."""

    def __init__(self, session: Session, *, keeps_foreign: bool) -> None:
        self._session = session
        self._running: list[_Running] = []  # the optimizer steps that run (they may nest)
        self.in_scaler = 0  # steps of a GradScaler that run
        self.skips_inside = False  # the optimizer that a GradScaler called will do nothing: its kernel sees to that
        self._keeps_foreign = keeps_foreign
        self._kinds: dict[type, bool] = {}  # optimizer class -> whether it is not torch's
        # the norm of what each optimizer updates: its step is followed by a check that takes it anyway
        self._norms: weakref.WeakKeyDictionary[torch.optim.Optimizer, float] = weakref.WeakKeyDictionary()
        self._spoiled: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()  # whose state has been looked at
        self._parameters: dict[int, tuple[weakref.ref[Any], tuple[int, ...], list[Named]]] = {}

    def begins(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """Look at the pending loss and the gradients.

        A step with a closure runs the model inside: its glue stays observed, its writes count as hand-written ones.
        """
        session = self._session
        if any(running.optimizer is optimizer for running in self._running):
            self._running.append(_Running(optimizer, None, False, inner=True))  # `super().step()`: the same step
            return
        above = None if closure else session.quiet()
        self._running.append(_Running(optimizer, above, closure))
        session.in_closure += closure
        try:
            parameters = self.watched(optimizer)
            if session.refusal is not None:
                session.refusal.withdraw()
            if parameters and session.clock.stepped_already(optimizer):
                session.end_step(session.step_point, keep_gradients=True)
        except Exception as error:
            session.fault(error)
            return
        if not parameters:
            return
        try:
            self._before_step(optimizer, parameters, closure)
        except BaseException:
            self._running.pop()
            session.in_closure -= closure
            session.loud(above)
            raise

    def _before_step(self, optimizer: torch.optim.Optimizer, parameters: list[Named], closure: bool) -> None:
        session, refusal = self._session, self._session.refusal
        if refusal is not None and refusal.refused:
            refusal.refuse_silently(optimizer)
            return
        if closure:
            if refusal is not None:
                refusal.before_closure(optimizer)
            return
        self._note_weights(optimizer, parameters)
        scaled = self.in_scaler and step_supports_scaler(optimizer)  # infinite gradients are the step's own business
        if scaled:
            self.skips_inside = bool(getattr(optimizer, "found_inf", 0))  # the one read of this step
        if not scaled and self._refused(optimizer, parameters):
            return
        try:
            norm = session.ring.grad_norm or 0.0
            if self._keeps_foreign and self._foreign(optimizer):
                if _is_small(parameters) or at_risk(optimizer, parameters, norm):
                    self._keep_foreign(optimizer)
            if refusal is not None:
                refusal.before_step(optimizer, parameters, norm)
        except Exception as error:
            session.fault(error)

    def _note_weights(self, optimizer: torch.optim.Optimizer, parameters: list[Named]) -> None:
        """The size of the weights before their update: known from the check of the last one, read in the first step."""
        try:
            norm = self._norms.get(optimizer)
            if norm is None:
                norm = self._norms[optimizer] = total_norm(_updated(parameters))
            self._session.ring.weight_norm = norm
        except Exception as error:
            self._session.fault(error)

    def _foreign(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether any of an optimizer's code is not torch's: what goes wrong in it can be shown line by line."""
        kind = type(optimizer)
        if kind not in self._kinds:
            self._kinds[kind] = not all(is_torch_optimizer(base) for base in kind.__mro__ if base is not object)
        return self._kinds[kind]

    def _keep_foreign(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep what it takes to run this step again; where the last one spoiled the state, have that one looked at."""
        session = self._session
        structure = structure_of(optimizer)
        last, step = session.memories.last(optimizer), session.clock.step
        followed = last is not None and last.step == step - 1 and optimizer not in self._spoiled
        if followed and not math.isfinite(total_norm(_floats(structure))):
            bad = first_bad([("state", tensor) for tensor in _floats(structure)])
            if bad:
                self._spoiled.add(optimizer)
                alarm = Alarm("state", "", step - 1, named=bad, stack=raw_stack_here(5))
                alarm.optimizer, alarm.memory = optimizer, last
                session.on_alarm(alarm)
        session.memories.take_with_gradients(optimizer, structure, step)

    def _refused(self, optimizer: torch.optim.Optimizer, parameters: list[Named]) -> bool:
        """Whether the gradients are bad, the alarm did not raise, and the step is to do nothing."""
        refusal = self._session.refusal
        where = f"the optimizer {type(optimizer).__name__} was about to step"
        try:
            at_stake = refusal.at_stake(optimizer, parameters) if refusal is not None else parameters
            alarm = self._bad_gradients(at_stake, where)
            if alarm is None:
                return False
            alarm.optimizer = optimizer
            self._blame_wrapper(alarm)
            if refusal is not None:
                refusal.make_idle(alarm, optimizer)
        except Exception as error:
            self._session.fault(error)
            return False
        refuse = False
        try:
            refuse = self._session.raise_alarm(alarm)
        finally:
            if refusal is not None and not refuse:
                refusal.withdraw()
        if refuse:
            refusal.refuse(optimizer)
        return refuse

    def _blame_wrapper(self, alarm: Alarm) -> None:
        """Gradients that were good when an optimizer around this one began: the code of that one made them bad."""
        for running in self._running[:-1]:
            memory = self._session.memories.of(running.optimizer)
            if alarm.kind == "gradient" and memory is not None and memory.can_step_again:
                alarm.optimizer, alarm.memory = running.optimizer, memory
                return

    def repair(self) -> None:
        """An exception left an optimizer's step without telling us: forget it, unless it is still on the stack."""
        if not self._running:
            return
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code.co_name == "wrapper" and frame.f_code.co_filename == optimizer_file():
                return
            frame = frame.f_back
        self._session.in_closure = 0
        self._session.loud(next((one.above for one in self._running if one.above is not None), None))
        self._running.clear()

    def ends(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the parameters that the step has written."""
        session = self._session
        running = self._running.pop() if self._running else _Running(optimizer, None, False)
        if running.inner:
            return
        above = running.above
        session.in_closure -= running.closure
        alarm = None
        parameters: list[Named] = []
        refusal = session.refusal
        try:
            parameters = self.watched(optimizer)
            if parameters and (refusal is None or not refusal.refused):
                alarm = self._bad_parameters(parameters, optimizer)
                self._note_update(optimizer, parameters)
            else:
                session.gradients.served_others = True
        except Exception as error:
            session.fault(error)
        try:
            if refusal is not None and refusal.refused:
                refusal.settle(optimizer)
            if alarm is not None and session.raise_alarm(alarm):
                refusal.refuse(optimizer)
            if parameters:
                if refusal is not None and not refusal.refused:
                    refusal.stepped(optimizer)
                self.note_step(optimizer)
        finally:
            session.loud(above)

    def check_at_end(self, parameters: list[Named]) -> None:
        """Raise the alarm where a pending loss or a bad gradient still waits for its update when the watch ends."""
        try:
            alarm = self._bad_gradients(parameters, "the watched block ended before an optimizer used the gradients")
        except Exception as error:
            self._session.fault(error)
            return
        if alarm is not None and self._session.raise_alarm(alarm):
            self._session.refusal.refuse(None)
            for _, parameter in parameters:
                parameter.grad = None  # whoever steps now is not watched: nothing is there to be used

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
        norm = self._norms[optimizer] = total_norm(_updated(parameters))
        if math.isfinite(norm):
            return None
        bad = first_bad([(name, parameter) for name, parameter in parameters if parameter.grad is not None])
        if not bad:
            return None
        where = f"the parameter {bad[0][0]} is no longer finite after {type(optimizer).__name__} stepped"
        alarm = Alarm("parameter", where, self._session.clock.step, named=bad, stack=raw_stack_here(4))
        alarm.optimizer = optimizer
        alarm.memory = self._session.memories.of(optimizer)
        return alarm

    def _note_update(self, optimizer: torch.optim.Optimizer, parameters: list[Named]) -> None:
        session = self._session
        rate = optimizer.param_groups[0].get("lr")
        session.ring.lr = math.nan if rate is None else float(rate)  # some optimizers find their own
        session.tape.add(Update(frozenset(id(p) for _, p in parameters), type(optimizer).__name__))
        session.step_point = len(session.tape.events)
        session.ring.mark()

    def note_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped, or its step was skipped or refused: that may end the step."""
        session = self._session
        try:
            if session.clock.note_step(optimizer):
                session.end_step(len(session.tape.events))
        except Exception as error:
            session.fault(error)

    def watched(self, optimizer: torch.optim.Optimizer) -> list[Named]:
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


def _updated(parameters: list[Named]) -> list[torch.Tensor]:
    """The parameters that a step changes: those that have a gradient."""
    return [parameter for _, parameter in parameters if parameter.grad is not None]


def _is_small(parameters: list[Named]) -> bool:
    return sum(parameter.numel() * parameter.element_size() for _, parameter in parameters) <= SMALL


def _floats(structure: Structure) -> list[torch.Tensor]:
    return [tensor for tensor in structure.tensors if tensor.is_floating_point()]
