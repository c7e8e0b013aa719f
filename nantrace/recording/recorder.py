"""The recorder: listens to one thread's training, keeps the ring and the tape, and raises the alarm."""

from __future__ import annotations

import logging
import math
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import torch

from ..torch_private import EngineArguments, inside_functorch, inside_jit_trace, step_supports_scaler
from . import patches
from .alarm import Alarm, Named, Pending, first_bad, gradients_of, scalar_value, total_norm, was_zeroed
from .buffers import BufferKeeper
from .clock import StepClock
from .flatten import tensors_in
from .frames import raw_stack_here
from .glue import GlueMode, lift, nature, put_back
from .names import ModuleNames
from .ring import Ring
from .state import modes_now, random_now, torch_random_now
from .statistics import is_finite, readable
from .tape import GRADIENT, MADE, PARAMETER, DataOp, EngineCall, EntryCall, GlueOp, Tape, Token, Update, version_of

log = logging.getLogger("nantrace")

MAX_TAPE_EVENTS = 20_000
MAX_TAPE_BYTES = 1 << 30
MAX_DATA_OPS = 512


class Recorder:
    """Records one watch. `on_alarm` is called with each alarm, before the value can have consequences; it may raise.

    Everything else in here is guarded: a fault of ours is logged once and recording degrades, the run goes on.
    """

    def __init__(
        self,
        modules: tuple[torch.nn.Module, ...],
        *,
        capacity: int,
        statistics: bool,
        strict: bool,
        on_alarm: Callable[[Alarm], None],
    ) -> None:
        self.names = ModuleNames(modules)
        self.ring = Ring(capacity)
        self.tape = Tape(MAX_TAPE_EVENTS, MAX_TAPE_BYTES)
        self.clock = StepClock(self.names)
        self.thread = threading.get_ident()
        self.contained = 0
        self.faults = 0
        self.listening = False
        self.failed_op: tuple[Any, Any, Any, Any, BaseException] | None = None  # the last glue op that raised
        self._statistics = statistics
        self._strict = strict
        self._on_alarm = on_alarm
        self._mode = GlueMode(self._glue_before_write, self._glue_after, self._glue_failed, self._glue_draws)
        self._buffers = BufferKeeper()
        self._calls: list[str] = []  # paths of the watched modules whose calls are running
        self._entry: EntryCall | None = None
        self._entry_modes: list[Any] | None = None
        self._in_engine = 0
        self._in_scaler = 0
        self._in_optimizer: list[list[Any] | None] = []
        self._pending: Pending | None = None
        self._gradients: dict[str, tuple[int, int]] = {}  # after the last backward of this step
        self._gradient_names: dict[int, str] | None = None
        self._update_point = 0  # the tape's length after the last backward
        self._step_point = 0  # the tape's length after the last optimizer step
        self._hand_written = False
        self._scaled: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}
        self._storages: dict[str, int] = {}

    # Starting and stopping

    def start(self) -> None:
        """Begin to listen. The glue mode goes on this thread's stack."""
        patches.listen(self)
        self.listening = True
        try:
            self._mode.__enter__()
        except BaseException:
            patches.stop_listening(self)
            raise

    def stop(self) -> None:
        """Take off every hook, patch and mode of ours."""
        self.listening = False
        patches.stop_listening(self)
        lift(self._mode)
        # leave through the mode's own __exit__, which restores torch's flags; the user's modes stay where they are
        put_back(self._mode, [])
        self._mode.__exit__(None, None, None)
        self._calls.clear()

    def at_end(self) -> None:
        """The watched block ends without an exception: a pending loss or bad gradients still wait for their update."""
        parameters: list[Named] = [(name, tensor) for tensor, name in self.names.parameters.values()]
        if self._gradients:
            self._check_gradients(parameters, "the watched block ended before an optimizer used the gradients", None)
        elif self._pending is not None:
            self.contained += 1
        self._pending = None

    def quiet(self) -> list[Any] | None:
        """Lift the glue mode, so that our own ops are not recorded; give the result to `loud`."""
        return lift(self._mode)

    def loud(self, above: list[Any] | None) -> None:
        """Put the glue mode back."""
        put_back(self._mode, above)

    # Modules

    def module_begins(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """Push the module; an outermost call becomes an entry call."""
        try:
            path = self.names.path(module, look_again=bool(self._calls))
            if path is None:
                return
            if self._calls and self._entry is not None and any(module is root for root in self.names.roots):
                self._repair_after_interrupt()
            self._calls.append(path)
            if len(self._calls) == 1 and not self._in_engine:
                self._entry_begins(module, path, args)
        except Exception as error:
            self._fault(error)

    def module_ends(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any, failed: bool) -> None:
        """Record the outputs and pop the module; an outermost call goes on the tape."""
        found = self.names.paths.get(id(module))
        if found is None or found[0] is not module or not self._calls:
            return
        path = found[1]
        try:
            if not failed and self._statistics and not inside_functorch() and not inside_jit_trace():
                self._record_outputs(path, output)
        except Exception as error:
            self._fault(error)
        if path in self._calls:
            while self._calls.pop() != path:
                pass
        if not self._calls and self._entry is not None:
            self._entry_ends(kwargs, output, failed)

    def _record_outputs(self, path: str, output: Any) -> None:
        outermost = self._entry if len(self._calls) == 1 else None
        for number, tensor in enumerate(tensors_in(output)):
            values = readable(tensor)
            if values is None:
                continue
            event = self.ring.write("forward", path, number, values)
            if outermost is not None and event is not None:
                outermost.events[number] = event
            node = tensor.grad_fn
            if node is not None:
                node.register_prehook(partial(self._record_gradient, path, number, tensor.output_nr))

    def _record_gradient(self, path: str, number: int, slot: int, gradients: tuple[torch.Tensor | None, ...]) -> None:
        try:
            gradient = gradients[slot] if slot < len(gradients) else None
            values = readable(gradient) if gradient is not None else None
            if values is not None and self.listening and not inside_functorch():
                self.ring.write("gradient", path, number, values)
        except Exception as error:
            self._fault(error)

    def _entry_begins(self, module: torch.nn.Module, path: str, args: tuple[Any, ...]) -> None:
        self._entry_modes = lift(self._mode)
        if inside_functorch() or inside_jit_trace():
            return
        self._begin_step_if_ended()
        tree = self.names.tree(module)
        self._entry = EntryCall(
            module=module,
            path=path,
            args=self.tape.tokens_for(args),
            kwargs=None,
            modes=modes_now(),
            random=random_now(),
            training=tuple([child.training for child in tree.modules]),
            buffers=self._buffers.before(tree.buffer_owners),
            stack=raw_stack_here(5),
        )

    def _entry_ends(self, kwargs: Any, output: Any, failed: bool) -> None:
        entry, self._entry = self._entry, None
        result_alarm = None
        try:
            if entry is not None:
                entry.failed = failed
                entry.kwargs = self.tape.tokens_for((_kwargs_of_failed(entry.module) if failed else kwargs) or {})
                entry.outputs = [self.tape.made(tensor) for tensor in tensors_in(output)]
                self._buffers.after()
                self.tape.add(entry)
                if not failed and not entry.modes.grad:
                    result_alarm = self._bad_result(entry, output)
        except Exception as error:
            self._fault(error)
        try:
            if result_alarm is not None:
                self._raise(result_alarm)
            if entry is not None and not entry.modes.grad and not self.clock.graded and not failed:
                self._end_step(len(self.tape.events))
        finally:
            put_back(self._mode, self._entry_modes)

    def _bad_result(self, entry: EntryCall, output: Any) -> Alarm | None:
        """A NaN in the result of a call without gradients is an alarm; an infinity is not (masks, scores)."""
        bad = [
            token
            for token, tensor in zip(entry.outputs, tensors_in(output), strict=False)
            if not is_finite(tensor) and bool(torch.isnan(tensor.detach()).any())
        ]
        if not bad:
            return None
        call = f"the result of {entry.path or type(entry.module).__name__}, called without gradients, holds NaN"
        return Alarm("result", call, self.clock.step, tokens=bad, stack=entry.stack)

    def _repair_after_interrupt(self) -> None:
        """A KeyboardInterrupt left a call without telling us: forget it, unless it is still on the Python stack."""
        entry = self._entry
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code.co_name == "_call_impl" and entry and frame.f_locals.get("self") is entry.module:
                return
            frame = frame.f_back
        self._calls.clear()
        self._entry = None
        put_back(self._mode, self._entry_modes)

    # The engine

    def engine_begins(self, call: EngineArguments) -> Any:
        """Put the engine's run on the tape, and see whether a bad loss goes into it."""
        above = None
        try:
            if self._in_engine or self._calls:
                return None  # inside a module or another backward: the replay runs it as part of that
            above = lift(self._mode)
            if call.accumulate:
                self._begin_step_if_dropped()
            event = EngineCall(
                roots=[self.tape.token(root) for root in call.roots if isinstance(root, torch.Tensor)],
                grads=[self.tape.token(g) if isinstance(g, torch.Tensor) else None for g in call.grads],
                keep_graph=call.keep_graph,
                create_graph=call.create_graph,
                inputs=[self.tape.token(x) for x in call.inputs if isinstance(x, torch.Tensor)],
                accumulate=call.accumulate,
                grad=torch.is_grad_enabled(),
                stack=raw_stack_here(4),
            )
            self.tape.add(event)
            if call.accumulate:
                self._note_loss(call, event)
            return event, above
        except Exception as error:
            self._fault(error)
            return None, above
        finally:
            self._in_engine += 1

    def engine_ends(self, ticket: Any, result: Any) -> None:
        """Remember the gradients that the run left."""
        self._in_engine -= 1
        if ticket is None:
            return
        event, above = ticket
        try:
            if event is not None and event.accumulate:
                self._gradients = {}
                for parameter, name in self.names.parameters.values():
                    gradient = parameter.grad
                    if gradient is not None:
                        self._gradients[name] = (id(gradient), version_of(gradient))
                        if (
                            self.tape.known(gradient) is not None
                        ):  # glue wrote it before, the engine has added to it now
                            self.tape.named(gradient, GRADIENT, name)
                self._gradient_names = None
                if self._pending is not None and not self._pending.gradients:
                    self._pending.gradients = dict(self._gradients)
                self._update_point = len(self.tape.events)
                self.ring.mark()
            elif event is not None and result is not None:
                event.outputs = [self.tape.made(t) if isinstance(t, torch.Tensor) else None for t in result]
        except Exception as error:
            self._fault(error)
        put_back(self._mode, above)

    def _note_loss(self, call: EngineArguments, event: EngineCall) -> None:
        if not self.clock.graded:
            self.clock.graded = True
            self.ring.rows.clear()  # calls before the first backward were counted as steps of their own
        for root, token in zip(call.roots, event.roots, strict=False):
            value = scalar_value(self._unscaled(root))
            if value is None:
                continue
            self.ring.loss = value
            if not math.isfinite(value):
                self._pending = Pending(token, value, {})

    def _unscaled(self, root: Any) -> Any:
        known = self._scaled.get(id(root))
        return known[1] if known is not None and known[0]() is root else root

    # Glue

    def _glue_draws(self, args: tuple[Any, ...]) -> Any:
        return torch_random_now()

    def _glue_before_write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            targets = written_by(func, args, kwargs)
            for tensor in targets:
                token = self.tape.known(tensor)
                if token is not None:
                    self.tape.save_before_write(token)
            writes = self._parameters_written(targets) if self._gradients else []
        except Exception as error:
            self._fault(error)
            return
        if writes:
            self._hand_written_update(func, args, kwargs, writes)

    def _glue_after(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, random: Any) -> None:
        try:
            writes, draws = nature(func)
            if self.tape.overflowed:
                return
            operands = list(tensors_in((args, kwargs)))
            downstream = [self._is_downstream(tensor) for tensor in operands]  # names every operand
            if not any(downstream):
                self._note_data_op(func, args, kwargs, result)
                return
            targets = written_by(func, args, kwargs) if writes else []
            if any(self.names.parameter(target) is not None for target in targets):
                return  # a hand-written update: never run again
            event = GlueOp(
                func,
                self.tape.tokens_for(args),
                self.tape.tokens_for(kwargs),
                [],
                torch.is_grad_enabled() and not torch.is_inference_mode_enabled(),
                raw_stack_here(3),
                random if draws else None,
                writes,
            )
            event.outputs = [self.tape.made(tensor) for tensor in (*tensors_in(result), *targets)]
            self.tape.add(event)
        except Exception as error:
            self._fault(error)

    def _glue_failed(self, func: Any, args: Any, kwargs: Any, frame: Any, error: BaseException) -> None:
        self.failed_op = (func, args, kwargs, raw_stack_here(3), error)

    def _is_downstream(self, tensor: torch.Tensor) -> bool:
        token = self.tape.known(tensor)
        if token is not None:
            return token.kind != "external"
        name = self.names.parameter(tensor)
        if name is not None:
            self.tape.named(tensor, PARAMETER, name)
            return True
        if self._gradients:
            if self._gradient_names is None:
                self._gradient_names = {identity: name for name, (identity, _) in self._gradients.items()}
            owner = self._gradient_names.get(id(tensor))
            if owner is not None:
                self.tape.named(tensor, GRADIENT, owner)
                return True
        return False

    def _note_data_op(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        from .flatten import replace_tensors

        if len(self.tape.data_ops) >= MAX_DATA_OPS:
            del self.tape.data_ops[: MAX_DATA_OPS // 2]
        outputs = [weakref.ref(tensor) for tensor in tensors_in(result)]
        if outputs:
            self.tape.data_ops.append(
                DataOp(func, replace_tensors((args, kwargs), weakref.ref), outputs, raw_stack_here(4))
            )

    def _parameters_written(self, targets: list[torch.Tensor]) -> list[Named]:
        """The watched parameters among the written tensors, by storage: `p.data` and views count too."""
        if not self._storages:
            self._storages = {
                name: parameter.untyped_storage().data_ptr() for parameter, name in self.names.parameters.values()
            }
        written = {target.untyped_storage().data_ptr() for target in targets if target.layout is torch.strided}
        return [
            (name, parameter)
            for parameter, name in self.names.parameters.values()
            if self._storages.get(name) in written
        ]

    def _hand_written_update(self, func: Any, args: Any, kwargs: Any, writes: list[Named]) -> None:
        """A glue op is about to write parameters after a backward: look at what it writes before it does."""
        above = lift(self._mode)
        try:
            bad = [t for t in tensors_in((args, kwargs)) if not is_finite(t)]
            parameters_fine = all(is_finite(parameter) for _, parameter in writes)
            pending = self._pending is not None and self._pending.still_there(writes)
            alarm = None
            if (bad or pending) and parameters_fine:
                name = writes[0][0]
                where = f"a hand-written update was about to write the parameter {name}"
                alarm = Alarm("write", where, self.clock.step, stack=raw_stack_here(4))
                alarm.named = writes
                alarm.tokens = [self._token_of_operand(tensor) for tensor in bad]
                if pending and self._pending is not None:
                    alarm.kind, alarm.tokens = "loss", [self._pending.root]
                    alarm.value = self._pending.value
            if not self._hand_written:
                self._hand_written = True
                self.tape.add(Update(frozenset(name for name, _ in writes), "a hand-written update"))
        except Exception as error:
            self._fault(error)
            alarm = None
        try:
            if alarm is not None:
                self._raise(alarm)
        finally:
            put_back(self._mode, above)

    def _token_of_operand(self, tensor: torch.Tensor) -> Token:
        self._is_downstream(tensor)
        return self.tape.token(tensor)

    # Optimizers and scalers

    def optimizer_begins(self, optimizer: torch.optim.Optimizer, closure: bool) -> None:
        """The last moment at which the weights are clean: look at the pending loss and the gradients.

        A step with a closure runs the model inside: its glue stays observed, its writes count as hand-written ones.
        """
        above = None if closure else lift(self._mode)
        self._in_optimizer.append(above)
        try:
            parameters = self.names.watched(p for group in optimizer.param_groups for p in group["params"])
            if parameters and self.clock.stepped_already(optimizer):
                self._end_step(self._step_point, keep_gradients=True)
        except Exception as error:
            self._fault(error)
            return
        if not parameters or (self._in_scaler and step_supports_scaler(optimizer)):
            return
        try:
            self._check_gradients(parameters, f"the optimizer {type(optimizer).__name__} was about to step", optimizer)
        except BaseException:
            self._in_optimizer.pop()
            put_back(self._mode, above)
            raise

    def optimizer_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the parameters that the step has written."""
        above = self._in_optimizer.pop() if self._in_optimizer else None
        alarm = None
        try:
            parameters = self.names.watched(p for group in optimizer.param_groups for p in group["params"])
            if parameters:
                alarm = self._bad_parameters(parameters, optimizer)
                self._note_update(optimizer, parameters)
        except Exception as error:
            self._fault(error)
        try:
            if alarm is not None:
                self._raise(alarm)
        finally:
            put_back(self._mode, above)
        try:
            if parameters and self.clock.note_step(optimizer):
                self._end_step(len(self.tape.events))
        except Exception as error:
            self._fault(error)

    def scaler_scales(self, loss: Any, scaled: Any) -> None:
        """A scaled loss may overflow where the loss is fine: remember which loss it was."""
        for original, result in zip(tensors_in(loss), tensors_in(scaled), strict=False):
            self._scaled[id(result)] = (weakref.ref(result), original.detach())

    def scaler_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """An unscaled loss that was bad is an anomaly even where the scaler would skip the step."""
        self._in_scaler += 1
        if self._pending is None:
            return
        parameters = self.names.watched(p for group in optimizer.param_groups for p in group["params"])
        pending, self._pending = self._pending, None
        if pending.still_there(parameters):
            where = f"GradScaler was about to step {type(optimizer).__name__}"
            alarm = Alarm("loss", where, self.clock.step, tokens=[pending.root], stack=raw_stack_here(3))
            alarm.value, alarm.optimizer = pending.value, optimizer
            above = lift(self._mode)
            try:
                self._raise(alarm)
            except BaseException:
                self._in_scaler -= 1
                raise
            finally:
                put_back(self._mode, above)

    def scaler_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """A step that the scaler skipped counts as a step."""
        self._in_scaler -= 1
        try:
            if not self.clock.stepped_already(optimizer) and self._gradients:
                parameters = self.names.watched(p for group in optimizer.param_groups for p in group["params"])
                if parameters and self.clock.note_step(optimizer):
                    self._end_step(len(self.tape.events))
        except Exception as error:
            self._fault(error)

    def _check_gradients(self, parameters: list[Named], where: str, optimizer: Any) -> None:
        try:
            alarm = self._bad_gradients(parameters, where)
        except Exception as error:
            self._fault(error)
            return
        if alarm is not None:
            alarm.optimizer = optimizer
            self._raise(alarm)

    def _bad_gradients(self, parameters: list[Named], where: str) -> Alarm | None:
        gradients = gradients_of(parameters)
        norm = total_norm([gradient for _, gradient in gradients])
        self.ring.grad_norm = norm
        pending = self._pending
        if pending is not None:
            self._pending = None
            if pending.still_there(parameters):
                alarm = Alarm("loss", where, self.clock.step, tokens=[pending.root], stack=raw_stack_here(5))
                alarm.value = pending.value
                return alarm
            self.contained += 1
        if not math.isfinite(norm):
            bad = first_bad(gradients)
            if bad:
                return Alarm("gradient", where, self.clock.step, named=bad, stack=raw_stack_here(5))
        if self._strict:
            return self._strict_alarm(where)
        return None

    def _strict_alarm(self, where: str) -> Alarm | None:
        for event in self.tape.events:
            if isinstance(event, EntryCall):
                for number, row in event.events.items():
                    if bool(torch.isnan(self.ring.peek(row)[0])):
                        return Alarm(
                            "result", where, self.clock.step, tokens=[event.outputs[number]], stack=event.stack
                        )
        return None

    def _bad_parameters(self, parameters: list[Named], optimizer: torch.optim.Optimizer) -> Alarm | None:
        updated = [(name, parameter) for name, parameter in parameters if parameter.grad is not None]
        if math.isfinite(total_norm([parameter for _, parameter in updated])):
            return None
        bad = first_bad(updated)
        if not bad:
            return None
        where = f"the parameter {bad[0][0]} is no longer finite after {type(optimizer).__name__} stepped"
        alarm = Alarm("parameter", where, self.clock.step, named=bad, stack=raw_stack_here(4))
        alarm.optimizer = optimizer
        return alarm

    # Steps

    def _note_update(self, optimizer: torch.optim.Optimizer, parameters: list[Named]) -> None:
        self.ring.lr = float(optimizer.param_groups[0].get("lr", math.nan))
        self.tape.add(Update(frozenset(name for name, _ in parameters), type(optimizer).__name__))
        self._step_point = len(self.tape.events)
        self.ring.mark()

    def _begin_step_if_ended(self) -> None:
        """An outermost entry call begins: has the step before it ended without an optimizer of torch?"""
        if self._hand_written:
            self._end_step(len(self.tape.events))
        else:
            self._begin_step_if_dropped()

    def _begin_step_if_dropped(self) -> None:
        """The gradients of the last backward are gone and nothing has stepped: the user skipped that step."""
        if self._gradients and not self.clock.stepped and self._gradients_dropped():
            if self._pending is not None:
                self._pending = None
                self.contained += 1
            self._end_step(self._update_point)

    def _gradients_dropped(self) -> bool:
        for parameter, name in self.names.parameters.values():
            known = self._gradients.get(name)
            if known is not None:
                gradient = parameter.grad
                return gradient is None or id(gradient) != known[0] or was_zeroed(gradient, known[1])
        return False

    def _end_step(self, position: int, *, keep_gradients: bool = False) -> None:
        """End the running step: what is on the tape after `position` belongs to the next one."""
        taken = self.ring.close(self.clock.advance())
        row = self.ring.rows[-1]
        if all(device.type == "cpu" for device in row.numbers):  # elsewhere counting would wait for the device
            self.contained += sum(int((~torch.isfinite(n[:, :2]).all(dim=1)).sum()) for n in row.numbers.values())
        if position >= len(self.tape.events):
            self.tape.clear()
        else:
            self.tape.cut(position)
            for event in self.tape.events:
                if isinstance(event, EntryCall):
                    event.events = {number: order - taken for number, order in event.events.items()}
        if not keep_gradients:
            self._gradients = {}
        self._gradient_names = None
        self._update_point = self._step_point = 0
        self._hand_written = False
        self._storages = {}
        self._scaled.clear()

    # Raising, and failing quietly

    def _raise(self, alarm: Alarm) -> None:
        self._on_alarm(alarm)

    def _fault(self, error: Exception) -> None:
        self.faults += 1
        if self.faults == 1:
            log.warning("nantrace: a fault of its own, recording goes on without that part: %r", error, exc_info=error)


def _kwargs_of_failed(module: torch.nn.Module) -> dict[str, Any]:
    """The keyword arguments of a call that an exception is leaving: torch's hook lacks them, its frame has them."""
    trace = sys.exc_info()[2]
    while trace is not None:
        names = trace.tb_frame.f_locals
        if trace.tb_frame.f_code.co_name == "_call_impl" and names.get("self") is module:
            return dict(names.get("kwargs") or {})
        trace = trace.tb_next
    return {}


def written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that an op writes into, read from its schema."""
    found: list[torch.Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found.extend(tensors_in(value))
    return found


__all__ = ["MADE", "Alarm", "Recorder", "written_by"]
