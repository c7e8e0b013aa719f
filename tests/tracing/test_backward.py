"""Values born in the backward: named by the forward op, its module and its line."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import nantrace

from ..builders import Program, caught, operand, report_on, sgd

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("function", "w", "op", "node"),
    [
        pytest.param(torch.sqrt, 0.0, "sqrt", "SqrtBackward0", id="sqrt"),
        pytest.param(lambda w: w**0.5, 0.0, "pow", "PowBackward0", id="pow"),
        pytest.param(torch.acos, 1.0, "acos", "AcosBackward0", id="acos"),
        pytest.param(torch.asin, 1.0, "asin", "AsinBackward0", id="asin"),
        pytest.param(lambda w: torch.hypot(w, w * 0), 0.0, "hypot", "HypotBackward0", id="hypot"),
    ],
)
def test_a_singular_derivative(function: Any, w: float, op: str, node: str) -> None:
    """The forward is finite, its derivative is not: the forward op is named."""
    report = report_on(function, [w, 0.5])

    assert (report.phase, report.origin.op, report.origin.autograd_node) == ("backward", op, node)
    assert report.origin.derivative
    assert report.origin.module == ""
    assert report.cause == "singular-gradient"
    assert report.origin.example.index == (0,)


def test_the_operand_of_the_forward_is_shown() -> None:
    """The example of a derivative shows what the forward op had read, and the gradient that came in."""
    report = report_on(lambda w: torch.sqrt(w * 3) * 2, [0.0, 4.0])

    assert operand(report, "self").value == 0.0
    assert operand(report, "result").value == 0.0
    assert operand(report, "grad").value == 2.0


def test_the_line_of_the_forward_op_is_named() -> None:
    """A value born in the backward has the line on which the forward op was called."""

    def forward(w: Tensor) -> Tensor:
        distance = torch.sqrt(w)
        return distance * 2

    report = report_on(forward, [0.0, 1.0])

    assert report.origin.source.code == "distance = torch.sqrt(w)"
    assert report.origin.source.function == "forward"


def test_a_masked_branch_that_the_backward_revives() -> None:
    """where hides the bad branch in the forward; 0 * inf revives it in the backward."""
    report = report_on(lambda w: torch.where(w > 0, torch.log(w), torch.zeros(())), [0.0, 4.0])

    assert (report.phase, report.origin.op, report.cause) == ("backward", "log", "masked-gradient")
    assert operand(report, "grad").value == 0.0


def test_a_masked_branch_with_a_finite_value() -> None:
    """A root of 0 is finite: its derivative is what is wrong, and the mask does not help."""
    report = report_on(lambda w: torch.where(w > 0, torch.sqrt(w), torch.zeros(())), [0.0, 4.0])

    assert (report.phase, report.origin.op, report.cause) == ("backward", "sqrt", "singular-gradient")
    assert "masked-gradient" in report.diagnosis.also


def test_a_derivative_of_the_loss() -> None:
    """An op of the loss code: module None, phase "backward"."""
    report = report_on(lambda w: w * 1.0, [0.0, 0.0], loss=lambda out: torch.sqrt(out.square().sum()))

    assert (report.phase, report.origin.op, report.origin.module) == ("backward", "sqrt", None)


def test_an_overflow_in_the_backward() -> None:
    """Gradients that overflow although the forward is finite."""
    report = report_on(lambda w: w * 1e-30 * 1e30 * 1e30 * 1e-30, [1.0], loss=lambda out: (out * 1e25).sum() * 1e13)

    assert report.phase == "backward"
    assert report.origin.op == "mul"
    assert report.origin.example.value == INF


# Custom Functions


class SignedSqrt(torch.autograd.Function):
    """A Function whose own backward divides by zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign() * x.abs().sqrt()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient / (2 * x.abs().sqrt())


class SafeLog(torch.autograd.Function):
    """A Function whose forward takes a logarithm that is not safe at all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        shifted = x - 5
        return torch.log(shifted)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def test_the_backward_of_a_custom_function() -> None:
    """Born in a custom backward: the Function's name, and the line that called `apply`."""

    def forward(w: Tensor) -> Tensor:
        pooled = SignedSqrt.apply(w)
        return pooled * 2

    report = report_on(forward, [0.0, 4.0])

    assert (report.phase, report.origin.op) == ("backward", "SignedSqrt")
    assert report.origin.source.code == "pooled = SignedSqrt.apply(w)"
    assert report.origin.module == ""


def test_the_forward_of_a_custom_function() -> None:
    """Born in a custom forward: the op and the line inside it."""
    report = report_on(SafeLog.apply, [1.0])

    assert (report.phase, report.origin.op) == ("forward", "log")
    assert report.origin.source.code == "return torch.log(shifted)"


def test_a_custom_function_in_the_loss() -> None:
    """The same outside the model."""
    report = report_on(lambda w: w * 1.0, [0.0], loss=lambda out: SignedSqrt.apply(out).sum())

    assert (report.phase, report.origin.op, report.origin.module) == ("backward", "SignedSqrt", None)


# Double backward


def test_a_gradient_penalty_at_zero() -> None:
    """sqrt of a squared gradient that is 0: born in the second backward, named by its line in the loss."""
    model = Program(lambda w, x: (w * x * 0).sum(), [1.0, 2.0])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            x = torch.ones(2, requires_grad=True)
            score = model(x)
            (gradient,) = torch.autograd.grad(score, x, create_graph=True)
            norm = torch.sqrt(gradient.square().sum())
            (score + (norm - 1) ** 2).backward()
            optimizer.step()

    report = caught(run)

    assert (report.phase, report.origin.op, report.origin.module) == ("backward", "sqrt", None)
    assert report.origin.source.code == "norm = torch.sqrt(gradient.square().sum())"
    assert report.cause == "singular-gradient"
    assert report.reproduced is True


def test_the_second_derivative_of_an_op() -> None:
    """An op whose first derivative is finite and whose second is not."""
    model = Program(lambda w, x: ((w * x).clamp_min(0) ** 1.5).sum(), [1.0])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            x = torch.zeros(1, requires_grad=True)
            (gradient,) = torch.autograd.grad(model(x), x, create_graph=True)
            (gradient + x).sum().backward()
            optimizer.step()

    report = caught(run)

    assert (report.phase, report.origin.op, report.origin.module) == ("backward", "pow", "")


# Between backward and step


def test_clipping_does_not_hide_the_origin() -> None:
    """Gradients that clipping has spread a NaN through are walked to where it came from."""
    model = Program(lambda w: torch.sqrt(w).sum(), [0.0, 4.0, 9.0])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    report = caught(run)

    assert (report.phase, report.origin.op) == ("backward", "sqrt")


def test_a_division_by_a_norm_of_zero() -> None:
    """A hand-written clipping that divides by a norm of 0 is named itself."""
    model = Program(lambda w: (w * 0).sum(), [1.0, 2.0])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model().backward()
            model.w.grad /= model.w.grad.norm()
            optimizer.step()

    report = caught(run)

    assert (report.phase, report.origin.op) == ("optimizer", "div")
    assert report.origin.source.code == "model.w.grad /= model.w.grad.norm()"


def test_the_first_of_several_bad_losses_is_the_one_that_is_walked() -> None:
    """Every loss of an accumulated step is bad: the first one leads to the first op that used the bad weight."""
    model = Program(lambda w, sure: torch.log(w).sum() if sure else torch.sqrt(w).sum(), [1.0, -4.0])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            for sure in (True, False, True):
                model(sure).backward()
            optimizer.step()

    assert caught(run).origin.op == "log"


def test_a_bad_loss_whose_gradients_were_dropped_is_not_walked() -> None:
    """The user zeroed the gradients of the first bad loss: the second one is about to be used."""
    model = Program(lambda w, sure: torch.log(w).sum() if sure else torch.sqrt(w).sum(), [1.0, -4.0])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model(True).backward()
            optimizer.zero_grad()
            model(False).backward()
            optimizer.step()

    assert caught(run).origin.op == "sqrt"


# What checkpoints recompute


class Checkpointed(nn.Module):
    """Blocks whose own code runs in a checkpoint; in the bad one an infinity is met that only the backward minds."""

    class Block(nn.Module):
        def __init__(self, factor: float, reentrant: bool) -> None:
            super().__init__()
            self.scale, self.factor, self.reentrant = nn.Linear(3, 3), factor, reentrant

        def inner(self, x: Tensor) -> Tensor:
            return torch.sigmoid(torch.exp(self.scale(x).square() * self.factor)) + x

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=self.reentrant)

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.blocks = nn.Sequential(*(self.Block(factor, reentrant) for factor in (1e-3, 1e9, 1e-3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.first(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_a_checkpoint_recomputes_was_born_in_the_forward(reentrant: bool) -> None:
    """The recomputed op is the forward's: its phase, its module (of three that run the same code) and its line."""
    model = Checkpointed(reentrant)
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            loss = model(torch.randn(2, 3)).sum()
            assert bool(loss.isfinite())
            loss.backward()
            optimizer.step()

    report = caught(run)

    assert (report.phase, report.origin.op, report.origin.module) == ("forward", "exp", "blocks.1")
    assert report.origin.source.function == "inner"
    assert report.cause == "overflow"


def test_accumulated_gradients_are_walked_to_the_call_that_spoiled_them() -> None:
    """Of several backward calls, the one that made the NaN."""
    model = Program(lambda w, x: torch.sqrt(w * x).sum(), [1.0, 4.0])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            for x in (1.0, 0.0, 2.0):
                model(torch.tensor(x)).backward()
            optimizer.step()

    report = caught(run)

    assert (report.phase, report.origin.op) == ("backward", "sqrt")
    assert operand(report, "self").value == 0.0


# Long graphs


def test_three_hundred_cells() -> None:
    """A recurrence of 300 cells is walked without recursion."""

    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.RNNCell(4, 4, nonlinearity="relu")
            with torch.no_grad():
                self.cell.weight_hh.copy_(torch.eye(4) * 1.5)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.zeros(2, 4)
            for step in x:
                hidden = self.cell(step, hidden)
            return hidden

    model = Unrolled()
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model(torch.rand(300, 2, 4)).sum().backward()
            optimizer.step()

    report = caught(run)

    assert report.origin.module == "cell"
    assert report.origin.example.value == INF


def test_a_long_chain_in_the_loss() -> None:
    """A thousand ops of the loss code are walked too."""

    def loss(out: Tensor) -> Tensor:
        for _ in range(1000):
            out = out * 1.2
        return out.sum()

    report = report_on(lambda w: w * 1.0, [1.0], loss=loss)

    assert (report.phase, report.origin.op) == ("loss", "mul")
    assert report.origin.example.value == INF
