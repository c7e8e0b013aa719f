"""What a trial leaves behind, and when none is made."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
import torch
from torch import nn

import nantrace
from nantrace.model import Change

from .trying import outcomes, verdicts

CLAMP = Change("clamp", operand="self", values=(1e-6, inf))


class Counting(nn.Module):
    """log(0), with a buffer, dropout and an attribute that every call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.log(torch.dropout(self.norm(self.layer(x)), 0.5, self.training) * 0)


def loss_of(model: nn.Module) -> torch.Tensor:
    return model(torch.arange(32.0).reshape(8, 4)).sum()


def test_trials_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, buffers, attributes, gradients and random streams are what they were with no trial at all."""
    states = []
    for changes in ((), (CLAMP, Change("dtype", name="float64"))):
        torch.manual_seed(0)
        model = Counting()
        outcomes(monkeypatch, model, loss_of, *changes)
        gradients = [parameter.grad for parameter in model.parameters()]
        states.append((model.state_dict(), gradients, model.calls, torch.random.get_rng_state()))

    (before, gradients_before, calls_before, random_before), (after, gradients_after, calls_after, random_after) = (
        states
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(gradients_before, gradients_after, strict=True))
    assert calls_before == calls_after
    assert torch.equal(random_before, random_after)


@pytest.mark.parametrize("level", ["module", "loss"])
def test_remedies_are_tried_at_every_level_that_replays(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    """The tape is there at each of them."""
    assert verdicts(monkeypatch, Counting(), loss_of, CLAMP, level=level) == [True]


@pytest.mark.parametrize("options", [{"replay": False}, {"level": "op"}])
def test_nothing_is_tried_without_a_replay(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """The model's code is not run a second time, for a trial neither."""
    model = Counting()

    assert outcomes(monkeypatch, model, loss_of, CLAMP, **options) == ()
    assert model.calls == 1


def test_a_change_that_the_program_cannot_take_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that the step does not survive has not helped; what it raised is told."""

    class Typed(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.log(super().forward(x) * 0)
            if y.isfinite().all():
                raise TypeError("only infinities here")
            return y

    (trial,) = outcomes(monkeypatch, Typed(4, 4), loss_of, CLAMP)

    assert trial.finite is False
    assert trial.said == "the step with it raised TypeError: only infinities here"


def test_a_change_at_an_unknown_operand_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which operand was not found."""
    (trial,) = outcomes(monkeypatch, Counting(), loss_of, Change("add", operand="bogus", values=(1.0,)))

    assert trial.finite is None
    assert "'bogus' was not found" in trial.said


def test_trials_are_in_the_dump(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A loaded report knows what was tried."""
    trials = outcomes(monkeypatch, Counting(), loss_of, CLAMP, dump_dir=tmp_path)
    (path,) = tmp_path.iterdir()

    assert nantrace.load(path).snapshot.trials == trials
