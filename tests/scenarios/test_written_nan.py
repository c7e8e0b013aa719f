"""A NaN that the program wrote as a number: the op that first computes with it, and no label is accused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nantrace

from ..builders import caught, sgd

NAN = float("nan")


class Doubles(torch.autograd.Function):
    """x * 2, whose backward multiplies with a NaN made there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.tensor(NAN)


class Negates(torch.autograd.Function):
    """-x, whose backward multiplies with a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return -x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * NAN


class Between(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function, self.second = nn.Linear(4, 4), function, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))


@pytest.mark.parametrize(
    ("function", "op", "phase"),
    [
        (lambda h: h * NAN, "mul", "forward"),
        (lambda h: h + torch.tensor(NAN), "add", "forward"),
        (lambda h: h + torch.full((4,), NAN), "add", "forward"),
        (lambda h: h + h.new_tensor([1, NAN, 1, 1]), "add", "forward"),
        (lambda h: h.masked_fill(h > -1e9, NAN), "masked_fill", "forward"),
        (Doubles.apply, "Doubles", "backward"),
        (Negates.apply, "Negates", "backward"),
    ],
)
def test_the_op_that_computes_with_a_written_nan(function: Callable[[Tensor], Tensor], op: str, phase: str) -> None:
    """It is no label and no input: nothing came in from outside, and no rule is certain."""
    torch.manual_seed(0)
    model = Between(function)
    optimizer = sgd(model)

    def step() -> None:
        with nantrace.watch(model):
            model(torch.ones(8, 4)).sum().backward()
            optimizer.step()

    report = caught(step)

    assert (report.origin.op, report.phase, report.origin.module) == (op, phase, "")
    assert report.cause == "undetermined"


MASK = torch.tensor([1.0, 0.0, 1.0, 1.0])


def test_a_mask_that_multiplies_by_an_infinity_makes_nan_itself() -> None:
    """0 * -inf is NaN where the mask keeps: the product made it, be the infinity written on purpose."""
    torch.manual_seed(0)
    model = Between(lambda h: torch.softmax(h + (1 - MASK) * float("-inf"), -1))
    optimizer = sgd(model)

    def step() -> None:
        with nantrace.watch(model):
            model(torch.ones(8, 4)).sum().backward()
            optimizer.step()

    report = caught(step)

    assert (report.origin.op, report.origin.module, report.cause, report.confidence) == (
        "mul",
        "",
        "inf-arithmetic",
        "certain",
    )
