"""Texts of small programs: one module whose forward is given, trained for a few steps."""

from __future__ import annotations

from textwrap import dedent, indent

_TEXT = """
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor({w}))

    def forward(self):
{forward}


def make():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(i):
        optimizer.zero_grad()
        loss = model().sum()
        loss.backward()
        optimizer.step()
        return loss

    return model, optimizer, step, 4
"""


def of_parameter(w: object, forward: str) -> str:
    """The program whose module has the one parameter `w`, and whose loss is the sum of what `forward` returns."""
    return _TEXT.format(w=w, forward=indent(dedent(forward).strip("\n"), " " * 8))
