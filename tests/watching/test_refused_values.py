"""An exception of the user's program that is about a non-finite value says where the value was born."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

from ..builders import notes_of, sgd

BAD_STEP = 2


class Model(nn.Module):
    """A linear layer and a function of its output."""

    def __init__(self, function: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.linear, self.function, self.bad = nn.Linear(4, 4), function, False

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x), self.bad)


def explained(
    function: Callable[[Tensor, bool], Tensor], loss: Callable[[Tensor], Tensor], clip: Any = None
) -> tuple[Exception, nantrace.Report]:
    """The exception that leaves the watch in the bad step, and its report."""
    model = Model(function)
    optimizer = sgd(model, 0.01)

    def run() -> None:
        with nantrace.watch(model):
            for i in range(BAD_STEP + 1):
                model.bad = i == BAD_STEP
                optimizer.zero_grad()
                loss(model(torch.randn(4, 4))).backward()
                if clip is not None:
                    clip(model.parameters())
                optimizer.step()

    with pytest.raises((ValueError, RuntimeError, AssertionError)) as raised:
        run()
    report = nantrace.report_of(raised.value)
    assert report is not None
    assert report.step == BAD_STEP
    assert str(report) in "".join(notes_of(raised.value))
    return raised.value, report


def log_of_zero(h: Tensor, bad: bool) -> Tensor:
    return torch.log(h.abs() * (0.0 if bad else 1.0))


def user_checks(h: Tensor) -> Tensor:
    loss = h.mean()
    assert torch.isfinite(loss)
    return loss


def user_raises(h: Tensor) -> Tensor:
    loss = h.mean()
    if not torch.isfinite(loss):
        raise RuntimeError(f"training diverged with loss {loss.item()}")
    return loss


def mixture(h: Tensor) -> Tensor:
    return -torch.distributions.Categorical(logits=h, validate_args=True).log_prob(torch.zeros(4)).mean()


@pytest.mark.parametrize(
    ("loss", "kind", "message"),
    [
        pytest.param(user_checks, AssertionError, "", id="assert"),
        pytest.param(user_raises, RuntimeError, "training diverged", id="raise"),
        pytest.param(mixture, ValueError, "invalid values", id="torch.distributions"),
        pytest.param(
            lambda h: F.binary_cross_entropy(torch.sigmoid(h) * h, torch.ones(4, 4)) if h.isnan().any() else h.mean(),
            RuntimeError,
            "between 0 and 1",
            id="op of the loss",
        ),
    ],
)
def test_a_check_behind_the_model(loss: Any, kind: type[Exception], message: str) -> None:
    """The check keeps its exception; the note names the op in the model."""
    function = log_of_zero if message != "between 0 and 1" else lambda h, bad: torch.log(-h.abs()) if bad else h
    error, report = explained(function, loss)

    assert type(error) is kind
    assert message in str(error)
    assert (report.phase, report.origin.op, report.origin.module) == ("forward", "log", "")
    assert report.cause == "log-domain"
    assert report.reproduced is True


def refuses_nan(h: Tensor, bad: bool) -> Tensor:
    h = log_of_zero(h, bad)
    if torch.isinf(h).any():
        raise ValueError("found infinite activations")
    return h


def decomposes(h: Tensor, bad: bool) -> Tensor:
    h = h / (0.0 if bad else 1.0)
    return torch.linalg.cholesky(h @ h.T + torch.eye(4))


@pytest.mark.parametrize(
    ("function", "op", "kind"),
    [
        pytest.param(refuses_nan, "log", ValueError, id="a check of the model's own"),
        pytest.param(decomposes, "div", torch.linalg.LinAlgError, id="a decomposition of NaN"),
    ],
)
def test_a_check_inside_the_model(function: Any, op: str, kind: type[Exception]) -> None:
    """The call that raised is replayed up to the exception."""
    error, report = explained(function, lambda h: h.square().mean())

    assert type(error) is kind
    assert (report.phase, report.origin.op, report.origin.module) == ("forward", op, "")
    assert report.reproduced is True


def test_a_matrix_that_is_not_positive_definite() -> None:
    """Finite entries: the decomposition itself is the origin, and the cause is its domain."""
    error, report = explained(
        lambda h, bad: torch.linalg.cholesky(h @ h.T * (-1.0 if bad else 1.0) + torch.eye(4)), lambda h: h.mean()
    )

    assert isinstance(error, torch.linalg.LinAlgError)
    assert (report.origin.op, report.origin.module, report.cause) == ("linalg_cholesky", "", "domain")
    assert "not positive-definite" in report.evidence[0]


def test_a_singular_matrix_in_the_loss() -> None:
    """A decomposition in the loop's own code."""
    error, report = explained(lambda h, bad: h * (0.0 if bad else 1.0), lambda h: torch.linalg.inv(h @ h.T).mean())

    assert "singular" in str(error)
    assert (report.phase, report.origin.op, report.origin.module) == ("loss", "linalg_inv", None)
    assert report.cause == "domain"


def root_of_zero(h: Tensor, bad: bool) -> Tensor:
    return torch.sqrt((h * (0.0 if bad else 1.0)).square())


def test_clipping_that_refuses_bad_gradients() -> None:
    """error_if_nonfinite of clip_grad_norm_ raises before any optimizer can: the gradients tell."""
    _, report = explained(
        root_of_zero,
        lambda h: h.mean(),
        clip=lambda parameters: nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True),
    )

    assert (report.phase, report.origin.op, report.cause) == ("backward", "sqrt", "singular-gradient")


def test_anomaly_detection_of_torch() -> None:
    """detect_anomaly raises inside the backward: the replay raises there too, and names the forward op."""
    with torch.autograd.set_detect_anomaly(True):
        _, report = explained(root_of_zero, lambda h: h.mean())

    assert (report.phase, report.origin.op, report.cause) == ("backward", "sqrt", "singular-gradient")


def test_batch_norm_of_one_sample() -> None:
    """torch refuses before any op runs: the traceback tells which module."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="more than 1 value per channel") as raised, nantrace.watch(model):
        model(torch.randn(1, 4))
    report = nantrace.report_of(raised.value)

    assert report is not None
    assert (report.origin.op, report.origin.module, report.cause) == ("batch_norm", "1", "empty-reduction")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a file is missing"),
        RuntimeError("sizes do not match"),
        AssertionError(),
        IndexError("list index out of range"),
        KeyError("nan"),
    ],
)
def test_an_exception_about_something_else(error: Exception) -> None:
    """Masks, and values that a check does not speak of, accuse nobody."""
    model = Model(lambda h, bad: h.masked_fill(h > 2, float("-inf")))
    with pytest.raises(type(error)), nantrace.watch(model):
        scores = model(torch.randn(2, 4) * 4)
        assert torch.isinf(scores).any()
        scores.softmax(-1).square().sum().backward()
        raise error

    assert nantrace.report_of(error) is None
    assert not hasattr(error, "__notes__")
