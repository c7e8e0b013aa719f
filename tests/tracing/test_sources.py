"""Values that were bad when they came in: batch, labels, parameters, buffers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

from ..builders import Mlp, caught, report_on, sgd

NAN, INF = math.nan, math.inf


def train_on(
    model: nn.Module, *args: Any, loss: Any = lambda out: out.square().mean(), **kwargs: Any
) -> nantrace.Report:
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            loss(model(*args, **kwargs)).backward()
            optimizer.step()

    return caught(run)


def batch_with(value: float) -> Tensor:
    x = torch.randn(5, 4)
    x[3, 1] = value
    return x


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_bad_batch(value: float) -> None:
    """The field, the element, and the first op that consumed it."""
    report = train_on(Mlp(), batch_with(value))

    source = report.snapshot.source_value
    assert (report.phase, report.cause) == ("input", "bad-input")
    assert (source.kind, source.name, source.index) == ("input", "x", (3, 1))
    assert (report.origin.op, report.origin.module) == ("addmm", "first")


def test_plumbing_is_not_the_first_consumer() -> None:
    """Casting, reshaping and cloning only carry the value: the first op that computes is named."""

    class Model(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            x = x.double().clone().t().contiguous().t().float().reshape(-1, 4)
            x = x.expand(2, 5, 4)[0]
            return super().forward(x)

    report = train_on(Model(), batch_with(NAN))

    assert (report.phase, report.origin.op, report.origin.module) == ("input", "addmm", "first")


def test_a_field_of_a_dictionary() -> None:
    """The field is named as it is written: `batch['pixels']`."""

    class Model(Mlp):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return super().forward(batch["pixels"]) + batch["bias"].mean()

    report = train_on(Model(), {"bias": torch.ones(2), "pixels": batch_with(NAN)})

    assert report.snapshot.source_value.name == "batch['pixels']"


def test_a_keyword_argument() -> None:
    """A keyword is named by itself."""

    class Model(Mlp):
        def forward(self, *, pixels: Tensor) -> Tensor:
            return super().forward(pixels)

    report = train_on(Model(), pixels=batch_with(NAN))

    assert report.snapshot.source_value.name == "pixels"


def test_a_bad_target() -> None:
    """A NaN in the target is a label, and the loss op consumed it."""
    target = torch.zeros(5, 3)
    target[2, 1] = NAN
    report = train_on(Mlp(), torch.randn(5, 4), loss=lambda out: F.mse_loss(out, target))

    source = report.snapshot.source_value
    assert (report.phase, report.cause, source.kind) == ("input", "bad-label", "label")
    assert source.index == (2, 1)
    assert (report.origin.op, report.origin.module) == ("mse_loss", None)


def test_missing_targets_that_are_masked_before_the_loss_are_silent() -> None:
    """NaN as missing data, left out before the loss, is no anomaly."""
    model, target = Mlp(), torch.zeros(5, 3)
    target[2, 1] = NAN
    optimizer = sgd(model)
    with nantrace.watch(model) as tracer:
        out = model(torch.randn(5, 4))
        there = ~torch.isnan(target)
        F.mse_loss(out[there], target[there]).backward()
        optimizer.step()

    assert tracer.reports == []


def test_missing_inputs_that_the_model_fills_are_silent() -> None:
    """NaN that the model itself replaces is no anomaly."""

    class Model(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.where(torch.isnan(x), torch.zeros(()), x))

    model = Model()
    optimizer = sgd(model)
    with nantrace.watch(model) as tracer:
        model(batch_with(NAN)).square().mean().backward()
        optimizer.step()

    assert tracer.reports == []


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_bad_parameter(value: float) -> None:
    """A parameter that was bad before the step is named, with its first consumer."""
    model = Mlp()
    with torch.no_grad():
        model.second.weight[1, 2] = value
    report = train_on(model, torch.randn(5, 4))

    source = report.snapshot.source_value
    assert (report.phase, report.cause) == ("parameters", "bad-parameter")
    assert (source.kind, source.name, source.index) == ("parameter", "second.weight", (1, 2))
    assert (report.origin.op, report.origin.module) == ("addmm", "second")


def test_a_bad_parameter_that_where_chose() -> None:
    """A learned number is no literal: it was bad before the step began."""
    report = report_on(lambda w: torch.where(torch.tensor([True, False]), w, torch.ones(2)), NAN)

    assert (report.phase, report.cause, report.snapshot.source_value.name) == ("parameters", "bad-parameter", "w")


def test_a_bad_buffer() -> None:
    """So is a buffer."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    model[1].running_var[2] = NAN
    report = train_on(model, torch.randn(5, 4))

    source = report.snapshot.source_value
    assert (report.phase, report.cause) == ("parameters", "bad-parameter")
    assert (source.kind, source.name, source.index) == ("buffer", "1.running_var", (2,))
    assert (report.origin.op, report.origin.module) == ("batch_norm", "1")


def test_a_float_mask_buffer_of_minus_infinity_is_silent() -> None:
    """A causal mask kept as a buffer of -inf is declared."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("mask", torch.full((4, 4), -INF).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(self.linear(x) + self.mask, -1)

    model = Model()
    optimizer = sgd(model)
    with nantrace.watch(model) as tracer:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 4)).square().sum().backward()
            optimizer.step()

    assert tracer.reports == []


def test_a_mask_argument_of_minus_infinity_is_declared() -> None:
    """A float mask from a collator is declared: the NaN that it makes in a fully masked row belongs to the softmax."""
    mask = torch.zeros(2, 3)
    mask[1] = -INF
    report = report_on(lambda w, m: torch.softmax(w + m, -1), torch.zeros(2, 3), mask)

    assert (report.phase, report.origin.op, report.cause) == ("forward", "softmax", "masked-softmax")


def test_bad_embeddings_are_named_at_the_row_that_was_read() -> None:
    """A table with a bad row: the index that read it."""
    model = nn.Embedding(6, 3)
    with torch.no_grad():
        model.weight[4, 2] = NAN
    report = train_on(model, torch.tensor([0, 4]))

    assert (report.phase, report.origin.op) == ("parameters", "embedding")
    assert report.snapshot.source_value.index == (4, 2)


def test_a_bad_weight_of_the_loss() -> None:
    """A constant of the loss code that is NaN is a label to the report."""
    weights = torch.tensor([1.0, NAN, 1.0])
    report = train_on(Mlp(), torch.randn(5, 4), loss=lambda out: (out * weights).mean())

    assert (report.phase, report.snapshot.source_value.kind) == ("input", "label")
    assert (report.origin.op, report.origin.module) == ("mul", None)


def test_a_buffer_that_the_loop_fills_slice_by_slice_stays_a_buffer() -> None:
    """A memory bank is written through views outside the model's call; what was never filled is the bank's own."""

    class Queue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("bank", torch.full((6, 3), NAN))
            self.filled = 0

        def push(self, x: Tensor) -> None:
            self.bank[self.filled : self.filled + len(x)] = x.detach()
            self.filled += len(x)

        def forward(self, index: Tensor) -> Tensor:
            return self.bank[index]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.queue = nn.Linear(4, 3), Queue()

        def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            out = self.linear(x)
            return out @ self.queue(index).t(), out

    model = Model()
    model.queue.push(torch.randn(2, 3))
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            for last in (1, 4):
                products, out = model(torch.randn(2, 4), torch.tensor([0, last]))
                products.sum().backward()
                optimizer.step()
                model.queue.push(out)

    report = caught(run)

    source = report.snapshot.source_value
    assert (source.kind, source.name, source.index) == ("buffer", "queue.bank", (4, 0))
    assert report.cause == "indexing"
