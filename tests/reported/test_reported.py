"""Programs modelled after public reports: each failure is explained, and nothing innocent is accused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nantrace

from . import (
    backward,
    batches,
    clean,
    data,
    divisions,
    domains,
    logarithms,
    optimizers,
    overflowing,
    precision,
    recurrent,
    structures,
)
from .cases import PROGRAMS, Failure, Training

# Torch warns of some of these programs itself (a standard deviation of one element).
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

MODULES = (
    backward,
    batches,
    clean,
    data,
    divisions,
    domains,
    logarithms,
    optimizers,
    overflowing,
    precision,
    recurrent,
    structures,
)
OTHERS = {"__init__", "cases", "test_reported"}


def _param(failure: Failure) -> Any:
    marks = (pytest.mark.xfail(reason=failure.missing),) if failure.missing else ()
    return pytest.param(failure, id=failure.name, marks=marks)


@pytest.mark.parametrize("failure", [_param(failure) for failure in PROGRAMS.failures])
def test_the_report_says_where_and_why(failure: Failure) -> None:
    """Step, phase, op, module, line, cause and remedy are those of the report's author."""
    torch.manual_seed(0)
    training = failure.build()

    with pytest.raises(failure.error) as raised, nantrace.watch(*training.watched):
        training.run()

    report = nantrace.report_of(raised.value)
    assert report is not None
    assert failure.birth.misses(report) == {}


@pytest.mark.parametrize("build", PROGRAMS.innocent, ids=lambda build: build.__name__)
def test_what_is_innocent_stays_silent_and_unchanged(build: Callable[[], Training]) -> None:
    """Nothing is raised, and losses and weights are the same bits with and without a watch."""
    torch.manual_seed(0)
    plain = build()
    plain_losses = plain.run()
    torch.manual_seed(0)
    watched = build()

    with nantrace.watch(*watched.watched) as tracer:
        losses = watched.run()

    assert tracer.reports == []
    torch.testing.assert_close(losses, plain_losses, rtol=0, atol=0, equal_nan=True)
    for model, other in zip(watched.watched, plain.watched):
        torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_no_file_of_programs_is_forgotten() -> None:
    """Every module of this folder is imported, so that its programs are registered."""
    files = {path.stem for path in Path(__file__).parent.glob("*.py")} - OTHERS

    assert files == {module.__name__.rpartition(".")[2] for module in MODULES}
