"""`on_anomaly="skip"`: a step whose update is refused ends as if its batch had not been there.

The update that was about to happen is not made; what other optimizers, schedulers, hand-written code and the model's
buffers have changed in the same step is put back; the gradients become zero; what the step has yet to update is
refused in silence. What cannot be put back is said, in the alarm's `obstacle` (weights) or `left_over` (buffers).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..torch_private import replace_running_step
from .alarm import Alarm, Named
from .journal import Journal
from .schedules import Schedules
from .session import Session
from .tape import EntryCall
from .undo import Memory, at_risk, structure_of


class StepRefused(BaseException):
    """Leaves an optimizer's step with a closure, from the op that was about to write the weights. Caught by us."""


class Refusal:
    """Refuses and undoes the updates of the running step."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.count = 0  # updates refused so far
        self.refused = False  # an update of the running step was refused: so is every other one
        self.journal = Journal()
        self.schedules = Schedules()
        self._bare: dict[int, str] = {}  # optimizers that have stepped without a memory, and why
        self._between = False  # a backward came after an optimizer's step in this step
        self._together: bool | None = None  # whether all optimizers step after all backwards; None: not known yet
        self._undone: list[Memory] = []  # of the refused step
        self._swap: Callable[[], None] | None = None

    # Before and after an optimizer's step

    def at_stake(self, optimizer: torch.optim.Optimizer, own: list[Named]) -> list[Named]:
        """The parameters whose gradients must be good before this optimizer steps: its own, and perhaps others.

        Where several optimizers use the gradients of the same backward, all are looked at before the first one steps.
        """
        clock = self._session.clock
        if self._together and not clock.stepped and clock.awaits_others(optimizer):
            known = {id(parameter) for _, parameter in own}
            everything = self._session.names.parameters.items()
            return own + [(name, parameter) for key, (parameter, name) in everything if key not in known]
        return own

    def before_step(self, optimizer: torch.optim.Optimizer, parameters: list[Named], norm: float) -> None:
        """Keep what the step may have to be undone with: where others have yet to step, or where it is risky."""
        waiting = self._session.clock.awaits_others(optimizer) and not self._together
        if waiting or at_risk(optimizer, parameters, norm):
            memories = self._session.memories
            known = memories.of(optimizer)
            reason = "" if known is not None else memories.take(optimizer, structure_of(optimizer))
        else:
            reason = "a copy is kept only of weights at risk: half precision, a vanishing eps, very large gradients"
        if reason and self._session.memories.of(optimizer) is None:
            self._bare[id(optimizer)] = f"{type(optimizer).__name__} has changed its weights, and {reason}"

    def before_closure(self, optimizer: torch.optim.Optimizer) -> None:
        """A step that runs the model: its state's containers are kept, the journal keeps the tensors."""
        self._session.memories.take_containers(optimizer)

        def guarded(step: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                losses: list[Any] = []
                args, kwargs = _listening_to_closure(args, kwargs, losses)
                try:
                    return step(*args, **kwargs)
                except StepRefused:
                    return losses[0] if losses else None

            return run

        self._swap = replace_running_step(optimizer, guarded)

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer has stepped, and its weights are good."""
        self.schedules.stepped(optimizer)

    def backward_ran(self) -> None:
        """A backward has left gradients."""
        self._between |= self._session.clock.stepped

    # Refusing

    def make_idle(self, alarm: Alarm, optimizer: torch.optim.Optimizer) -> None:
        """Have the running step of this optimizer do nothing, where that is possible; else the alarm says why not."""
        self._swap = replace_running_step(optimizer, lambda step: _nothing)
        if self._swap is None:
            alarm.obstacle = f"the step of {type(optimizer).__name__} does not go through torch's own wrapper"

    def judge(self, alarm: Alarm) -> None:
        """Whether everything that the step has done so far can be undone: else the alarm says what cannot."""
        if self._bare and not alarm.obstacle:
            alarm.obstacle = next(iter(self._bare.values()))
        if self.journal.incomplete and not alarm.obstacle:
            alarm.obstacle = f"a hand-written update cannot be undone: {self.journal.incomplete}"
        left = [name for event in self._calls() for name in event.unkept]
        if self._session.tape.overflowed:
            left.append("what the calls past the tape's end have changed")
        if left:
            alarm.left_over = f"these buffers keep what the batch wrote into them: {', '.join(dict.fromkeys(left))}"

    def withdraw(self) -> None:
        """Nothing is refused after all: let torch call what it was about to call."""
        if self._swap is not None:
            self._swap()
            self._swap = None

    def refuse(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Put back what the step has changed and drop its gradients."""
        self.refused = True
        self.count += 1
        self._session.pending = None
        if optimizer is not None:
            self.schedules.refused(optimizer)
        self._undone = self._session.memories.taken()
        for memory in reversed(self._undone):
            memory.put_back()
            known = memory.optimizer()
            if known is not None and known is not optimizer:
                self.schedules.refused(known)
        self._session.memories.end_step()
        self.journal.put_back()
        self.schedules.put_back()
        self._put_back_buffers()
        self._drop_gradients(optimizer)

    def settle(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer around the refused one has gone on with its own step: that goes, too."""
        for memory in self._undone:
            if memory.optimizer() is optimizer:
                memory.put_back()
                self.schedules.refused(optimizer)

    def refuse_silently(self, optimizer: torch.optim.Optimizer) -> None:
        """A later optimizer of a refused step, about to step: it does nothing either."""
        self._swap = replace_running_step(optimizer, lambda step: _nothing)
        self.refuse_another(optimizer)

    def refuse_another(self, optimizer: torch.optim.Optimizer) -> None:
        """A later optimizer of a refused step does not step: its gradients go the same way."""
        self.count += 1
        self.schedules.refused(optimizer)
        self._put_back_buffers()
        self._drop_gradients(optimizer)

    # Schedulers

    @property
    def thread(self) -> int:
        """The thread whose schedulers ask."""
        return self._session.thread

    def scheduler_begins(self, scheduler: Any) -> bool:
        """Whether a scheduler's step is refused."""
        try:
            return self.schedules.begins(scheduler, may_be_undone=self._session.clock.stepped)
        except Exception as error:
            self._session.fault(error)
            return False

    # The end of a step

    def end_step(self) -> None:
        """The next step begins with nothing refused."""
        if self.refused:
            self.journal.put_back()  # hand-written code may have gone on with its own state
        if len(self._session.clock.stepped_now) > 1:
            self._together = not self._between
        self.refused = self._between = False
        self._undone = []
        self._bare.clear()
        self.journal.end_step()
        self.schedules.end_step()

    def stop(self) -> None:
        """The watch ends, perhaps in the middle of a refused step."""
        self.withdraw()
        if self.refused:
            self.journal.put_back()

    def _calls(self) -> list[EntryCall]:
        return [event for event in self._session.tape.events if isinstance(event, EntryCall)]

    def _put_back_buffers(self) -> None:
        first: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for call in self._calls():
            for buffer, before in call.buffers.values():
                first.setdefault(id(buffer), (buffer, before))
        with torch.no_grad():
            for buffer, before in first.values():
                buffer.copy_(before)

    def _drop_gradients(self, optimizer: torch.optim.Optimizer | None) -> None:
        parameters: dict[int, torch.Tensor] = {key: p for key, (p, _) in self._session.names.parameters.items()}
        for group in optimizer.param_groups if optimizer is not None else ():
            parameters.update((id(parameter), parameter) for parameter in group["params"])
        with torch.no_grad():
            for parameter in parameters.values():
                if parameter.grad is not None:
                    parameter.grad.detach().zero_()


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What a refused step does."""


def _listening_to_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], losses: list[Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments, with the closure's results noted: a refused step returns the loss, as it would have."""

    def noting(argument: Any) -> Any:
        if not callable(argument):
            return argument

        def closure(*inner: Any, **named: Any) -> Any:
            losses.append(argument(*inner, **named))
            return losses[-1]

        return closure

    return (*args[:1], *(noting(a) for a in args[1:])), {k: noting(v) for k, v in kwargs.items()}
