"""Glue: ops outside every watched module's call go on the tape; hand-written updates are looked at before they run."""

from __future__ import annotations

import sys
import weakref
from types import FrameType
from typing import Any

import torch

from ..torch_private import inside_functorch, sequence_number, view_base
from .alarm import Alarm, Named, first_bad
from .expecting import expecting
from .flatten import operands_of, replace_operands, replace_tensors, tensors_in
from .frames import RawStack, raw_stack, raw_stack_here
from .glue import is_view, nature
from .refusal import StepRefused
from .session import Session
from .state import torch_random_now
from .statistics import is_finite
from .tape import (
    EXTERNAL,
    GRADIENT,
    MAX_DATA_BYTES,
    PARAMETER,
    DataOp,
    FunctionCall,
    GlueOp,
    Token,
    Update,
    shows_plainly,
    version_of,
)

MAX_HELD = 1 << 13  # elements of a tensor of the data code that is kept until the step ends

FailedGlue = tuple[Any, tuple[Any, ...], dict[str, Any], RawStack, BaseException]


class GlueRecorder:
    """The handlers of the glue mode."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.failed: FailedGlue | None = None  # the last glue op that raised
        self._clean: list[Named] = []  # the parameters that the running op writes, finite like its operands
        self._applying: tuple[FrameType, FunctionCall] | None = None  # the running `Function.apply`, and its event
        self._storages: dict[int, int] = {}  # storage of each watched parameter, read when a step first writes one

    def before_random(self, args: tuple[Any, ...]) -> Any:
        """The random state that an op is about to draw from."""
        return torch_random_now()

    def before_write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Copy what the tape still needs, and look at an update of the parameters before it happens.

        Returns whether the op is refused.
        """
        session = self._session
        writes: list[Named] = []
        self._clean = []
        try:
            targets = written_by(func, args, kwargs)
            for tensor in targets:
                token = session.tape.known(tensor)
                if token is not None:
                    session.tape.save_before_write(token)
                base = view_base(tensor)
                if base is not None and (token is None or token.kind == EXTERNAL):
                    self._view_of_data(tensor, base, args, kwargs)
            if session.gradients.present:
                writes = self._parameters_written(targets)
            if session.refusal is not None and (session.in_closure or not session.clock.has_optimizers):
                self._keep_for_undo(targets)
        except Exception as error:
            session.fault(error)
        return bool(writes) and self._update(args, kwargs, writes)

    def _keep_for_undo(self, targets: list[torch.Tensor]) -> None:
        """Keep what an update writes: weights and the state of a hand-written optimizer, not what the step has made."""
        session = self._session
        if not session.gradients.present and not session.in_closure:
            return
        lasting = []
        for target in targets:
            token = session.tape.known(target)
            made_now = token is not None and token.kind not in (EXTERNAL, PARAMETER)
            if not made_now or target.untyped_storage().data_ptr() in self._storages:
                if session.gradients.owner(target) is None:
                    lasting.append(target)
        above = session.quiet()
        try:
            session.refusal.journal.before_write(lasting)
        finally:
            session.loud(above)

    def after(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, random: Any) -> None:
        """Put the op on the tape; one on data alone is only noted."""
        session = self._session
        tape = session.tape
        if self._clean:
            self._look_at_written(func, args, kwargs)
        if tape.overflowed:
            return
        try:
            operands = operands_of(args, kwargs)
            downstream = [self._is_downstream(tensor) for tensor in operands]  # names every operand
            if not any(downstream):
                self._note_data_op(func, args, kwargs, operands, result)
                return
            if not torch.is_grad_enabled() and self._inside_function(result):
                return
            writes, draws, _, _ = nature(func)
            targets = written_by(func, args, kwargs) if writes else []
            bases = [base for target in targets if (base := view_base(target)) is not None]
            if any(session.names.parameter(target) is not None for target in (*targets, *bases)):
                return  # a hand-written update: never run again
            event = GlueOp(
                func,
                replace_operands(args, tape.token),
                tape.tokens_for(kwargs) if kwargs else kwargs,
                [],
                torch.is_grad_enabled() and not torch.is_inference_mode_enabled(),
                raw_stack_here(2),
                random if draws else None,
                writes,
                expected=expecting(),
            )
            if any(operand.requires_grad for operand in operands):
                event.sequence = sequence_number() - 1
            for target in (*targets, *bases):
                known = tape.known(target)
                tape.wrote_gradients |= known is not None and known.kind == GRADIENT
            event.through = [(known, tape.made(base)) for base in bases if (known := tape.known(base)) is not None]
            event.outputs = [tape.made(tensor) for tensor in (*tensors_in(result), *targets)]
            event.outputs += [after for _, after in event.through]
            tape.add(event)
        except Exception as error:
            session.fault(error)

    def _view_of_data(self, view: torch.Tensor, base: torch.Tensor, args: Any, kwargs: Any) -> None:
        """What the step computed is about to be written into a view of data (`out[t] = x`): both go on the tape.

        Until now neither the tensor nor its view was of interest; the tensor carries the graph from here on.
        """
        tape = self._session.tape
        if not shows_plainly(view, base):
            return
        if tape.known(base) is None and not any(self._is_downstream(tensor) for tensor in tensors_in((args, kwargs))):
            return
        token = tape.token(base)
        tape.save_before_write(token)
        if token.kind == EXTERNAL and token.saved is None:
            return  # too large to copy: the view alone is on the tape
        tape.view(view, token, raw_stack_here(3))

    def _inside_function(self, result: Any) -> bool:
        """Whether this op runs in the forward of a custom autograd Function; its `apply` goes on the tape instead."""
        frame = applying_frame(sys._getframe(2))
        if frame is None:
            return False
        tape = self._session.tape
        last = tape.events[-1] if tape.events else None
        if self._applying is None or self._applying[0] is not frame or self._applying[1] is not last:
            names = frame.f_locals
            args = tape.tokens_for(names["args"])
            event = FunctionCall(names["cls"], args, raw_stack(frame.f_back), True, torch_random_now())
            event.expected = expecting()
            tape.add(event)
            self._applying = (frame, event)
        call = self._applying[1]
        for tensor in tensors_in(result):
            token = tape.made(tensor)
            token.call = call
            call.outputs.append(token)
        return True

    def note_failure(self, func: Any, args: Any, kwargs: Any, error: BaseException) -> None:
        """Remember an op that raised, for the explanation of the exception."""
        self.failed = (func, args, kwargs, raw_stack_here(2), error)

    def _is_downstream(self, tensor: torch.Tensor) -> bool:
        session = self._session
        token = session.tape.known(tensor)
        if token is not None:
            return token.kind != EXTERNAL or tensor.requires_grad
        name = session.names.parameter(tensor)
        if name is not None:
            session.tape.parameter(tensor, name)
            return True
        owner = session.gradients.owner(tensor)
        if owner is not None:
            session.tape.gradient(tensor, *owner)
            return True
        return tensor.requires_grad  # learned codes, a model nobody watches: the graph goes through them

    def _note_data_op(self, func: Any, args: Any, kwargs: Any, operands: list[torch.Tensor], result: Any) -> None:
        made = [t for t in tensors_in(result) if t.is_floating_point() and t.layout is torch.strided and not t.is_meta]
        if not made or is_view(func) or inside_functorch():
            return
        outputs = [weakref.ref(tensor) for tensor in made]
        storages = [tensor.untyped_storage().data_ptr() for tensor in made]
        tape = self._session.tape
        used = [*operands, *made]
        held = [t for t in used if t.numel() <= MAX_HELD] if tape.data_bytes < MAX_DATA_BYTES else []
        references = replace_tensors((args, kwargs), weakref.ref)
        versions = [version_of(tensor) for tensor in used]
        tape.note(DataOp(func, references, outputs, storages, raw_stack_here(3), versions, held))

    def _parameters_written(self, targets: list[torch.Tensor]) -> list[Named]:
        """The watched parameters among the written tensors, by storage: `p.data` and views count too."""
        parameters = self._session.names.parameters
        if len(self._storages) != len(parameters) or not self._session.hand_written:
            self._storages = {p.untyped_storage().data_ptr(): key for key, (p, _) in parameters.items()}
        written = {target.untyped_storage().data_ptr() for target in targets if target.layout is torch.strided}
        found = [parameters[self._storages[storage]] for storage in written if storage in self._storages]
        return [(name, parameter) for parameter, name in found]

    def _update(self, args: Any, kwargs: Any, writes: list[Named]) -> bool:
        """A glue op is about to write parameters after a backward: refuse it while they are clean."""
        session = self._session
        if session.refusal is not None and session.refusal.refused:
            return self._refused()
        refuse = False
        above = session.quiet()
        try:
            alarm = self._bad_update(args, kwargs, writes)
        except Exception as error:
            session.fault(error)
            alarm = None
        try:
            if alarm is not None and session.raise_alarm(alarm):
                session.refusal.refuse(None)
                refuse = True
        finally:
            session.loud(above)
        if refuse:
            return self._refused()
        if not session.hand_written:
            session.hand_written = not session.in_closure
            session.tape.add(Update(frozenset(id(p) for _, p in writes), "a hand-written update"))
        return False

    def _refused(self) -> bool:
        """The op is not run. A step with a closure ends here; hand-written code goes on, and writes no weights."""
        if self._session.in_closure:
            raise StepRefused
        self._session.hand_written = True
        return True

    def _bad_update(self, args: Any, kwargs: Any, writes: list[Named]) -> Alarm | None:
        session = self._session
        who = "an optimizer with a closure" if session.in_closure else "a hand-written update"
        where = f"{who} was about to write the parameter {writes[0][0]}"
        pending, stack = session.pending, raw_stack_here(4)
        if pending is not None and pending.still_there(writes):
            session.pending = None
            alarm = Alarm("loss", where, session.clock.step, tokens=[pending.root], stack=stack)
            alarm.value, alarm.explanation = pending.value, pending.explanation
            return alarm
        if not all(is_finite(parameter) for _, parameter in writes):
            return None
        bad = [tensor for tensor in tensors_in((args, kwargs)) if not is_finite(tensor)]
        if not bad:
            self._clean = writes
            return None
        return Alarm("write", where, session.clock.step, [self._token(t) for t in bad], writes, stack)

    def _look_at_written(self, func: Any, args: Any, kwargs: Any) -> None:
        """Finite operands, and a parameter that is not finite after the op: the op itself made the value."""
        session = self._session
        written, self._clean = self._clean, []
        above = session.quiet()
        try:
            bad = first_bad(written)
        except Exception as error:
            session.fault(error)
            bad = []
        try:
            if bad:
                where = f"the parameter {bad[0][0]} is no longer finite after a hand-written update"
                alarm = Alarm("parameter", where, session.clock.step, named=bad, stack=raw_stack_here(3))
                alarm.written = (func, args, kwargs)
                if session.raise_alarm(alarm):
                    session.refusal.refuse(None)
                    self._refused()
        finally:
            session.loud(above)

    def _token(self, tensor: torch.Tensor) -> Token:
        self._is_downstream(tensor)
        return self._session.tape.token(tensor)


_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]


def applying_frame(frame: FrameType | None) -> FrameType | None:
    """The outermost `Function.apply` on the stack, or None."""
    found = None
    while frame is not None:
        if frame.f_code is _APPLY:
            found = frame
        frame = frame.f_back
    return found


def written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that an op writes into, read from its schema."""
    found: list[torch.Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found.extend(tensors_in(value))
    return found
