"""An exception of the user's own program: which op raised it, and in which module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import CodeType

import torch

from ..model import Origin
from ..recording.frames import innermost_outside_torch, innermost_user, is_torch, source_at
from ..recording.names import ModuleNames
from ..recording.recorder import Recorder
from ..recording.tape import EngineCall, EntryCall, TapeEvent
from ..torch_private import engine_function
from .microscope import FailedOp
from .naming import entry_source
from .op_level import LiveMicroscope
from .replay import replay
from .run import Run
from .schema import facts_of, operands, scalars
from .summaries import describe

_CHECK = "linalg_check_errors"
_EXPLAINED = (IndexError, ValueError, ArithmeticError, AssertionError, RuntimeError)


@dataclass(slots=True)
class Failure:
    """What is known of an exception: the op that raised, where an op did, and the replay that raised it again."""

    error: Exception
    op: FailedOp | None = None
    run: Run | None = None

    @property
    def by_torch(self) -> bool:
        """Whether torch raised it: an op, or a check of torch's own."""
        return self.op is not None or is_torch(list(_frames(self.error))[-1][0])


def failure_of(error: Exception, recorder: Recorder) -> Failure:
    """In glue the op was seen live. A call of a module, or a backward, that raised is replayed."""
    if not isinstance(error, _EXPLAINED) or isinstance(error, torch.OutOfMemoryError):
        return Failure(error)
    live = recorder.failed_glue
    if live is not None and live[4] is error:
        func, args, kwargs, stack, _ = live
        return Failure(error, FailedOp(facts_of(func), args, kwargs, None, None, True, stack, error))
    observed = recorder.observer
    if isinstance(observed, LiveMicroscope) and observed.failed is not None and observed.failed.error is error:
        return Failure(error, observed.failed)
    last = recorder.tape.events[-1] if recorder.tape.events else None
    if last is None or not _raised_in(last, error):
        return Failure(error)
    run = replay(recorder.tape, recorder.names, [], isinstance(last, EngineCall))
    if type(run.error) is not type(error):
        return Failure(error)
    failed = run.microscope.failed
    if failed is None or failed.error is not run.error:
        return Failure(error, None, run)
    failed.entry = last if isinstance(last, EntryCall) else None
    return Failure(error, failed, run)


def origin_of(failure: Failure, names: ModuleNames) -> Origin:
    """Where it was raised: by the op, or, where torch refused before any op ran, as the traceback tells."""
    if failure.op is None:
        return _origin_of_call(failure.error, names)
    origin = _origin_of_op(failure.op)
    if failure.op.facts.name != _CHECK:
        return origin
    # torch.linalg decomposes first, and raises in an op of its own that reads the status
    decomposition = failure.run.microscope.ops[-1].facts if failure.run is not None else None
    name = str(origin.arguments.get("api_name", "linalg")).replace(".", "_")
    return replace(origin, op=name, aten=decomposition.aten if decomposition is not None else origin.aten, inputs=())


def _raised_in(event: TapeEvent, error: Exception) -> bool:
    if isinstance(event, EntryCall):
        return event.failed
    engine = engine_function().__code__
    return isinstance(event, EngineCall) and any(code is engine for code, _, _ in _frames(error))


def _origin_of_op(failed: FailedOp) -> Origin:
    inputs = tuple(describe(tensor, name) for name, tensor in operands(failed.facts, failed.args, failed.kwargs))
    if failed.entry is not None:
        source = entry_source(failed.stack, failed.entry.stack)
    else:
        position = innermost_outside_torch(failed.stack)
        source = source_at(failed.stack, position) if position is not None else None
    return Origin(
        op=failed.facts.name,
        module=failed.module,
        module_type=failed.module_type,
        source=source,
        inputs=inputs,
        arguments=scalars(failed.facts, failed.args, failed.kwargs),
        aten=failed.facts.aten,
    )


def _origin_of_call(error: Exception, names: ModuleNames) -> Origin:
    """The function of torch that refused, the innermost watched module, and the user's line."""
    frames = list(_frames(error))
    owners = [(_path(owner, names), owner) for _, _, owner in frames if owner is not None]
    modules = [(path, owner) for path, owner in owners if path is not None]
    functions = [code.co_name for code, _, _ in frames if code.co_filename.endswith(_FUNCTIONAL)]
    stack = tuple((code, offset) for code, offset, _ in reversed(frames))
    position = innermost_user(stack)
    return Origin(
        op=functions[0] if functions else "call",
        module=modules[-1][0] if modules else None,
        module_type=type(modules[-1][1]).__name__ if modules else None,
        source=source_at(stack, position) if position is not None else None,
    )


_FUNCTIONAL = "torch/nn/functional.py"


def _frames(error: Exception) -> Iterator[tuple[CodeType, int, torch.nn.Module | None]]:
    """The traceback, outermost first: code, offset, and the module whose method it is."""
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        yield trace.tb_frame.f_code, trace.tb_lasti, owner if isinstance(owner, torch.nn.Module) else None
        trace = trace.tb_next


def _path(module: torch.nn.Module, names: ModuleNames) -> str | None:
    return names.path(module, look_again=False)
