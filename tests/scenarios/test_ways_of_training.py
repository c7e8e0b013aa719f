"""Calls, losses, backwards and updates arranged in every way: failures are named, healthy runs left alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torch.utils.data import DataLoader, TensorDataset

from ..builders import sgd
from .rows import Program, Row, Table

table = Table()


def batch() -> Tensor:
    return torch.randn(6, 4)


class Net(nn.Module):
    """Two layers; told to, takes the root of zero between them: finite forward, infinite derivative."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.first, self.second, self.bad = nn.Linear(4, 8), nn.Linear(8, width), False

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.body(self.first(x)))

    def body(self, h: Tensor) -> Tensor:
        return torch.sqrt(h.square() * 0 if self.bad else h.square() + 1)  # BAD


def risky(h: Tensor, bad: bool) -> Tensor:
    """The loss; told to, the log of a negative number."""
    return torch.log(h.square().mean() + 1 - (100 if bad else 0))  # BAD


@table.row("loss", "log", None)
def gradient_accumulation() -> Program:
    """Four micro-batches to one update, the third is bad."""
    model = Net()
    optimizer = sgd(model, 0.01)

    def step(bad: bool) -> None:
        optimizer.zero_grad()
        for k in range(4):
            (risky(model(batch()), bad and k == 2) / 4).backward()
        optimizer.step()

    return Program((model,), step)


@table.row("backward", "sqrt", "")
def gradient_accumulation_in_backward() -> Program:
    """The same, born in the backward of the second micro-batch."""
    model = Net()
    optimizer = sgd(model, 0.01)

    def step(bad: bool) -> None:
        optimizer.zero_grad()
        for k in range(3):
            model.bad = bad and k == 1
            model(batch()).square().mean().backward()
        optimizer.step()

    return Program((model,), step)


@table.row("loss", "log", None)
def a_gan() -> Program:
    """Two models and two optimizers: the failure is in the generator's loss, after the discriminator has stepped."""
    generator, critic = nn.Linear(4, 4), Net(1)
    of_critic, of_generator = (torch.optim.Adam(model.parameters(), 1e-3) for model in (critic, generator))

    def step(bad: bool) -> None:
        fake = generator(batch())
        of_critic.zero_grad()
        (F.softplus(-critic(batch())) + F.softplus(critic(fake.detach()))).mean().backward()
        of_critic.step()
        of_generator.zero_grad()
        risky(critic(fake), bad).backward()
        of_generator.step()

    return Program((generator, critic), step)


@table.row("loss", "log", None)
def several_backwards_per_step() -> Program:
    """Three losses of one batch, each with a backward of its own."""
    model, head = Net(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], 0.01)

    def step(bad: bool) -> None:
        optimizer.zero_grad()
        model(batch()).square().mean().backward()
        risky(head(model(batch())), bad).backward()
        head(batch()[:, :2]).mean().backward()
        optimizer.step()

    return Program((model, head), step)


@table.row("backward", "sqrt", None)
def retain_graph() -> Program:
    """Two losses share a graph that the first backward retains; the second one's derivative is infinite."""
    model = Net()
    optimizer = sgd(model, 0.01)

    def step(bad: bool) -> None:
        optimizer.zero_grad()
        out = model(batch())
        out.mean().backward(retain_graph=True)
        torch.sqrt(out.square().sum() * (0 if bad else 1)).backward()  # BAD
        optimizer.step()

    return Program((model,), step)


@table.row("loss", "div", None)
def a_gradient_penalty() -> Program:
    """WGAN-GP: the penalty normalises a gradient that is zero."""
    critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = sgd(critic, 0.01)

    def step(bad: bool) -> None:
        x = batch().requires_grad_()
        (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        slope = slope * (0 if bad else 1)
        unit = slope / slope.square().sum(1, keepdim=True).sqrt()  # BAD
        optimizer.zero_grad()
        (critic(x).mean() + (unit - slope).square().mean()).backward()
        optimizer.step()

    return Program((critic,), step)


@table.row("backward", "sqrt", None)
def a_penalty_in_the_second_backward() -> Program:
    """The penalty's own derivative is infinite: born in the backward through the gradient's graph."""
    critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = sgd(critic, 0.01)

    def step(bad: bool) -> None:
        x = batch().requires_grad_()
        (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        slope = slope * (0 if bad else 1)
        optimizer.zero_grad()
        (critic(x).mean() + torch.sqrt(slope.square().sum(1)).mean()).backward()  # BAD
        optimizer.step()

    return Program((critic,), step)


class Checkpointed(nn.Module):
    """A block under activation checkpointing, with dropout: its recomputation must draw the same numbers."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.block, self.drop, self.reentrant = nn.Linear(4, 4), Net(4), nn.Dropout(0.2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, self.stem(x), use_reentrant=self.reentrant)

    def inner(self, h: Tensor) -> Tensor:
        return self.drop(self.block(h))


def _checkpointing(reentrant: bool) -> Program:
    model = Checkpointed(reentrant)
    optimizer = sgd(model, 0.01)

    def step(bad: bool) -> None:
        model.block.bad = bad
        optimizer.zero_grad()
        model(batch()).square().mean().backward()
        optimizer.step()

    return Program((model,), step)


@table.row("backward", "sqrt", "block")
def checkpointing() -> Program:
    """Born in the backward of a recomputed block."""
    return _checkpointing(False)


@table.row("backward", "sqrt", "block")
def checkpointing_reentrant() -> Program:
    """The same with the older kind, whose backward runs a backward of its own."""
    return _checkpointing(True)


@table.row("forward", "log", "2")
def checkpointing_sequential() -> Program:
    """checkpoint_sequential over a stack of blocks."""
    model = nn.Sequential(Net(4), Net(4), Logarithm(), Net(4))
    optimizer = sgd(model, 0.01)

    def step(bad: bool) -> None:
        model[2].bad = bad
        optimizer.zero_grad()
        checkpoint_sequential(model, 2, batch(), use_reentrant=False).square().mean().backward()
        optimizer.step()

    return Program((model,), step)


class Logarithm(nn.Module):
    """Told to, the log of a negative number."""

    bad = False

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x.square() + 1 - (1e6 if self.bad else 0))  # BAD


@table.row("forward", "log", "1")
def a_teacher_under_no_grad() -> Program:
    """Distillation: the teacher is in eval mode and under no_grad, the student is trained; the teacher fails."""
    student, teacher = Net(), nn.Sequential(nn.Linear(4, 2), Logarithm(), nn.BatchNorm1d(2)).eval()
    optimizer = sgd(student, 0.01)

    def step(bad: bool) -> None:
        teacher[1].bad = bad
        x = batch()
        with torch.no_grad():
            target = teacher(x).softmax(-1)
        optimizer.zero_grad()
        F.kl_div(student(x).log_softmax(-1), target, reduction="batchmean").backward()
        optimizer.step()

    return Program((student, teacher), step)


@table.row("forward", "log", "1")
def inference_mode() -> Program:
    """A validation in inference mode after each update; its result is NaN in the bad step."""
    model = nn.Sequential(nn.Linear(4, 4), Logarithm(), nn.Dropout(0.5))
    optimizer = sgd(model, 0.01)

    def step(bad: bool) -> None:
        model.train()
        model[1].bad = False
        with torch.inference_mode():
            model[1].bad = bad
            model.eval()(batch())
        model[1].bad = False
        optimizer.zero_grad()
        model.train()(batch()).square().mean().backward()
        optimizer.step()

    return Program((model,), step)


@table.row("loss", "log", None)
def an_exponential_average_of_the_weights() -> Program:
    """A copy of the model follows it under no_grad: its writes are no updates of the watched model."""
    model = Net()
    average = copy.deepcopy(model)
    optimizer = sgd(model, 0.01)

    def step(bad: bool) -> None:
        optimizer.zero_grad()
        risky(model(batch()), bad).backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.1)

    return Program((model,), step)


@table.row("forward", "log", "1")
def workers_of_a_data_loader() -> Program:
    """Batches come from worker processes."""
    model = nn.Sequential(nn.Linear(4, 4), Logarithm())
    optimizer = sgd(model, 0.01)
    loader = DataLoader(TensorDataset(torch.randn(12, 4)), batch_size=6, num_workers=2, shuffle=True)

    def step(bad: bool) -> None:
        optimizer.zero_grad()
        for k, (x,) in enumerate(loader):
            model[1].bad = bad and k == 1
            model(x).square().mean().backward()
        optimizer.step()

    return Program((model,), step)


@table.row("loss", "log", None)
def a_closure() -> Program:
    """LBFGS calls the model inside its step, several times."""
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def step(bad: bool) -> None:
        x = batch()

        def closure() -> Any:
            optimizer.zero_grad()
            loss = risky(model(x), bad)
            loss.backward()
            return loss

        optimizer.step(closure)

    return Program((model,), step)


@table.row("backward", "sqrt", "")
def an_optimizer_in_the_backward() -> Program:
    """Each parameter is stepped by a hook as soon as its gradient is there."""
    model = Net()
    optimizers = {p: torch.optim.SGD([p], 0.01) for p in model.parameters()}

    def update(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(update)

    def step(bad: bool) -> None:
        model.bad = bad
        model(batch()).square().mean().backward()

    return Program((model,), step)


@pytest.mark.parametrize("row", table.rows)
def test_the_failure_is_named(row: Row) -> None:
    row.check()


@pytest.mark.parametrize("row", table.rows)
def test_a_healthy_run_is_left_alone(row: Row) -> None:
    row.check_healthy()
