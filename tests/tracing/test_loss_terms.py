"""The terms of a loss: their names, values, weights, and shares of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace
from nantrace.model import Cause

from ..builders import Program, caught, kept, sgd


def report_of(loss: Callable[[Tensor], Tensor], w: float = 2.0) -> nantrace.Report:
    """One step with a loss of the model's output, which is its parameter `w` itself."""
    model = Program(lambda w: w * 1.0, w)
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            loss(model()).backward()
            optimizer.step()

    return caught(run)


def told(report: nantrace.Report) -> list[tuple[str, float | None, float]]:
    """Name, value and weight of each term."""
    return [(term.name, term.value, term.weight) for term in report.snapshot.terms]


def nan() -> object:
    """A NaN that equals itself in comparisons."""
    return pytest.approx(math.nan, nan_ok=True)


needs_columns = pytest.mark.skipif(not kept("x"), reason="Python 3.10 knows no sub-expressions")


@needs_columns
def test_terms_are_called_as_the_sum_calls_them() -> None:
    """Names, values and weights of `recon + beta * kl - 0.5 * size`."""
    beta = 4.0

    def loss(out: Tensor) -> Tensor:
        recon = out.square()
        kl = torch.log(out - 3.0)
        size = out.abs()
        return recon + beta * kl - 0.5 * size

    assert told(report_of(loss)) == [("recon", 4.0, 1.0), ("kl", nan(), 4.0), ("size", 2.0, -0.5)]


@needs_columns
def test_the_evidence_names_the_bad_term_beside_the_good_ones() -> None:
    """The user sees at once which line of the loss to look at."""

    def loss(out: Tensor) -> Tensor:
        recon = out.square()
        kl = torch.log(out - 3.0)
        return recon + kl

    report = report_of(loss)

    assert report.cause is Cause.LOG_DOMAIN
    assert "of the 2 terms of the loss `kl` is nan; finite: recon = 4" in report.evidence


@needs_columns
@pytest.mark.parametrize("way", ["stack", "dict", "loop", "in place", "dot", "divided", "per sample"])
def test_ways_of_adding_up(way: str) -> None:
    """However the terms are added, they are found with their values and weights."""

    def loss(out: Tensor) -> Tensor:
        if way == "per sample":
            rows = out * torch.ones(4)
            first = rows.square()
            second = torch.log(rows - 3.0)
            return (first + 2.0 * second).mean()
        first = out.square()
        second = torch.log(out - 3.0)
        if way == "stack":
            return torch.stack([first, 2.0 * second]).sum()
        if way == "dot":
            return torch.dot(torch.tensor([1.0, 2.0]), torch.stack([first, second]))
        if way == "dict":
            return sum({"a": first, "b": 2.0 * second}.values())  # type: ignore[return-value]
        if way == "loop":
            total = torch.zeros(())
            for weight, term in ((1.0, first), (2.0, second)):
                total = total + weight * term
            return total
        if way == "in place":
            total = out * 0.0
            total += first
            total += 2.0 * second
            return total
        return (first + 2.0 * second) / 8

    found = [term for term in told(report_of(loss)) if term[0] in ("first", "second")]  # not the zero it began with

    assert found == [("first", 4.0, 1.0), ("second", nan(), 2.0)]


@needs_columns
def test_terms_that_a_model_adds_up_itself() -> None:
    """A loss that is computed inside the model's forward is taken apart all the same."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(2.0))

        def forward(self) -> Tensor:
            recon = self.w.square()
            kl = torch.log(self.w - 3.0)
            return recon + 0.1 * kl

    model = Inner()
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model().backward()
            optimizer.step()

    assert told(caught(run)) == [("recon", 4.0, 1.0), ("kl", nan(), 0.1)]


@needs_columns
def test_terms_of_one_line_are_one_term() -> None:
    """A loss for each time step is told as their sum, with how many they are."""

    def loss(out: Tensor) -> Tensor:
        total = 0.0
        for step in range(5):
            total = total + out * step
        kl = torch.log(out - 3.0)
        return total + kl

    terms = report_of(loss).snapshot.terms

    assert [(term.name, term.value, term.count) for term in terms] == [("out * step", 20.0, 5), ("kl", nan(), 1)]


@pytest.mark.parametrize(
    "loss",
    [
        lambda out: torch.log(out - 3.0),
        lambda out: 3.0 * torch.log(out - 3.0) / 2,
        lambda out: torch.log(out - 3.0) * out.square(),
        lambda out: (torch.log(out - 3.0) - torch.ones(4)).square().mean(),
    ],
    ids=["alone", "with factors", "product", "mean of a square"],
)
def test_a_loss_that_is_no_sum_has_no_terms(loss: Callable[[Tensor], Tensor]) -> None:
    """Nothing is said where there is nothing to choose between."""
    assert report_of(loss).snapshot.terms == ()


@needs_columns
def test_the_term_that_carries_the_exploding_gradient() -> None:
    """Of a diverging run: the share of each term in the gradient, and a lower weight for the one that carries it."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = sgd(model, lr=0.5)
    x = torch.randn(16, 4)

    def run() -> None:
        with nantrace.watch(model):
            for _ in range(60):
                optimizer.zero_grad()
                out = model(x)
                fit = F.l1_loss(out, x[:, :2])
                size = out.square().mean() ** 2
                loss = fit + 10.0 * size
                loss.backward()
                optimizer.step()

    report = caught(run)
    fit, size = report.snapshot.terms

    assert report.cause is Cause.LEARNING_RATE
    assert (fit.name, size.name, size.weight) == ("fit", "size", 10.0)
    assert fit.gradient_norm is not None and math.isfinite(fit.gradient_norm)
    assert size.gradient_norm is not None and not size.gradient_norm < 1e3
    assert any("`size` (weight 10)" in sentence for sentence in report.evidence)
    assert any(remedy.text.startswith("Lower the weight of `size` from 10 to ") for remedy in report.remedies)


@needs_columns
def test_taking_a_loss_apart_leaves_nothing_behind() -> None:
    """Gradients, parameters and the random stream are those of a run without a watch."""

    def train(model: nn.Module) -> None:
        out = model()
        noise = torch.rand(())
        loss = out.square() + torch.log(out - 3.0) + noise * out.abs()
        loss.backward()

    torch.manual_seed(1)
    plain = Program(lambda w: w * 1.0, 2.0)
    train(plain)
    expected = torch.rand(3)

    torch.manual_seed(1)
    model = Program(lambda w: w * 1.0, 2.0)
    with pytest.warns(nantrace.NumericalAnomalyWarning), nantrace.watch(model, on_anomaly="warn") as tracer:
        train(model)

    assert len(tracer.reports[0].snapshot.terms) == 3
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(model.w.grad, plain.w.grad) or torch.isnan(plain.w.grad)


@needs_columns
def test_terms_survive_a_dump(tmp_path: Path) -> None:
    """A loaded report says the same of them."""
    report = report_of(lambda out: out.square() + torch.log(out - 3.0))
    again = nantrace.load(report.save(tmp_path / "one.nantrace"))

    assert [term.name for term in again.snapshot.terms] == [term.name for term in report.snapshot.terms]
    assert again.evidence == report.evidence
