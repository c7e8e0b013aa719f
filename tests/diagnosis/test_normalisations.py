"""Inputs whose squares leave the dtype's range, in layers that divide by their spread."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nantrace
from nantrace.model import Cause


@pytest.mark.parametrize(
    ("norm", "confidence"), [(nn.LayerNorm(32), "certain"), (nn.GroupNorm(2, 32), "likely")], ids=["layer", "group"]
)
def test_a_variance_past_the_end_of_the_dtype_is_an_overflow(norm: nn.Module, confidence: str) -> None:
    """The input is finite, its squares are not; proven where the slice is what is normalised together."""
    optimizer = torch.optim.SGD(norm.parameters(), 0.1)

    with pytest.raises(nantrace.NumericalAnomaly) as caught, nantrace.watch(norm):
        norm(torch.randn(4, 32) * 1e35).sum().backward()
        optimizer.step()
    report = caught.value.report

    assert (report.cause, report.confidence) == (Cause.OVERFLOW, confidence)
    assert "for the variance the squares of 32 values up to " in report.evidence[0]


def test_large_inputs_with_a_variance_in_range_are_normalised() -> None:
    """Nothing is said of what is merely large."""
    norm = nn.LayerNorm(32)
    optimizer = torch.optim.SGD(norm.parameters(), 0.1)

    with nantrace.watch(norm):
        norm(torch.randn(4, 32) * 1e15).sum().backward()
        optimizer.step()
