"""Watching changes nothing: every number of a run is the same, bit for bit, with and without it."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

from ..builders import Attention, ConvNet, Encoder, Recurrent

STEPS = 20
Trace = list[Any]


def images() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 1, 8, 8), torch.randint(3, (4,))


def sequences() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 5, 16), torch.randint(3, (4,))


def state(*modules: nn.Module) -> Trace:
    """Parameters, buffers and gradients, as they stand."""
    found: Trace = []
    for module in modules:
        found += [value.clone() for value in module.state_dict().values()]
        found += [p.grad.clone() for p in module.parameters() if p.grad is not None]
    return found


def streams() -> Trace:
    """The random streams, as they stand."""
    return [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]]


def plainly(model: nn.Module, batch: Callable[[], tuple[Tensor, Tensor]]) -> Trace:
    """Forward, loss, backward, Adam."""
    optimizer, seen = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(STEPS):
        x, y = batch()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        seen += [loss.detach(), *[p.grad.clone() for p in model.parameters()]]
        optimizer.step()
    return seen


def with_autocast(model: nn.Module, batch: Callable[[], tuple[Tensor, Tensor]]) -> Trace:
    """The forward and the loss in bfloat16 where autocast chooses so."""
    optimizer, seen = torch.optim.AdamW(model.parameters(), 1e-2), []
    for _ in range(STEPS):
        x, y = batch()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        seen.append(loss.detach())
        optimizer.step()
    return seen


def with_clipping(model: nn.Module, batch: Callable[[], tuple[Tensor, Tensor]]) -> Trace:
    """Gradients clipped by their norm between backward and step."""
    optimizer, seen = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), []
    for _ in range(STEPS):
        x, y = batch()
        optimizer.zero_grad(set_to_none=False)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        seen += [loss.detach(), nn.utils.clip_grad_norm_(model.parameters(), 0.5)]
        optimizer.step()
    return seen


def with_accumulation(model: nn.Module, batch: Callable[[], tuple[Tensor, Tensor]]) -> Trace:
    """Three backward calls to one step."""
    optimizer, seen = torch.optim.RMSprop(model.parameters(), 1e-3), []
    for i in range(3 * STEPS // 2):
        x, y = batch()
        loss = F.cross_entropy(model(x), y) / 3
        loss.backward()
        seen.append(loss.detach())
        if i % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    return seen


def with_penalty(model: nn.Module, batch: Callable[[], tuple[Tensor, Tensor]]) -> Trace:
    """A gradient penalty: a backward through a backward."""
    optimizer, seen = torch.optim.SGD(model.parameters(), 0.05), []
    for _ in range(STEPS // 2):
        x, y = batch()
        x.requires_grad_(True)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + gradient.square().sum()).backward()
        seen.append(loss.detach())
        optimizer.step()
    return seen


MODELS = [
    pytest.param(ConvNet, images, id="cnn"),
    pytest.param(Attention, sequences, id="transformer-by-hand"),
    pytest.param(Encoder, sequences, id="transformer-encoder-layer"),
    pytest.param(Recurrent, sequences, id="lstm"),
]


def both(train: Callable[..., Trace], *make: Callable[[], nn.Module], **options: Any) -> tuple[Trace, Trace]:
    """The whole trace of a run without a watch, and of the same run with one."""
    traces = []
    for watched in (False, True):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        models = [build() for build in make]
        with nantrace.watch(*models, **options) if watched else nullcontext():
            trace = train(*models)
        traces.append([*trace, *state(*models), *streams()])
    return traces[0], traces[1]


def assert_identical(plain: Trace, watched: Trace) -> None:
    assert len(plain) == len(watched)
    for before, after in zip(plain, watched, strict=True):
        if isinstance(before, Tensor):
            assert before.dtype == after.dtype
            assert torch.equal(before, after)
        else:
            assert before == after


@pytest.mark.parametrize(("model", "batch"), MODELS)
@pytest.mark.parametrize("train", [plainly, with_clipping, with_accumulation])
def test_a_watched_run_is_bit_identical(train: Any, model: Any, batch: Any) -> None:
    """Losses, gradients, parameters, buffers and random streams do not know of the watch."""
    plain, watched = both(lambda net: train(net, batch), model)

    assert_identical(plain, watched)


@pytest.mark.parametrize(("model", "batch"), MODELS[:3])  # torch has no LSTM in bfloat16 on every CPU
def test_a_watched_run_under_autocast_is_bit_identical(model: Any, batch: Any) -> None:
    """Nor does the choice of dtypes that autocast makes."""
    plain, watched = both(lambda net: with_autocast(net, batch), model)

    assert_identical(plain, watched)


def test_a_gradient_penalty_is_bit_identical() -> None:
    """A double backward does not know of the watch either."""
    plain, watched = both(lambda net: with_penalty(net, sequences), Attention)

    assert_identical(plain, watched)


def test_level_loss_is_bit_identical() -> None:
    """Nor does a run at the lowest level."""
    plain, watched = both(lambda net: plainly(net, images), ConvNet, level="loss")

    assert_identical(plain, watched)


def test_two_models_with_two_optimizers_are_bit_identical() -> None:
    """A GAN: two models, two optimizers, the discriminator called twice per step."""

    def generator() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 6))

    def discriminator() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2, inplace=True), nn.Dropout(0.3), nn.Linear(8, 1))

    def train(g: nn.Module, d: nn.Module) -> Trace:
        of_g, of_d = torch.optim.Adam(g.parameters(), 1e-3), torch.optim.Adam(d.parameters(), 1e-3)
        seen = []
        for _ in range(STEPS):
            real, fake = torch.randn(5, 6), g(torch.randn(5, 4))
            of_d.zero_grad()
            loss_d = F.softplus(-d(real)).mean() + F.softplus(d(fake.detach())).mean()
            loss_d.backward()
            of_d.step()
            of_g.zero_grad()
            loss_g = F.softplus(-d(fake)).mean()
            loss_g.backward()
            of_g.step()
            seen += [loss_d.detach(), loss_g.detach()]
        return seen

    plain, watched = both(train, generator, discriminator)

    assert_identical(plain, watched)


def test_random_numbers_of_the_users_own_are_the_same_after_an_anomaly() -> None:
    """A replay puts every random stream back to where the run had left it."""

    def train(net: nn.Module) -> Trace:
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        loss = torch.log(net(torch.randn(4, 1, 8, 8)).sum() * 0)
        loss.backward()
        optimizer.step()
        return [random.random(), np.random.rand(), torch.rand(1)]

    with pytest.warns(nantrace.NumericalAnomalyWarning, match="log"):
        plain, watched = both(train, ConvNet, on_anomaly="warn")

    assert plain[:2] == watched[:2]
    assert torch.equal(plain[2], watched[2])
