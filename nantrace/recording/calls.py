"""Module calls: statistics of every output and of the gradient that arrives at it, and entry calls for the tape."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from threading import get_ident
from types import FrameType
from typing import Any

import torch
from torch.compiler import is_compiling

from ..torch_private import GradientHook, inside_functorch, inside_jit_trace, observe_gradient, sequence_number
from .alarm import Alarm
from .attributes import attributes_before, tokens_of
from .buffers import BufferKeeper
from .exchanged import ExchangedWeights
from .expecting import expecting
from .flatten import tensors_in
from .frames import raw_stack_here
from .numpy_random import NumpyStream
from .ring import Place
from .session import Session
from .state import modes_now, random_with
from .statistics import is_finite, readable
from .tape import EntryCall

_FIRST_BYTES = 1 << 20  # where steps may be undone: of a buffer, before it is known whether calls change it


class CallRecorder:
    """Follows the nesting of module calls. The outermost call of a watched module is an entry call."""

    def __init__(self, session: Session, repair_optimizers: Callable[[], None], *, statistics: bool) -> None:
        self._session = session
        self._thread = get_ident()
        self._statistics = statistics
        self._recording = statistics
        self._buffers = BufferKeeper(_FIRST_BYTES if session.refusal is not None else 0)
        self._numpy = NumpyStream()
        self.weights = ExchangedWeights(session)
        self._entry: EntryCall | None = None
        self._above: list[Any] | None = None  # the user's modes over ours, while an entry call runs
        self._repair_optimizers = repair_optimizers
        self._paths = session.names.paths
        self._places: dict[str, list[OutputPlace]] = {}  # by module path
        self._roots = {id(root) for root in session.names.roots}
        self.records = statistics
        self.running = session.calls
        self.calls_are_stale = False  # a module was added to a watched one
        self.refresh_calls: Callable[[], None] = lambda: None

    def call(self, module: torch.nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an outermost call, or a root's, and tell ourselves of its begin and end."""
        if is_compiling():
            return original(*args, **kwargs)
        self.begins(module, args)
        try:
            output = original(*args, **kwargs)
        except BaseException:
            self.ends(module, args, None)  # as torch tells of a call that an exception left
            raise
        self.ends(module, args, kwargs, output)
        return output

    def recorder_of(self, path: str) -> Callable[[Any], None]:
        """What records the outputs of the calls of one module."""

        def record(output: Any) -> None:
            if self._recording:
                try:
                    self.record_outputs(path, output)
                except Exception as error:
                    self._session.fault(error)

        return record

    @property
    def entry(self) -> EntryCall | None:
        """The outermost call that is running, or None."""
        return self._entry

    def begins(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """Push the module; an outermost call becomes an entry call."""
        if is_compiling() or get_ident() != self._thread:
            return
        session = self._session
        calls = session.calls
        found = self._paths.get(id(module))
        if found is not None and found[0] is module and calls and id(module) not in self._roots:
            calls.append(found[1])  # the common case, hundreds of times a step: nothing else to do
            return
        if not calls:
            session.tell_forecasts()
        try:
            path = session.names.path(module, look_again=bool(calls))
            if path is None:
                return
            if not calls:
                self._repair_optimizers()
                if self.calls_are_stale:
                    self.calls_are_stale = False
                    session.names.refresh()
                    self.refresh_calls()
            elif id(module) in self._roots and self._entry is not None:
                self._repair_after_interrupt(module)
            calls.append(path)
            if len(calls) > 1 or session.in_engine:
                return
            self._recording = self._statistics and not inside_jit_trace()  # our reductions would be traced too
            self._above = session.quiet()
            alarm = self._end_former_step()
        except Exception as error:
            session.fault(error)
            return
        if alarm is not None:
            self._exchange_is_bad(alarm)
        try:
            self._entry_begins(module, path, args)
        except Exception as error:
            session.fault(error)

    def ends(self, module: torch.nn.Module, args: Any, *rest: Any) -> None:
        """Record the outputs and pop the module; an outermost call goes on the tape.

        torch gives (kwargs, output) after the arguments, or a single None where an exception left the call.
        """
        if is_compiling() or get_ident() != self._thread:
            return
        session = self._session
        calls = session.calls
        found = self._paths.get(id(module))
        if found is None or found[0] is not module or not calls:
            return
        path = found[1]
        failed = len(rest) != 2
        kwargs, output = (None, None) if failed else rest
        if self._recording and not failed:
            try:
                self.record_outputs(path, output)
            except Exception as error:
                session.fault(error)
        if calls[-1] == path:
            calls.pop()
        elif path in calls:  # an exception passed through calls without telling us
            del calls[len(calls) - 1 - calls[::-1].index(path) :]
        if not calls and not session.in_engine:
            self._entry_ends(kwargs, output, failed)

    def record_outputs(self, path: str, output: Any) -> None:
        """Write the statistics of what a call has returned, and have those of its gradient written."""
        if inside_functorch():
            return
        places = self._places.get(path)
        if places is None:
            places = self._places[path] = []
        outermost = self._entry if len(self._session.calls) == 1 else None
        write = self._session.ring.write
        again = self._session.in_engine  # a checkpoint recomputes what has been recorded
        for number, tensor in enumerate((output,) if type(output) is torch.Tensor else tensors_in(output)):
            if number == len(places):
                places.append(OutputPlace(self._session, path, number))
            values = readable(tensor)
            if values is None:
                continue
            place = places[number]
            event = None if again else write(place.forward, values)
            if outermost is not None and event is not None:
                outermost.events[number] = event
            if tensor.requires_grad and not tensor.is_leaf:
                observe_gradient(tensor, place.gradient_hooks)

    def _end_former_step(self) -> Alarm | None:
        """An outermost call begins: a step that no optimizer of torch has ended may have ended before it."""
        session = self._session
        changed = self.weights.exchanged() if session.gradients.present and not session.clock.stepped else []
        alarm = self.weights.alarm(changed, raw_stack_here(6)) if changed else None
        if alarm is not None:
            return alarm
        self.weights.forget()
        if session.hand_written or changed:
            session.end_step(len(session.tape.events))
        else:
            session.begin_step_if_dropped()
        return None

    def _exchange_is_bad(self, alarm: Alarm) -> None:
        """The old weights are in place: they stay where the update is refused, and the new ones come back else."""
        session = self._session
        if not session.raise_alarm(alarm):
            self.weights.redo()
            return
        self.weights.forget()
        session.refusal.refuse(None)
        session.end_step(len(session.tape.events))

    def _entry_begins(self, module: torch.nn.Module, path: str, args: tuple[Any, ...]) -> None:
        session = self._session
        if inside_functorch() or inside_jit_trace():
            return
        tree = session.names.tree(module)
        buffers = self._buffers.before(tree.buffer_owners, tree.tensors)
        entry = self._entry = EntryCall(
            module=module,
            path=path,
            args=session.tape.tokens_for(args),
            kwargs=None,
            modes=modes_now(),
            random=random_with(self._numpy.before()),
            training=tuple([child.training for child in tree.modules]),
            buffers=buffers,
            stack=raw_stack_here(5),
            swapped=[(owner, name, session.tape.token(now)) for owner, name, now in tree.swapped()],
            expected=expecting(),
        )
        if tree.changing:
            copies = {id(buffer): before for buffer, before in buffers.values()}
            entry.attributes = attributes_before(tree.changing, session.tape, copies)
            entry.carried = list(tokens_of(entry.attributes))
        entry.nodes = (sequence_number(), 0)

    def _entry_ends(self, kwargs: Any, output: Any, failed: bool) -> None:
        session = self._session
        entry, self._entry = self._entry, None
        alarm = None
        try:
            if entry is not None:
                alarm = self._finish(entry, kwargs, output, failed)
        except Exception as error:
            session.fault(error)
        try:
            if alarm is not None:
                session.raise_alarm(alarm)
            if entry is not None and not entry.modes.grad and not session.clock.graded and not failed:
                session.end_step(len(session.tape.events))
        finally:
            session.loud(self._above)

    def _finish(self, entry: EntryCall, kwargs: Any, output: Any, failed: bool) -> Alarm | None:
        tape = self._session.tape
        entry.failed = failed
        entry.nodes = (entry.nodes[0], sequence_number())
        entry.kwargs = tape.tokens_for((_kwargs_of_failed(entry.module) if failed else kwargs) or {})
        entry.outputs = [tape.made(tensor) for tensor in tensors_in(output)]
        entry.unkept = self._buffers.after()
        self._numpy.after()
        tape.add(entry)
        return None if failed or entry.modes.grad else self._bad_result(entry, output)

    def _bad_result(self, entry: EntryCall, output: Any) -> Alarm | None:
        """A NaN in the result of a call without gradients is an alarm; an infinity is not (masks, scores)."""
        bad = [
            token
            for token, tensor in zip(entry.outputs, tensors_in(output), strict=False)
            if not is_finite(tensor) and bool(torch.isnan(tensor.detach()).any())
        ]
        if not bad:
            return None
        if entry.expected:
            self._session.contained += 1
            return None
        call = f"the result of {entry.path or type(entry.module).__name__}, called without gradients, holds NaN"
        return Alarm("result", call, self._session.clock.step, tokens=bad, stack=entry.stack)

    def _repair_after_interrupt(self, module: torch.nn.Module) -> None:
        """A KeyboardInterrupt left a call without telling us: forget it, unless it is still on the Python stack."""
        if self._entry is None or _frames_of(self._entry.module) > (module is self._entry.module):
            return
        self._session.calls.clear()
        self._entry = None
        self._session.loud(self._above)


class OutputPlace:
    """One output of one module: where its events go, and the table of the hook that records its gradient."""

    __slots__ = ("forward", "gradient_hooks")

    def __init__(self, session: Session, path: str, number: int) -> None:
        self.forward = Place("forward", path, number)
        self.gradient_hooks = OrderedDict([(0, _gradient_hook(session, Place("gradient", path, number)))])


def _gradient_hook(session: Session, place: Place) -> GradientHook:
    write = session.ring.write

    def record(gradient: torch.Tensor | None) -> torch.Tensor | None:
        if gradient is None:  # a sibling output of the same op had one, this one is not used
            return None
        try:
            values = readable(gradient)
            if values is not None and session.listening and not inside_functorch():
                write(place, values)
        except Exception as error:
            session.fault(error)
        return None  # the gradient stays as it is

    return record


def _frames_of(module: torch.nn.Module) -> int:
    """How many calls of a module are on the Python stack."""
    count = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        count += frame.f_code.co_name == "_call_impl" and frame.f_locals.get("self") is module
        frame = frame.f_back
    return count


def _kwargs_of_failed(module: torch.nn.Module) -> dict[str, Any]:
    """The keyword arguments of a call that an exception is leaving: torch's hook lacks them, its frame has them."""
    trace = sys.exc_info()[2]
    while trace is not None:
        names = trace.tb_frame.f_locals
        if trace.tb_frame.f_code.co_name == "_call_impl" and names.get("self") is module:
            return dict(names.get("kwargs") or {})
        trace = trace.tb_next
    return {}
