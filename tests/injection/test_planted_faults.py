"""Faults planted at random in real architectures: the report is exact in every field, for every draw."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="the architectures are those of transformers (the `libraries` extra)")

from .architectures import ARCHITECTURES
from .conftest import OUTCOMES
from .draws import DRAWS_PER_ARCHITECTURE, Draw, all_draws, draws_for
from .faults import FAULTS
from .results import difference
from .running import run

DRAWS = all_draws()


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.name)
def test_a_planted_fault_is_found(draw: Draw, request: pytest.FixtureRequest) -> None:
    """Step, phase, op, module, line and cause are those of the fault, and the replay reproduces it."""
    outcome = run(draw)

    request.config.stash[OUTCOMES].append(outcome)
    assert not outcome.wrong, f"{difference(outcome)}\n\n{outcome.report or 'no anomaly was raised'}"


def test_there_are_at_least_200_draws_of_every_kind() -> None:
    """Thirty in each architecture; every kind of fault is drawn somewhere."""
    assert len(DRAWS) == DRAWS_PER_ARCHITECTURE * len(ARCHITECTURES) >= 200
    assert {draw.fault.name for draw in DRAWS} == set(FAULTS)


def test_a_seed_gives_the_same_draws() -> None:
    """A draw can be named in an issue and run again."""
    assert draws_for("gpt2") == draws_for("gpt2")
