"""Bad values that the loop's own data code made: the op and its line are named, though it is not replayed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

import nantrace

from ..builders import Mlp, caught, sgd


def train(prepare: object, loss: object) -> nantrace.Report:
    model = Mlp()
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            prepared = prepare()
            loss(model, prepared).backward()
            optimizer.step()

    return caught(run)


def test_temporaries_of_an_expression() -> None:
    """The operands of a division are gone as soon as it is done; what it divided by is known all the same."""

    def prepare() -> Tensor:
        weight = torch.tensor([1.0, 0.0, 2.0])
        return torch.minimum(weight, torch.ones(3)) / weight

    report = train(prepare, lambda model, weight: (model(torch.randn(5, 4)) * weight).sum())

    assert (report.origin.op, report.origin.module, report.cause) == ("div", None, "zero-division")
    assert "torch.minimum(weight, torch.ones(3)) / weight" in report.origin.source.code


def test_the_batch_itself() -> None:
    """A batch that is normalised by a deviation of 0 before the model is called was not bad when it was read."""

    def prepare() -> Tensor:
        x = torch.randn(5, 4)
        x[2] = 1.0
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)

    report = train(prepare, lambda model, x: model(x).sum())

    assert (report.phase, report.origin.op, report.cause) == ("loss", "div", "zero-division")
    assert report.origin.example.operand("other").value == 0


def test_a_bad_value_through_further_data_ops() -> None:
    """What carries the value on, such as cat, is not to blame."""

    def prepare() -> Tensor:
        size = torch.tensor([[1.0], [0.0]])
        return torch.cat([torch.ones(2, 2), torch.log(size)], 1)

    report = train(prepare, lambda model, target: F.l1_loss(model(torch.randn(2, 4)), target))

    assert (report.origin.op, report.cause) == ("log", "log-domain")


def test_what_was_bad_when_it_was_read_stays_bad_input() -> None:
    """Data ops that found the value already bad are not blamed for it."""
    read = torch.randn(5, 4)
    read[1, 1] = float("nan")

    report = train(lambda: read * 2.0 + 1.0, lambda model, x: model(x).sum())

    assert (report.phase, report.cause) == ("input", "bad-input")


def test_large_temporaries_are_computed_again() -> None:
    """What is too large to be held is made a second time from what its op was called with."""
    batch = torch.randn(5, 4000)
    batch[2] = 1.0

    def prepare() -> Tensor:
        return ((batch - batch.mean(1, keepdim=True)) / batch.std(1, keepdim=True)).relu()[:, :4]

    report = train(prepare, lambda model, x: model(x).sum())

    assert (report.phase, report.origin.op, report.cause) == ("loss", "div", "zero-division")
    assert report.origin.example.operand("other").value == 0


def test_a_batch_that_replaced_itself() -> None:
    """The batch as it was read is gone; that it was divided by 0 is proof enough."""

    def prepare() -> Tensor:
        x = torch.randn(5, 4000)
        x[2] = 1.0
        spread = x.std(1, keepdim=True)
        x = x / spread
        return x[:, :4]

    report = train(prepare, lambda model, x: model(x).sum())

    assert (report.phase, report.origin.op, report.cause) == ("loss", "div", "zero-division")


def test_random_temporaries_are_not_drawn_again() -> None:
    """A second draw would be another number: what is not known is not said."""

    def prepare() -> Tensor:
        return torch.randn(5, 4000).floor().log()[:, :4]

    report = train(prepare, lambda model, x: model(x).sum())

    assert (report.phase, report.cause) == ("input", "bad-input")
