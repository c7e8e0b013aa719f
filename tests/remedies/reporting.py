"""The programs modelled after public reports, with a remedy taken as their author would take it: in their file."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import nantrace
from nantrace.model import Remedy

from ..reported.cases import PROGRAMS, Failure, Training
from .applying import assert_finite, edited


def report_on(failure: Failure) -> nantrace.Report:
    """The report that the program ends in."""
    try:
        _train(failure.build)
    except Exception as error:
        report = nantrace.report_of(error)
        if report is None:
            raise
        return report
    raise AssertionError(f"{failure.name} trained without an anomaly")


def trains_on(failure: Failure, remedy: Remedy, folder: Path, clip: float | None = None) -> None:
    """The program with the edit in its file, imported anew and trained under a watch: it must end, and be finite.

    `clip` is the bound that the gradient norm is clipped to before every step of an optimizer.
    """
    path = program_file(failure)
    changed = folder / f"{path.stem}_edited.py"
    changed.write_text(edited(path, remedy))
    with _clipped(clip):
        _train(getattr(_imported(changed), failure.name))


def bound_on_the_gradient(report: nantrace.Report) -> float | None:
    """What the report says that the gradient norm should be clipped to besides, where it does."""
    found = [re.search(r"clip_grad_norm_\(.*max_norm=(\S+)\)", remedy.code or "") for remedy in report.remedies]
    return next((float(match[1]) for match in found if match is not None), None)


@contextmanager
def _clipped(bound: float | None) -> Iterator[None]:
    def clip(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if bound is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, bound)

    hook = register_optimizer_step_pre_hook(clip)
    try:
        yield
    finally:
        hook.remove()


def program_file(failure: Failure) -> Path:
    """The file that the program is written in."""
    return Path(failure.build.__code__.co_filename)


def in_own_file(failure: Failure, remedy: Remedy) -> bool:
    """Whether the remedy is an edit of a line of the program's own file."""
    return remedy.replaces is not None and Path(remedy.replaces.file) == program_file(failure)


def _train(build: object) -> None:
    torch.manual_seed(0)
    training = build()  # type: ignore[operator]
    assert isinstance(training, Training)
    with nantrace.watch(*training.watched):
        for i in range(training.steps):
            loss = training.step(i)
            assert loss is None or torch.isfinite(loss).all(), f"step {i}: the loss is {loss}"
            assert_finite(training.watched, i)


def _imported(path: Path) -> ModuleType:
    """The file as a module of the folder of reported programs, under a name of its own."""
    name = f"tests.reported.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _unregistered():
            spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


@contextmanager
def _unregistered() -> Iterator[None]:
    """What is defined inside is no further program of the collection."""
    failures, innocent = len(PROGRAMS.failures), len(PROGRAMS.innocent)
    try:
        yield
    finally:
        del PROGRAMS.failures[failures:], PROGRAMS.innocent[innocent:]
