"""Diverging and healthy trainings: the chain of evidence, and remedies whose numbers hold when one trains with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nantrace.model import Cause

from ..diverging import (
    Rnn,
    Training,
    Transformer,
    adam,
    add_up,
    classify_images,
    cnn,
    fit_line,
    linear_regression,
    mlp,
    next_token,
    sgd,
    stable,
)

DIVERGING = {
    "regression": Training(linear_regression, fit_line, sgd(2.0)),
    "regression, 100 times": Training(linear_regression, fit_line, sgd(50.0)),
    "mlp": Training(mlp, fit_line, sgd(1.0)),
    "mlp, 30 times": Training(mlp, fit_line, sgd(30.0)),
    "mlp with momentum": Training(mlp, fit_line, sgd(10.0, momentum=0.9)),
    "cnn": Training(cnn, classify_images, sgd(50.0)),
    "transformer": Training(Transformer, next_token, sgd(50.0)),
    "transformer with Adam": Training(Transformer, next_token, adam(3e9)),
}
HEALTHY = {
    "regression": Training(linear_regression, fit_line, sgd(0.05), steps=40),
    "mlp": Training(mlp, fit_line, sgd(0.02), steps=40),
    "transformer with Adam": Training(Transformer, next_token, adam(0.003), steps=40),
    "cnn": Training(cnn, classify_images, sgd(0.05), steps=40),
}


@pytest.mark.parametrize("name", DIVERGING)
def test_a_suggested_learning_rate_is_stable(name: str) -> None:
    """Whatever the model and however far off the rate: training anew with the suggested one stays finite and learns."""
    training = DIVERGING[name]
    report = training.report()
    code = next(remedy.code for remedy in report.remedies if remedy.text.startswith("Lower the learning rate to"))
    lower = float(code.rpartition("lr=")[2].rstrip(")"))
    make = adam if "Adam" in name else sgd

    assert report.cause is Cause.LEARNING_RATE
    assert stable(replace(training, optimizer=make(lower)).run())


def test_the_evidence_is_a_chain_from_the_rate_to_the_op() -> None:
    """The rate and its updates, the loss, the first module to grow, and only then the op that overflowed."""
    evidence = DIVERGING["mlp"].report().evidence

    assert evidence[0].startswith("the learning rate is 1 (SGD): the update of step ")
    assert evidence[1].startswith("loss grew ")
    assert evidence[2].startswith("the first module to grow: ")
    assert "float32 ends at 3.4e+38" in " ".join(evidence[3:])
    assert "within the first 100" in evidence[-1]


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("at", [3, 30])
def test_an_overflow_in_a_healthy_run_is_not_the_learning_rate(name: str, at: int) -> None:
    """One loss that overflows after steps that were fine is what it is."""
    healthy = HEALTHY[name]

    def loss(model: nn.Module, step: int) -> Tensor:
        fine = healthy.loss(model, step)
        return fine * torch.exp(fine.detach() * 0 + (200.0 if step == at else 0.0))

    report = replace(healthy, loss=loss).report()

    assert report.cause is Cause.OVERFLOW
    assert Cause.LEARNING_RATE not in report.diagnosis.also


def test_a_loss_that_fell_until_it_was_nan_points_away_from_the_rate() -> None:
    """The report says so, with the numbers of the steps before."""
    healthy = HEALTHY["regression"]

    def loss(model: nn.Module, step: int) -> Tensor:
        fine = healthy.loss(model, step)
        return fine + torch.log(fine * 0 if step == 30 else fine + 1)

    report = replace(healthy, loss=loss).report()

    assert report.cause is Cause.LOG_DOMAIN
    assert report.evidence[-1].startswith("the loss was finite and falling over the 30 steps before (")
    assert report.evidence[-1].endswith("that points to this op or this batch, not to the learning rate")


@pytest.mark.parametrize("at", [1, 30])
def test_one_batch_that_threw_the_weights_off_is_told_and_clipped(at: int) -> None:
    """A gradient out of line, at a rate that had been fine: with the suggested clipping the same run stays finite."""

    def loss(model: nn.Module, step: int) -> Tensor:
        return fit_line(model, step) * (1e25 if step == at else 1.0)

    training = Training(mlp, loss, sgd(0.02), steps=40)
    report = training.report()
    clip = report.remedies[0].code

    assert report.cause is Cause.OVERFLOW
    assert any(sentence.startswith(f"the gradient norm of step {at} was ") for sentence in report.evidence)
    assert clip is not None and "clip_grad_norm_" in clip
    losses = replace(training, max_norm=float(clip.rpartition("max_norm=")[2].rstrip(")"))).run()
    assert stable([value for step, value in enumerate(losses) if step != at])


@pytest.mark.parametrize("at", [1, 30])
def test_one_batch_that_ruined_the_weights_is_not_the_learning_rate(at: int) -> None:
    """Its one update was longer than the weights by far, and what came after grew step by step: still the batch."""

    def loss(model: nn.Module, step: int) -> Tensor:
        return next_token(model, step) * (1e9 if step == at else 1.0)

    report = Training(Transformer, loss, sgd(0.02), steps=40).report()

    assert report.cause is not Cause.LEARNING_RATE
    assert Cause.LEARNING_RATE not in report.diagnosis.also


@pytest.mark.parametrize("activation", [torch.relu, torch.sin])
@pytest.mark.parametrize("rate", [1e-3, 0.1])
def test_a_recurrence_that_multiplies_is_no_learning_rate(activation: object, rate: float) -> None:
    """Weights that no update had touched, called 60 times: whatever the rate, the product explodes."""
    report = Training(lambda: Rnn(5.0, activation), add_up, sgd(rate)).report()  # type: ignore[arg-type]

    assert report.cause is Cause.EXPLODING_GRADIENT
    assert any("was called 60 times in this step" in sentence for sentence in report.evidence)
    assert any("orthogonal" in (remedy.code or "") for remedy in report.remedies)


def test_an_exploding_gradient_that_is_still_finite_can_be_clipped() -> None:
    """The gradient of step 0 spoiled the weights: with the suggested bound the same training stays finite."""
    training = Training(lambda: Rnn(5.0, torch.sin), add_up, sgd(1e-3))
    report = training.report()
    clip = next(remedy.code for remedy in report.remedies if "clip_grad_norm_" in (remedy.code or ""))

    assert "that left a gradient norm of " in " ".join(report.evidence)
    assert clip is not None
    assert all(
        value < 1e3 for value in replace(training, max_norm=float(clip.rpartition("max_norm=")[2].rstrip(")"))).run()
    )


def test_a_recurrence_thrown_off_by_its_updates_is_the_learning_rate() -> None:
    """The same net, sound at a tenth of the rate: its first update was a large part of the weights."""
    training = Training(lambda: Rnn(1.0, torch.relu), add_up, sgd(3.0))

    assert training.report().cause is Cause.LEARNING_RATE
    assert stable(replace(training, optimizer=sgd(0.01)).run())
