"""Batches and labels that the loop's own code spoils: the op in that code is the origin, its temporaries long gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

from ..builders import caught, kept, sgd

BAD_STEP = 2


def found(prepare: Callable[[Tensor], Tensor], loss: Callable[[nn.Module, Tensor], Tensor], **options: Any) -> Any:
    """The report of a training whose batch is constant in the bad step."""
    model = nn.Linear(4, 4)
    optimizer = sgd(model, 0.01)

    def run() -> None:
        with nantrace.watch(model, **options):
            for i in range(BAD_STEP + 1):
                batch = torch.ones(8, 4) if i == BAD_STEP else torch.randn(8, 4)
                optimizer.zero_grad()
                loss(model, prepare(batch)).backward()
                optimizer.step()

    report = caught(run)
    assert report.step == BAD_STEP
    return report


def standardized(x: Tensor) -> Tensor:
    x = x - x.mean(1, keepdim=True)
    return x / x.std(1, keepdim=True)


def as_input(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def as_label(model: nn.Module, x: Tensor) -> Tensor:
    return F.mse_loss(model(torch.randn(8, 4)), x)


@pytest.mark.parametrize("loss", [as_input, as_label])
def test_a_batch_that_a_helper_standardizes(loss: Any) -> None:
    """Mean and deviation were temporaries of a function that has returned; the division is named all the same."""
    report = found(standardized, loss)

    assert (report.phase, report.origin.op, report.origin.module) == ("loss", "div", None)
    assert report.origin.source.expression == kept("x / x.std(1, keepdim=True)")
    assert (report.cause, report.reproduced) == ("zero-division", True)


def test_a_label_made_of_a_bad_one() -> None:
    """The walk goes on through the data code: from the target to the reward it was made of."""

    def target(x: Tensor) -> Tensor:
        rewards = torch.log(x.var(1, keepdim=True))
        return 0.5 + 0.9 * rewards.expand(8, 4).contiguous()

    report = found(target, as_label)

    assert (report.phase, report.origin.op, report.cause) == ("loss", "log", "log-domain")


def test_operands_that_were_written_since_are_not_shown() -> None:
    """What the data code has overwritten cannot prove anything: the batch is named, not an op on other values."""
    buffer = torch.empty(8, 1)

    def prepare(x: Tensor) -> Tensor:
        torch.std(x, 1, keepdim=True, out=buffer)
        x = (x - 1) / buffer
        buffer.fill_(1.0)
        return x

    report = found(prepare, as_input)

    assert (report.phase, report.cause) == ("input", "bad-input")


def test_a_constant_infinity_of_the_loss_code() -> None:
    """torch.full(inf) is meant so; the product that makes a NaN of it is the origin."""

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        best = torch.full((8,), float("inf"))
        if x.std():
            best = torch.minimum(best, model(x).square().sum(1))
        return (best * torch.exp(-best)).mean() + model(x).mean()

    report = found(lambda x: x, loss)

    assert (report.phase, report.origin.op, report.origin.module) == ("loss", "mul", None)
    assert report.cause == "inf-arithmetic"


def test_temporaries_die_with_their_step() -> None:
    """What the data code's temporaries occupy is bounded, and let go of when the step ends."""
    model = nn.Linear(4, 4)
    optimizer = sgd(model)
    with nantrace.watch(model) as tracer:
        for _ in range(3):
            model(standardized(torch.randn(8, 4))).mean().backward()
            noted = len(tracer._recorder.tape.data_ops)
            optimizer.step()
            assert noted > 3
            assert tracer._recorder.tape.data_bytes == 0
            assert tracer._recorder.tape.data_ops == []
