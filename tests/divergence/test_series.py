"""Trainings that diverge are told as that, whatever op ends them; healthy ones stay silent."""

from __future__ import annotations

from functools import partial

import pytest
from torch.nn import functional as F

from .running import run
from .series import Case, learning_rates, recurrences
from .trainings import mlp, regression, sgd, supervised

FEW = [*learning_rates((1, 100, 1000, 1_000_000)), *recurrences((20,), (0.9, 2.0))]
ALL = [*learning_rates(), *recurrences((20, 100))]


def named(case: Case) -> str:
    return f"{case.series} {case.setting}"


@pytest.mark.parametrize("case", FEW, ids=named)
def test_a_training_is_told_as_what_it_is(case: Case) -> None:
    """Silent and finite, or stopped as a divergence."""
    assert case.verdict(run(case.make, 40, seed=0)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=named)
def test_the_whole_series(case: Case) -> None:
    """The same over more steps, for every setting."""
    assert case.verdict(run(case.make, 100, seed=0)) == ""


def test_the_series_diverges() -> None:
    """The settings reach from healthy runs to such as are stopped."""
    ends = {run(case.make, 40, seed=0).cause for case in learning_rates((1, 1000))}

    assert {"silent", "learning-rate"} <= ends


def test_the_verdict_can_be_a_complaint() -> None:
    """A run that is called healthy and diverges would be noticed."""
    make = partial(supervised, mlp(), regression(), F.mse_loss, sgd(1000.0))

    assert Case("", "", True, make).verdict(run(make, 40, seed=0)) == "a healthy run was stopped"
