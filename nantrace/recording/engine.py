"""Runs of the autograd engine: on the tape before they begin, and a bad loss is noted as pending."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch

from ..torch_private import EngineArguments
from .alarm import Pending, scalar_value
from .exchanged import ExchangedWeights
from .expecting import expecting
from .frames import raw_stack_here
from .session import Session
from .tape import EngineCall, Token

Ticket = tuple[EngineCall | None, "list[Any] | None"]


class EngineRecorder:
    """Records the outermost engine calls; one inside a module's call or inside another backward belongs to that."""

    def __init__(self, session: Session, weights: ExchangedWeights) -> None:
        self._session = session
        self._weights = weights

    def begins(self, call: EngineArguments) -> Ticket | None:
        """Put the run on the tape, and see whether a bad loss goes into it."""
        session = self._session
        if session.in_engine or session.calls:
            session.in_engine += 1
            return None
        session.in_engine += 1
        above = session.quiet()
        try:
            if call.accumulate:
                session.begin_step_if_dropped()
            tape = session.tape
            event = EngineCall(
                roots=[tape.token(root) for root in call.roots if isinstance(root, torch.Tensor)],
                grads=[tape.token(g) if isinstance(g, torch.Tensor) else None for g in call.grads],
                keep_graph=call.keep_graph,
                create_graph=call.create_graph,
                inputs=[tape.token(x) for x in call.inputs if isinstance(x, torch.Tensor)],
                accumulate=call.accumulate,
                grad=torch.is_grad_enabled(),
                stack=raw_stack_here(4),
                expected=expecting(),
            )
            tape.add(event)
            if call.accumulate:
                self._note_loss(call, event.roots)
            return event, above
        except Exception as error:
            session.fault(error)
            return None, above

    def ends(self, ticket: Ticket | None, result: Any) -> None:
        """Remember the gradients that the run left."""
        session = self._session
        session.in_engine -= 1
        if ticket is None:
            return
        event, above = ticket
        try:
            if event is not None and event.accumulate:
                self._note_gradients()
            elif event is not None and result is not None:
                event.outputs = [session.tape.made(t) if isinstance(t, torch.Tensor) else None for t in result]
        except Exception as error:
            session.fault(error)
        session.loud(above)

    def _note_gradients(self) -> None:
        session = self._session
        session.gradients.noted()
        self._weights.noted()
        if session.tape.wrote_gradients:  # glue wrote them before (clipping), and the engine has added to them now
            for parameter, name in session.names.parameters.values():
                if parameter.grad is not None and session.tape.known(parameter.grad) is not None:
                    session.tape.gradient(parameter.grad, parameter, name)
        pending = session.pending
        if pending is not None and not pending.gradients:
            after = session.gradients.identities()
            pending.gradients = {
                key: (weakref.ref(gradient), known[1])
                for key, known in after.items()
                if pending.before.get(key) != known and (gradient := session.names.parameters[key][0].grad) is not None
            }
            if not pending.gradients:
                session.pending = None  # no watched parameter has a part in that loss
            elif pending.earlier is not None and pending.earlier.gradients.keys() >= pending.gradients.keys():
                session.pending = pending.earlier  # accumulation: the first bad loss of a step tells where it began
        if session.refusal is not None:
            session.refusal.backward_ran()
        session.update_point = len(session.tape.events)
        session.ring.mark()

    def _note_loss(self, call: EngineArguments, tokens: list[Token]) -> None:
        session = self._session
        if not session.clock.graded:
            session.clock.graded = True
            session.ring.rows.clear()  # calls before the first backward were counted as steps of their own
        for root, token in zip(call.roots, tokens, strict=False):
            scaled = session.scaled.get(id(root))
            loss = scaled[1] if scaled is not None and scaled[0]() is root else root
            value = scalar_value(loss)
            if value is not None:
                session.ring.loss = value
                if session.forecaster is not None:
                    session.forecaster.loss_is(loss.dtype)
                if not math.isfinite(value) and expecting():
                    session.contained += 1
                elif not math.isfinite(value):
                    earlier = session.pending
                    named = [(name, parameter) for parameter, name in session.names.parameters.values()]
                    if earlier is not None and not earlier.still_there(named):
                        earlier = None
                    session.pending = Pending(token, value, session.gradients.identities(), {}, earlier)
                    session.pending.explanation = session.explain_loss(root)
