"""What the loss writes through views: into memory that it allocated, and over a part of a result."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import nantrace

from ..builders import Program, caught, kept, report_on, sgd, stays_silent


def test_a_preallocated_tensor() -> None:
    """`out[t] = x` carries what the step computed into memory that the loss allocated as data."""

    def loss(w: Tensor) -> Tensor:
        out = torch.empty(3, 2)
        for t in range(3):
            out[t] = torch.log(w - t)
        return out[1:].sum()

    report = report_on(lambda w: w, [3.0, 1.5], loss=loss)

    assert (report.phase, report.origin.op, report.cause) == ("loss", "log", "log-domain")
    assert report.origin.source.expression == kept("torch.log(w - t)")
    assert report.origin.example.operand("self").value == -0.5
    assert report.reproduced is True


def test_a_value_born_in_the_backward_behind_a_preallocated_tensor() -> None:
    """The graph goes through the written memory in the replay too."""

    def loss(w: Tensor) -> Tensor:
        out = torch.zeros(2, 2)
        out[0] = w.sqrt()
        return out.sum()

    report = report_on(lambda w: w, [4.0, 0.0], loss=loss)

    assert (report.phase, report.origin.op, report.cause) == ("backward", "sqrt", "singular-gradient")
    assert report.reproduced is True


def test_nested_views() -> None:
    """A view of a view writes into the same memory."""

    def loss(w: Tensor) -> Tensor:
        out = torch.zeros(2, 3, 2)
        out[1][2].copy_(torch.log(w))
        return out.sum()

    report = report_on(lambda w: w, [1.0, -1.0], loss=loss)

    assert (report.origin.op, report.origin.example.index) == ("log", (1,))


def test_a_view_that_is_older_than_the_write() -> None:
    """A view shows what was written through another view of the same memory after it was made."""

    def loss(w: Tensor) -> Tensor:
        out = torch.zeros(2, 2)
        first = out[0]
        out[0] = torch.log(w)
        return first.sum()

    report = report_on(lambda w: w, [1.0, -1.0], loss=loss)

    assert (report.origin.op, report.origin.example.index, report.reproduced) == ("log", (1,), True)


def test_an_old_view_of_a_result() -> None:
    """So does a view of what the model returned."""

    def loss(out: Tensor) -> Tensor:
        both = out[:2]
        out[0] = torch.log(out[1] - 5.0)
        return both.sum()

    report = report_on(lambda w: w * 1.0, [[1.0], [2.0], [3.0]], loss=loss)

    assert (report.phase, report.origin.op, report.reproduced) == ("loss", "log", True)


def test_the_real_part_of_a_complex_tensor() -> None:
    """A view of another dtype is written through as well."""

    def loss(w: Tensor) -> Tensor:
        out = torch.zeros(2, 2, dtype=torch.complex64)
        out[0, 0] = torch.log(w[0])
        out.real[1, 1] = w[1]
        return out.abs().sum()

    report = report_on(lambda w: w, [0.0, 1.0], loss=loss)

    assert (report.phase, report.origin.op, report.reproduced) == ("loss", "log", True)


def test_the_part_of_a_result_that_was_overwritten_is_not_accused() -> None:
    """A row that the loss fills after the call has no consequences; the next bad row has."""

    def loss(out: Tensor) -> Tensor:
        out[0] = 0.0
        return out.sum()

    report = report_on(lambda w: torch.log(w), [[-1.0], [1.0], [-2.0]], loss=loss)

    assert (report.origin.op, report.origin.example.index) == ("log", (2, 0))
    assert report.reproduced is True


def test_a_bad_row_that_was_overwritten_is_silent() -> None:
    """Nothing is left of it in the loss, and its gradient is cut off."""

    def loss(out: Tensor) -> Tensor:
        out[0] = 0.0
        return out.sum()

    assert stays_silent(lambda w: torch.log(w), [[-1.0], [1.0]], loss=loss).reports == []


def test_a_replay_writes_no_memory_of_the_loss() -> None:
    """What the loss allocated holds after the report what it held before it."""
    kept: list[Tensor] = []

    def loss(w: Tensor) -> Tensor:
        out = torch.full((2, 2), 7.0)
        out[0] = torch.log(w)
        out.mul_(2.0)
        kept[:] = [out, out.detach().clone()]
        return out.sum()

    report = report_on(lambda w: w, [1.0, -1.0], loss=loss)

    assert report.reproduced is True
    torch.testing.assert_close(*kept, rtol=0, atol=0, equal_nan=True)


def test_rows_of_a_gradient_that_are_rescaled_by_hand() -> None:
    """Clipping row by row writes into the gradient through views; its line is named."""
    model = Program(lambda w: w, [[1.0, 2.0], [3.0, 4.0]])
    optimizer = sgd(model)
    norms = [1.0, 0.0]

    def run() -> None:
        with nantrace.watch(model):
            model()[0].sum().backward()
            for row, norm in enumerate(norms):
                model.w.grad[row] /= norm
            optimizer.step()

    report = caught(run)

    assert (report.phase, report.origin.op, report.origin.source.code) == (
        "optimizer",
        "div",
        "model.w.grad[row] /= norm",
    )
    assert math.isnan(report.origin.example.value)
