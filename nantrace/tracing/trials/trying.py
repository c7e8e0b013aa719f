"""Try changes one by one: replay the step with each, and see whether loss and gradients become finite."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ...model import Change, Snapshot, Trial
from ...recording import patches
from ...recording.alarm import Alarm
from ...recording.recorder import Recorder
from ...recording.statistics import is_finite
from ...recording.tape import EngineCall, TapeEvent, Token
from ..backward import ENGINE_CODES
from ..microscope import Microscope
from ..playing import FUNCTION_CODE, play
from ..replay import in_thread
from ..run import Run
from ..slicing import slice_for
from .changer import Changer
from .operands import CannotTry
from .optimizing import try_update
from .parameters import with_parameter_mended
from .samples import with_samples_replaced
from .site import Site
from .whole import with_everything_in

MAX_TRIALS = 8
MAX_SECONDS = 20.0  # for all trials of one anomaly; what would come later counts as not tried
_OF_OPTIMIZERS = ("setting", "clip")


class Blind(Microscope):
    """In the microscope's place, but sees nothing: a trial asks for the outcome alone."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))

    @property
    def module_now(self) -> str | None:
        """The path of the module whose call runs."""
        return self._modules[-1][0] if self._modules else None


def try_changes(
    changes: Sequence[Change],
    snapshot: Snapshot,
    alarm: Alarm,
    recorder: Recorder,
    tokens: list[Token],
    sites: Mapping[int, Site],
) -> tuple[Trial, ...]:
    """What came of each change; a change that cannot be tried says why. Never raises for what user code does."""
    if snapshot.phase == "optimizer":
        return tuple(try_update(change, alarm, recorder) for change in changes if change.act in _OF_OPTIMIZERS)
    until = time.perf_counter() + MAX_SECONDS
    if snapshot.replay.reproduced is not True:
        return ()  # a step that cannot be run again as it was says nothing of a change
    found: list[Trial] = []
    for change in changes[:MAX_TRIALS]:
        if time.perf_counter() > until:
            found.append(Trial(change, None, f"not tried: the other trials took {MAX_SECONDS:.0f} s"))
        else:
            found.append(_tried(change, snapshot, recorder, tokens, sites))
    return tuple(found)


def _tried(
    change: Change, snapshot: Snapshot, recorder: Recorder, tokens: list[Token], sites: Mapping[int, Site]
) -> Trial:
    try:
        making = _making(change, snapshot, recorder, sites)
    except CannotTry as reason:
        return Trial(change, None, f"not tried: {reason}")
    run = _replay(recorder, tokens, making)
    if change.act == "dtype" and change.op is not None and isinstance(run.error, RuntimeError):
        # what follows does not take that dtype
        run = _replay(recorder, tokens, _making(replace(change, act="dtype-back"), snapshot, recorder, sites))
    if isinstance(run.error, CannotTry):
        return Trial(change, None, f"not tried: {run.error}")
    if run.error is not None:
        return Trial(change, False, f"the step with it raised {type(run.error).__name__}: {run.error}")
    if _came_out_finite(run, tokens):
        return Trial(change, True, "loss and gradients of the replayed step were finite")
    return Trial(change, False, "the replayed step was still not finite")


Making = Callable[[Run], Any]  # a run -> a context manager in which it is played


def _making(change: Change, snapshot: Snapshot, recorder: Recorder, sites: Mapping[int, Site]) -> Making:
    match change.act:
        case "samples":
            return with_samples_replaced
        case "parameter":
            return partial(with_parameter_mended, change, recorder.names)
        case "dtype" if change.op is None:
            return partial(with_everything_in, change, recorder.names)
        case act if act in _OF_OPTIMIZERS:
            raise CannotTry("it would act in an update, and the gradients were not finite before it")
        case _:
            site = sites.get(change.op) if change.op is not None else None
            if site is None:
                raise CannotTry("the call of the op is not known")
            return partial(_with_calls_changed, change, site)


@contextmanager
def _with_calls_changed(change: Change, site: Site, run: Run) -> Iterator[None]:
    microscope = run.microscope
    changer = Changer(change, site, lambda: microscope.module_now if isinstance(microscope, Blind) else None)
    run.glue_call = changer.glue
    with changer:
        yield
    if not changer.changed:
        raise CannotTry("the line was not met again in the replay")


def _replay(recorder: Recorder, tokens: list[Token], making: Making) -> Run:
    names, tape = recorder.names, recorder.tape
    blind = Blind(ENGINE_CODES, FUNCTION_CODE, lambda module: names.path(module, look_again=False))
    events: list[TapeEvent] = slice_for(tape.events, tokens, True)
    run = Run(blind, events, {}, {}, [])
    run.parameters = [parameter for parameter, _ in names.parameters.values()]

    def play_changed(run: Run) -> None:
        with making(run):
            play(run)

    patches.listen(blind)
    patches.listen_to_modules(blind)
    try:
        return in_thread(run, names, play_changed)
    finally:
        patches.stop_listening(blind)


def _came_out_finite(run: Run, tokens: list[Token]) -> bool:
    """Every root of a backward, every gradient, and what the alarm was raised for."""
    roots = [token for event in run.events if isinstance(event, EngineCall) for token in event.roots]
    results: list[torch.Tensor | None] = [run.twin(token) for token in (*roots, *tokens)]
    found = [tensor for tensor in (*results, *run.gradients.values()) if tensor is not None]
    return bool(found) and all(is_finite(tensor.detach()) for tensor in found)
