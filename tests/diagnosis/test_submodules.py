"""A module of the model in suggested code: spelled as Python gets it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nantrace


def test_a_module_in_a_sequential_is_got_by_its_index() -> None:
    """The suggested code runs as it stands and mends the statistics: `model[1]`, not `model.1`."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    model[1].running_var.fill_(-1.0)

    with pytest.raises(nantrace.NumericalAnomaly) as raised, nantrace.watch(model):
        model(torch.ones(3, 2)).sum().backward()

    code = raised.value.report.remedies[0].code
    assert code == "model[1].reset_running_stats()"
    exec(code, {"model": model})
    assert model(torch.ones(3, 2)).isfinite().all()
