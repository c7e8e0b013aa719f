"""`watch`: one line around a training loop. Joins recording, tracing, diagnosis and the report."""

from __future__ import annotations

import functools
import logging
import os
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch

from .diagnosis import changes_to_try
from .errors import (
    DumpError,
    ForecastWarning,
    NantraceError,
    NotAModuleError,
    NumericalAnomaly,
    NumericalAnomalyWarning,
    OptionError,
    WatchError,
)
from .model import Cause, Forecast, Snapshot
from .recording.alarm import Alarm, first_bad, gradients_of
from .recording.intervals import ModuleIntervals
from .recording.recorder import Recorder
from .report import Report
from .tracing.loss_terms import loss_terms, loss_terms_with_gradients
from .tracing.op_level import LiveMicroscope
from .tracing.trace import Traced, trace
from .tracing.trials import try_changes
from .tracing.unreplayed import explain_loss

log = logging.getLogger("nantrace")

_F = TypeVar("_F", bound=Callable[..., Any])
_ON_ANOMALY = ("raise", "warn", "skip")
_LEVELS = ("module", "op", "loss")
_QUIET = 50  # steps after a forecast was said in which others are only kept: what diverges drags the rest along
_watched: list[tuple[torch.nn.Module, Tracer]] = []


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one watch, checked."""

    on_anomaly: str | Callable[[Report], object] = "raise"
    dump_dir: str | os.PathLike[str] | None = None
    capacity: int = 100
    level: str = "module"
    strict: bool = False
    replay: bool = True
    max_skips: int = 10
    forecast: bool = False

    def __post_init__(self) -> None:
        if not callable(self.on_anomaly) and self.on_anomaly not in _ON_ANOMALY:
            raise OptionError(
                f"on_anomaly={self.on_anomaly!r}: give {_choice(_ON_ANOMALY)} or a function of the report"
            )
        if self.level not in _LEVELS:
            raise OptionError(f"level={self.level!r}: give {_choice(_LEVELS)}")
        counts = {"capacity": "the number of steps to keep", "max_skips": "the number of steps to skip in a row"}
        for name, meaning in counts.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"{name}={value!r}: give {meaning}, an int of at least 1")
        for name in ("strict", "replay", "forecast"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r}: give True or False")
        if self.dump_dir is not None and not isinstance(self.dump_dir, (str, os.PathLike)):
            raise OptionError(f"dump_dir={self.dump_dir!r}: give a folder's path, or None for no dumps")


def _choice(values: tuple[str, ...]) -> str:
    return ", ".join(repr(value) for value in values)


def watch(*modules: torch.nn.Module, **options: Any) -> Tracer:
    """Watch one or more modules while they train.

    Use it as a context manager around the training loop (or around one step), as a decorator of the function that
    trains, or through `start()` and `stop()`. Options, all by keyword:

    - `on_anomaly`: "raise" (`NumericalAnomaly`, before the optimizer uses the gradients), "warn"
      (`NumericalAnomalyWarning`, the run goes on as it would have), "skip" (the update is refused, with one
      `NumericalAnomalyWarning`; see below), or a function that is given the report.
    - `dump_dir`: a folder that gets one dump per anomaly. None: no file.
    - `capacity`: how many steps of statistics the ring buffer keeps (default 100).
    - `level`: "module" (default: statistics of every module's outputs and gradients), "op" (every op is seen as it
      runs: for models and streams that cannot be replayed; a step of 12 ms takes 9 times as long, one of 230 ms 1.7
      times) or "loss" (only the checks of loss, gradients and parameters).
    - `strict`: also raise on a NaN in a module's output that has no consequences.
    - `replay`: run the failing step once more to find the op (default True).
    - `max_skips`: with "skip", how many steps in a row may be skipped (default 10); the next one raises.
    - `forecast`: also warn (`ForecastWarning`) when an output, a gradient, the loss or the gradient norm grows so that
      it will overflow soon (default False).

    With "skip", a bad step ends as if its batch had not been there: no optimizer of the step updates (one that
    already has is undone), the gradients are set to zero, the model's buffers are put back, a learning-rate scheduler
    that steps after every update does not, and a GradScaler's scale stays. What other code of yours does after the step
    (averages of the weights, counters) still runs, and random numbers that were drawn stay drawn. Weights that an
    optimizer spoils out of finite gradients are put back where a copy was kept of them: in half precision, with an eps
    of 0 or a very large gradient, with several optimizers, and for small optimizers that are not torch's. Where a step
    cannot be undone, the anomaly is raised and says why.

    Raises `NotAModuleError` for anything that is no module, `OptionError` for a bad option.
    """
    unknown = sorted(set(options) - set(Options.__dataclass_fields__))
    if unknown:
        known = ", ".join(Options.__dataclass_fields__)
        raise OptionError(f"watch() has no option {unknown[0]!r}; it has {known}")
    _check_modules(modules)
    return Tracer(modules, Options(**options))


def _check_modules(modules: tuple[Any, ...]) -> None:
    if not modules:
        raise NotAModuleError("watch() needs at least one torch.nn.Module: nantrace.watch(model)")
    for module in modules:
        if not isinstance(module, torch.nn.Module):
            hint = ""
            if isinstance(module, (list, tuple)):
                hint = "; several models are given one by one: watch(generator, discriminator)"
            elif isinstance(module, type) and issubclass(module, torch.nn.Module):
                hint = f"; that is the class, give the model: watch({module.__name__}())"
            raise NotAModuleError(f"watch() takes torch.nn.Module objects, not {type(module).__name__}{hint}")


class Tracer:
    """A watch in progress: what `with nantrace.watch(model) as tracer` gives. Made by `watch`, not by hand."""

    def __init__(self, modules: tuple[torch.nn.Module, ...], options: Options) -> None:
        self.options = options
        self.reports: list[Report] = []  # one per anomaly, newest last
        self.dumps: list[str] = []  # the dump files that were written
        self.skipped: list[Report] = []  # those whose update was refused ("skip")
        self.forecasts: list[Forecast] = []  # with `forecast`: what will overflow, each series once
        self.repeated = 0  # anomalies right after another one ("warn"): counted, not traced again
        self._modules = modules
        self._recorder: Recorder | None = None
        self._contained_before = 0
        self._last_step = 0
        self._last_anomaly: int | None = None
        self._skips = 0  # in a row
        self._quiet_until = 0  # the step from which on another forecast is said
        self._spoiled: weakref.WeakKeyDictionary[torch.optim.Optimizer, Snapshot] = weakref.WeakKeyDictionary()

    # Starting and stopping

    def __enter__(self) -> Tracer:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        recorder = self._recorder
        try:
            if recorder is not None and kind is None:
                recorder.at_end()
            elif recorder is not None and isinstance(error, Exception) and not isinstance(error, NantraceError):
                self._explain(error, recorder)
        finally:
            self.stop()

    def __call__(self, function: _F) -> _F:
        """As a decorator: the function runs inside a watch of its own each time it is called."""

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with Tracer(self._modules, self.options):
                return function(*args, **kwargs)

        return watched  # type: ignore[return-value]

    def start(self) -> Tracer:
        """Begin to watch. Raises `WatchError` when this watch, or another one of the same module, already runs."""
        if self._recorder is not None:
            raise WatchError(
                "this watch has already started; call stop() first, or make another with nantrace.watch(...)"
            )
        for module in self._modules:
            if any(module is known for known, _ in _watched):
                raise WatchError(
                    f"this {type(module).__name__} is being watched already: end that watch first, "
                    "with stop() or by leaving its block"
                )
        recorder = Recorder(
            self._modules,
            capacity=self.options.capacity,
            statistics=self.options.level != "loss",
            strict=self.options.strict,
            on_alarm=self._on_alarm,
            skips=self.options.on_anomaly == "skip",
            explain_loss=self._explain_loss,
            intervals=ModuleIntervals() if self._needs_intervals() else None,
            observer=LiveMicroscope() if self.options.level == "op" else None,
            on_forecast=self._on_forecast if self.options.forecast else None,
        )
        recorder.start()
        self._recorder = recorder
        _watched.extend((module, self) for module in self._modules)
        return self

    def stop(self) -> None:
        """Stop watching and take off every hook. Calling it again does nothing."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        self._contained_before += recorder.contained
        self._last_step = recorder.clock.step
        self._quiet_until = 0  # steps are counted anew
        _watched[:] = [pair for pair in _watched if pair[1] is not self]
        recorder.stop()

    # What a user may ask

    @property
    def step(self) -> int:
        """The number of the running step, counted from 0 since the watch began; after it, of the last one."""
        return self._recorder.clock.step if self._recorder is not None else self._last_step

    @property
    def contained(self) -> int:
        """How many non-finite values were seen that had no consequences."""
        return self._contained_before + (self._recorder.contained if self._recorder is not None else 0)

    @property
    def history(self) -> Any:
        """The ring buffer so far, as a table."""
        if self._recorder is None:
            raise WatchError("the history is there while the watch runs; a report keeps its own in report.history")
        above = self._recorder.quiet()
        try:
            return self._recorder.ring.table(self._recorder.clock.step)
        finally:
            self._recorder.loud(above)

    def __repr__(self) -> str:
        names = ", ".join(type(module).__name__ for module in self._modules)
        return f"<nantrace.Tracer of {names}, {'running' if self._recorder is not None else 'stopped'}>"

    # An alarm

    def _on_alarm(self, alarm: Alarm) -> bool:
        """Raise, warn or tell; returns whether the update is to be refused."""
        if alarm.advisory:
            self._advise(alarm)
            return False
        if alarm.kind == "state":
            self._remember(alarm)
            return False
        if alarm.kind == "parameter" and alarm.optimizer is not None:
            alarm.earlier = self._spoiled.get(alarm.optimizer)
        follows = self._is_repeated(alarm.step)
        if follows and self.options.on_anomaly not in ("raise", "skip"):
            self._last_anomaly = alarm.step
            self.repeated += 1
            return False
        if self.options.on_anomaly == "skip":
            return self._skip(alarm, self._skips + 1 if follows else 1)
        if self.options.on_anomaly == "raise" and "was about to" in alarm.where:
            alarm.where += " and was stopped: the weights are as they were before the step"
        if alarm.kind == "parameter":
            alarm.where += ": these weights are spoiled, go on from a checkpoint"
        report = self._anomaly(alarm)
        if report is None:
            return False
        action = self.options.on_anomaly
        if callable(action):
            action(report)
        elif action == "warn":
            _warn("\n" + report.text(), report)
        else:
            raise NumericalAnomaly(report)
        return False

    def _skip(self, alarm: Alarm, in_a_row: int) -> bool:
        """Refuse the update; raise where that cannot be done, and after `max_skips` in a row."""
        limit = self.options.max_skips
        useless = in_a_row > limit
        if alarm.obstacle:
            alarm.where += f"; the step cannot be skipped: {alarm.obstacle}"
        elif useless:
            alarm.where += f"; the {limit} steps before it were skipped as well (max_skips={limit})"
        elif alarm.kind == "parameter":
            alarm.where += ", and the step is undone"
        report = self._anomaly(alarm)
        if report is None:
            return False
        refuses = alarm.kind != "result"
        if refuses and (alarm.obstacle or useless):
            raise NumericalAnomaly(report)
        if not refuses:
            _warn("\n" + report.text(), report)
            return False
        self._skips = in_a_row
        self.skipped.append(report)
        rest = f" ({alarm.left_over})" if alarm.left_over else ""
        _warn(f"step skipped: {report.headline}{rest}", report)
        return True

    def _anomaly(self, alarm: Alarm) -> Report | None:
        """Trace, remember and dump it; None where it turns out to be none."""
        report = self._report_of(alarm)
        if report is None:
            return None
        if self._is_meant(alarm, report) or (alarm.unless_backward and report.phase == "backward"):
            self._count_as_contained()
            return None
        self._last_anomaly = alarm.step
        self.reports.append(report)
        self._dump(report)
        return report

    def _remember(self, alarm: Alarm) -> None:
        """A step spoiled an optimizer's state and not the weights yet: how, is known only now."""
        report = self._report_of(alarm)
        if report is not None and alarm.optimizer is not None:
            self._spoiled[alarm.optimizer] = report.snapshot

    def _advise(self, alarm: Alarm) -> None:
        """Warn of what is no anomaly yet, with the report that explains it."""
        report = self._report_of(alarm)
        if report is not None:
            self._dump(report)
            _warn(f"{alarm.where}: {report.headline}\n{report.text()}", report)

    def _on_forecast(self, forecasts: list[Forecast]) -> None:
        """Keep them all, and say the one that overflows soonest."""
        self.forecasts += forecasts
        first = forecasts[0]
        if first.step < self._quiet_until:
            return
        self._quiet_until = first.step + _QUIET
        others = len(forecasts) - 1
        warning = ForecastWarning(f"{first}{f' ({others} others grow like that)' if others else ''}")
        warning.forecasts = tuple(forecasts)
        warnings.warn(warning, stacklevel=_outside())

    def _explain_loss(self, root: torch.Tensor) -> Any:
        """Read the live graph of a bad loss while it is there: a replay of the step may fail."""
        recorder = self._recorder
        if recorder is None or (self._is_repeated(recorder.clock.step) and self.options.on_anomaly != "raise"):
            return None
        if recorder.observer is not None and not recorder.observer.blind:
            return None  # every op has been seen as it ran
        return explain_loss(root, recorder)

    def _needs_intervals(self) -> bool:
        return not self.options.replay and self.options.level != "op"

    def _is_repeated(self, step: int) -> bool:
        return self._last_anomaly is not None and step <= self._last_anomaly + 1

    def _is_meant(self, alarm: Alarm, report: Report) -> bool:
        """Values that the program wrote on purpose in a result, and declared ones in a loss with finite gradients."""
        if alarm.kind == "result":
            return report.snapshot.symptom.declared
        recorder = self._recorder
        if alarm.kind != "loss" or not alarm.meant or recorder is None:
            return False
        return not first_bad(gradients_of([(name, p) for p, name in recorder.names.parameters.values()]))

    def _count_as_contained(self) -> None:
        """Values that are meant are no anomaly."""
        if self._recorder is not None:
            self._recorder.session.contained += 1

    def _report_of(self, alarm: Alarm) -> Report | None:
        recorder = self._recorder
        if recorder is None:
            return None
        above = recorder.quiet()
        try:
            traced = trace(alarm, recorder, replaying=self.options.replay)
            if not self.options.replay:
                return Report(traced.snapshot)
            return _with_terms(_with_remedies_tried(traced, alarm, recorder), alarm, recorder)
        except Exception as error:  # the tracer's own fault must not cost the user the alarm
            log.warning("nantrace: tracing the anomaly failed: %r", error, exc_info=error)
            from .tracing.trace import bare

            return Report(bare(alarm, recorder, error))
        finally:
            recorder.loud(above)

    def _dump(self, report: Report) -> None:
        if self.options.dump_dir is None:
            return
        name = f"step{report.step:06d}-{report.cause}-rank{report.snapshot.environment.get('rank', 0)}"
        folder = Path(self.options.dump_dir)
        number, path = 1, folder / f"{name}.nantrace"
        while path.exists():
            number += 1
            path = folder / f"{name}-{number}.nantrace"
        try:
            self.dumps.append(report.save(path))
        except (DumpError, OSError) as error:
            warnings.warn(f"nantrace could not write its dump: {error}", NumericalAnomalyWarning, stacklevel=_outside())

    def _explain(self, error: Exception, recorder: Recorder) -> None:
        from .explaining import explain

        above = recorder.quiet()
        try:
            report = explain(error, recorder)
        except Exception as fault:
            log.warning("nantrace: explaining %s failed: %r", type(error).__name__, fault, exc_info=fault)
            return
        finally:
            recorder.loud(above)
        if report is not None:
            self.reports.append(report)
            self._dump(report)


def _with_remedies_tried(traced: Traced, alarm: Alarm, recorder: Recorder) -> Report:
    """The report, with what came of trying the remedies of its cause in further replays."""
    snapshot = traced.snapshot
    try:
        changes = changes_to_try(snapshot)
        trials = try_changes(changes, snapshot, alarm, recorder, traced.tokens, traced.sites)
    except Exception as error:  # a report without trials is better than none
        log.warning("nantrace: trying the remedies failed: %r", error, exc_info=error)
        return Report(snapshot)
    return Report(replace(snapshot, trials=trials))


def _with_terms(report: Report, alarm: Alarm, recorder: Recorder) -> Report:
    """The report with the terms of the loss, where the step was replayed; their gradients where these grew."""
    snapshot = report.snapshot
    if snapshot.replay.reproduced is not True or snapshot.source_value is not None:
        return report
    if alarm.kind not in ("loss", "gradient"):
        return report
    grown = report.cause in (Cause.LEARNING_RATE, Cause.EXPLODING_GRADIENT)
    terms = loss_terms_with_gradients(recorder) if grown else loss_terms(recorder)
    return Report(replace(snapshot, terms=terms)) if terms else report


def _warn(text: str, report: Report) -> None:
    warning = NumericalAnomalyWarning(text)
    warning.report = report
    warnings.warn(warning, stacklevel=_outside())


def _outside() -> int:
    """The stack level of the first frame outside nantrace and torch, for warnings."""
    import sys

    from .recording.frames import is_torch

    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_torch(frame.f_code):
        level += 1
        frame = frame.f_back
    return level
