"""Optimizers written in Python (torch_optimizer, pytorch_optimizer, timm)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nantrace

from .training import expected, library, report_of, told

torch_optimizer = library("torch_optimizer")
pytorch_optimizer = library("pytorch_optimizer")
timm = library("timm.optim")


def step_on_rows_that_were_not_read(optimizer: type[torch.optim.Optimizer]) -> nantrace.Report:
    """Half precision, and an embedding of which the batch reads one row: the others have a gradient of zero."""
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 1)).half()
    return report_of(
        model, lambda i: model(i).float().mean(), [torch.tensor([1])], optimizer(model.parameters(), lr=1e-3)
    )


@pytest.mark.parametrize(
    ("optimizer", "op", "file", "code", "cause"),
    [
        (
            torch_optimizer.DiffGrad,
            "addcdiv",
            "torch_optimizer/diffgrad.py",
            "p.data.addcdiv_(exp_avg1, denom, value=-step_size)",
            "precision",
        ),
        (
            pytorch_optimizer.Lamb,
            "reciprocal",
            "pytorch_optimizer/optimizer/lamb.py",
            "torch._foreach_reciprocal_(updates)",
            "overflow",  # its epsilon of 1e-6 does not vanish, but its reciprocal is beyond float16
        ),
        (timm.LaProp, "div", "timm/optim/laprop.py", "step_of_this_grad = grad / denom", "precision"),
    ],
    ids=["torch_optimizer", "pytorch_optimizer", "timm"],
)
def test_an_epsilon_that_half_precision_does_not_have(
    optimizer: type[torch.optim.Optimizer], op: str, file: str, code: str, cause: str
) -> None:
    """pytorch/pytorch#147437 "To avoid default eps ineffective in some precision(float16), dynamically set ...".

    sqrt(0) + 1e-8 is 0 in half precision, and the optimizer's own line divides by it; by 1e-6 it overflows.
    """
    assert told(step_on_rows_that_were_not_read(optimizer)) == expected(
        phase="optimizer", op=op, module="0", file=file, code=code, cause=cause
    )
