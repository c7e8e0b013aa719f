"""Updates that exchange a parameter's storage: `p.data = p.data - lr * p.grad`. No op writes the parameter there.

They are noticed when the next entry call begins, from the storage's address. Until then the old weights are held, and
they are put back where the new ones are not finite.
"""

from __future__ import annotations

import torch

from .alarm import Alarm, Named, first_bad
from .frames import RawStack
from .session import Session


class ExchangedWeights:
    """Holds an alias of every parameter's storage from a backward to the next entry call."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._old: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # parameter -> its storage's alias, its gradient
        self._new: list[tuple[torch.Tensor, torch.Tensor]] = []  # what an alarm has put aside

    def noted(self) -> None:
        """A backward has accumulated. Where an optimizer steps, nobody exchanges storages: nothing is held then."""
        self.forget()
        if not self._session.clock.has_optimizers:
            for key, (parameter, _) in self._session.names.parameters.items():
                if parameter.grad is not None:
                    self._old[key] = (parameter.detach(), parameter.grad)

    def forget(self) -> None:
        """Let go of the old weights and gradients."""
        self._old = {}

    def exchanged(self) -> list[Named]:
        """The parameters whose storage is another one now."""
        parameters = self._session.names.parameters
        return [
            (parameters[key][1], parameters[key][0])
            for key, (old, _) in self._old.items()
            if parameters[key][0].data_ptr() != old.data_ptr()
        ]

    def alarm(self, changed: list[Named], stack: RawStack) -> Alarm | None:
        """The alarm where a bad gradient made an exchanged parameter bad; the old weights are in place again then.

        Where the gradients are finite there is nothing to replay: the next symptom names the parameter.
        """
        gradients = [(name, self._old[id(parameter)][1]) for name, parameter in changed]
        bad = first_bad(gradients) if first_bad(changed) else []
        if not bad:
            return None
        self._new = [(parameter, parameter.data) for _, parameter in changed]
        for _, parameter in changed:
            parameter.data = self._old[id(parameter)][0]
        where = (
            f"a hand-written update replaced the parameter {bad[0][0]} by one that is not finite; the old one is back"
        )
        return Alarm("gradient", where, self._session.clock.step, named=bad, stack=stack)

    def redo(self) -> None:
        """The run goes on in spite of the alarm: as it would have, with the new weights."""
        for parameter, new in self._new:
            parameter.data = new
        self._new = []
