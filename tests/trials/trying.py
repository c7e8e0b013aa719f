"""Train a model until its anomaly with given changes in the place of the rules' own, and tell what came of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import nantrace
from nantrace.diagnosis.reading import forward_op
from nantrace.model import Change, Snapshot, Trial

Loss = Callable[[torch.nn.Module], torch.Tensor]


def outcomes(
    monkeypatch: pytest.MonkeyPatch,
    model: torch.nn.Module,
    loss: Loss,
    *changes: Change,
    optimizer: torch.optim.Optimizer | None = None,
    at_op: bool = True,
    of_derivative: bool = False,
    **options: Any,
) -> tuple[Trial, ...]:
    """The trials of these changes, at the op that the report names (or at its derivative), or at no op."""

    def wanted(snapshot: Snapshot) -> tuple[Change, ...]:
        found = forward_op(snapshot)
        op = found.id if found is not None and at_op else None
        if of_derivative and snapshot.origin is not None:
            op = snapshot.origin.id
        return tuple(replace(change, op=op) for change in changes)

    monkeypatch.setattr("nantrace.tracer.changes_to_try", wanted)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(nantrace.NumericalAnomaly) as caught, nantrace.watch(model, **options):
        for _ in range(3):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
    return caught.value.report.snapshot.trials


def verdicts(*args: Any, **options: Any) -> list[bool | None]:
    """Whether each change helped."""
    return [trial.finite for trial in outcomes(*args, **options)]
