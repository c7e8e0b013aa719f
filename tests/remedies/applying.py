"""A remedy as a user takes it: the program's text with the edit in it, and the training run again from the start.

A program is the text of a Python file that defines `make()`, which gives `(model, optimizer, step, steps)`:
`step(i)` runs one training step. `model` may be several modules in a tuple.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import nantrace
from nantrace.model import Remedy


def written(folder: Path, text: str, name: str = "program") -> Path:
    """The program in a file of its own, so that reports can name its lines."""
    path = folder / f"{name}.py"
    path.write_text(dedent(text).lstrip("\n"))
    return path


def report_of(path: Path) -> nantrace.Report:
    """The report that training under a watch ends in."""
    try:
        _train(path, nantrace.watch)
    except nantrace.NumericalAnomaly as anomaly:
        return anomaly.report
    except Exception as error:
        report = nantrace.report_of(error)
        if report is None:
            raise
        return report
    raise AssertionError(f"{path.name} trained without an anomaly")


def in_place(report: nantrace.Report) -> tuple[Remedy, ...]:
    """The remedies that are edits of a line of the program."""
    return tuple(remedy for remedy in report.remedies if remedy.replaces is not None)


def edited(path: Path, remedy: Remedy) -> str:
    """The program's text with the remedy's code in the place of the line that it replaces."""
    frame = remedy.replaces
    assert frame is not None and remedy.code is not None, "the remedy is no edit of a line"
    assert Path(frame.file).resolve() == path.resolve(), f"the edit is for another file: {frame.file}"
    lines = path.read_text().splitlines()
    old = lines[frame.line - 1]
    assert old.strip() == frame.code.strip(), f"line {frame.line} is `{old.strip()}`, not `{frame.code}`"
    indent = old[: len(old) - len(old.lstrip())]
    lines[frame.line - 1 : frame.line] = [indent + line for line in remedy.code.splitlines()]
    return "\n".join(lines) + "\n"


def trains_on(path: Path, remedy: Remedy) -> list[float]:
    """The losses of the edited program: fails where a loss, a gradient or a parameter is not finite in any step."""
    changed = path.with_name(f"{path.stem}_edited.py")
    changed.write_text(edited(path, remedy))
    return losses_of(changed)


def losses_of(path: Path) -> list[float]:
    """The losses of a training that stays finite; fails where it does not."""
    return _train(path, nantrace.watch)


def _train(path: Path, watch: Any) -> list[float]:
    model, _, step, steps = _imported(path).make()
    models = model if isinstance(model, (tuple, list)) else (model,)
    losses = []
    with watch(*models):
        for i in range(steps):
            loss = step(i)
            if isinstance(loss, Tensor):
                losses.append(float(loss.detach()))
                assert torch.isfinite(loss).all(), f"step {i}: the loss is {losses[-1]}"
            assert_finite(models, i)
    return losses


def assert_finite(models: Iterable[nn.Module], step: int) -> None:
    """Fails where a parameter or a gradient is not finite."""
    for model in models:
        for name, parameter in model.named_parameters():
            gradient = parameter.grad
            assert torch.isfinite(parameter).all(), f"step {step}: {name} is not finite"
            assert gradient is None or torch.isfinite(gradient).all(), f"step {step}: gradient of {name} is not finite"


def _imported(path: Path) -> ModuleType:
    torch.manual_seed(0)
    spec = importlib.util.spec_from_file_location(f"_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module
