"""A short training loop around a library's model or loss, and what its report must say."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nantrace

from ..builders import caught, sgd


def library(name: str) -> ModuleType:
    """Import a module of an installed library; without it the tests of the calling file are skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name.partition(".")[0])
        return importlib.import_module(name)


def report_of(
    model: nn.Module,
    loss: Callable[[Any], Tensor],
    batches: Iterable[Any],
    optimizer: torch.optim.Optimizer | None = None,
    also_watched: tuple[nn.Module, ...] = (),
) -> nantrace.Report:
    """Train on the batches, under watch; the report of the anomaly in which it ends."""
    optimizer = optimizer or sgd(model, 1e-3)

    def run() -> None:
        with nantrace.watch(model, *also_watched):
            for batch in batches:
                optimizer.zero_grad()
                loss(batch).backward()
                optimizer.step()

    return caught(run)


def told(report: nantrace.Report) -> dict[str, Any]:
    """What a report says, in the words of `expected`."""
    origin = report.origin
    assert origin is not None
    assert origin.source is not None
    return {
        "step": report.step,
        "phase": report.phase,
        "op": origin.op,
        "module": origin.module,
        "file": _inside_its_package(origin.source.file),
        "code": origin.source.code,
        "cause": str(report.cause),
    }


def expected(
    *, step: int = 0, phase: str, op: str, module: str | None, file: str, code: str, cause: str
) -> dict[str, Any]:
    """The report that an expert would write."""
    return locals()


def losses_of(loss: Callable[[Any], Tensor], batches: Iterable[Any], optimizer: torch.optim.Optimizer) -> list[float]:
    """The losses of a training run, watched or not by whoever calls this."""
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        value = loss(batch)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def _inside_its_package(file: str) -> str:
    """`.../site-packages/piq/tv.py` as `piq/tv.py`."""
    return file.replace(os.sep, "/").rpartition("/site-packages/")[2]
