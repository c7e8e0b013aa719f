"""A watched block at the top of a script, where no frame of a function is above it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import torch, nantrace
model = torch.nn.Linear(2, 1)
with nantrace.watch(model):
    model(torch.tensor([[0.0, 1.0]])).sub(1e30).exp().log().sum().backward()
"""


def test_a_gradient_that_is_left_when_the_block_ends_is_told() -> None:
    """The alarm at the end of the block is raised, and nothing of the recording fails."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)

    assert run.returncode == 1
    assert "NumericalAnomaly: " in run.stderr
    assert "a fault of its own" not in run.stderr
