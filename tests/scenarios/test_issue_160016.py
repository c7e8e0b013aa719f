"""The two examples of pytorch issue 160016: what `detect_anomaly` blames wrongly, and what it lets pass.

https://github.com/pytorch/pytorch/issues/160016
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import nantrace

from ..builders import caught, operand, sgd


class TwoRoots(nn.Module):
    """sqrt of a negative number, and a second sqrt of that NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([-1.0, 4.0]))

    def forward(self) -> Tensor:
        first = torch.sqrt(self.x)
        second = torch.sqrt(first)
        return second.sum()


class FiniteGradient(nn.Module):
    """log of a negative number: the loss is NaN, its gradient 1/x is finite."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([-1.0, 4.0]))

    def forward(self) -> Tensor:
        return torch.log(self.x).sum()


def train(model: nn.Module) -> nantrace.Report:
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model().backward()
            optimizer.step()

    return caught(run)


def test_the_first_root_is_named_not_the_second() -> None:
    """The op that made the NaN, not the one whose backward meets it first."""
    report = train(TwoRoots())

    assert (report.origin.op, report.phase, report.cause) == ("sqrt", "forward", "sqrt-domain")
    assert report.origin.source.code == "first = torch.sqrt(self.x)"
    assert (report.origin.example.index, operand(report, "self").value) == ((0,), -1.0)


def test_detect_anomaly_lets_the_second_example_pass() -> None:
    """The gradient is finite, and `detect_anomaly` looks at gradients alone."""
    model = FiniteGradient()
    with torch.autograd.set_detect_anomaly(True):
        loss = model()
        loss.backward()

    assert bool(torch.isnan(loss))
    assert bool(torch.isfinite(model.x.grad).all())


def test_a_nan_loss_with_a_finite_gradient_is_named() -> None:
    """The loss is what counts."""
    report = train(FiniteGradient())

    assert (report.origin.op, report.phase, report.cause) == ("log", "forward", "log-domain")
    assert report.origin.source.code == "return torch.log(self.x).sum()"
    assert (report.origin.example.index, operand(report, "self").value) == ((0,), -1.0)
