"""The catalogue's programs do what it says: each example has its cause, each fix of it trains and stays finite."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import nantrace
from nantrace.diagnosis.catalogue import entry
from nantrace.model import Cause

_FIXES = [
    pytest.param(cause, position, id=f"{cause}-{position + 1}")
    for cause in Cause
    for position, fix in enumerate(entry(cause).fixes)
    if fix.change
]


def run(program: str, folder: Path) -> dict[str, Any]:
    """Run a program from a file, as `python try.py` does, and return its variables."""
    path = folder / "try.py"
    path.write_text(program, encoding="utf-8")
    return runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("cause", list(Cause))
def test_an_example_has_its_cause(cause: Cause, tmp_path: Path) -> None:
    """It ends with an anomaly, or with torch's own exception explained, and the report names exactly this cause."""
    with pytest.raises((nantrace.NumericalAnomaly, IndexError)) as caught:
        run(entry(cause).example, tmp_path)

    report = nantrace.report_of(caught.value)
    assert report is not None
    assert report.cause is cause
    assert isinstance(caught.value, IndexError) == (cause is Cause.INDEXING)


@pytest.mark.parametrize(("cause", "position"), _FIXES)
def test_a_fixed_example_stays_finite(cause: Cause, position: int, tmp_path: Path) -> None:
    """With the change made it runs to its end: the loss, the gradients and the parameters are finite."""
    found = entry(cause)

    ended = run(found.fixes[position].applied_to(found.example), tmp_path)

    assert ended["loss"].isfinite()
    for parameter in ended["model"].parameters():
        assert parameter.isfinite().all()
        assert _values(parameter.grad).isfinite().all()


def _values(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


@pytest.mark.slow
def test_the_programs_are_run_as_users_run_them(tmp_path: Path) -> None:
    """`nantrace explain CAUSE --example > try.py && python try.py` fails with its report, the fixed one does not."""
    failed = _command_line("--example", tmp_path)
    passed = _command_line("--fixed", tmp_path)

    assert failed.returncode == 1
    assert "\nWhy    log-domain (certain): " in failed.stderr
    assert "try.py:" in failed.stderr
    assert (passed.returncode, passed.stdout, passed.stderr) == (0, "", "")


def _command_line(form: str, folder: Path) -> subprocess.CompletedProcess[str]:
    root = str(Path(nantrace.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    command = [sys.executable, "-m", "nantrace", "explain", "log-domain", form]
    with (folder / "try.py").open("w", encoding="utf-8") as program:
        subprocess.run(command, stdout=program, env=environment, timeout=60, check=True)
    again = [sys.executable, str(folder / "try.py")]
    return subprocess.run(again, capture_output=True, text=True, env=environment, timeout=60, check=False)
