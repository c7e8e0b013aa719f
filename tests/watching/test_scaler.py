"""GradScaler: infinite scaled gradients and skipped steps are how it works, a bad loss is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import nantrace

from ..builders import Mlp, Program, caught, sgd


def scaled_step(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def test_skipped_steps_are_silent_and_counted() -> None:
    """Scaled gradients that overflow make the scaler skip: no anomaly, and each skip is a step."""
    model = Mlp()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=1e38, growth_interval=1000)
    before = [p.detach().clone() for p in model.parameters()]
    with nantrace.watch(model) as tracer:
        for _ in range(4):
            scaled_step(scaler, optimizer, model(torch.randn(5, 4)).square().sum() * 1e3)
        steps = tracer.step

    assert tracer.reports == []
    assert steps == 4
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_run_that_recovers_from_a_high_scale_is_bit_identical() -> None:
    """The scale comes down by itself and the run trains on, as it would without the watch."""
    found = []
    for watched in (False, True):
        torch.manual_seed(3)
        model = Mlp()
        optimizer, scaler = sgd(model, 0.01), torch.amp.GradScaler("cpu", init_scale=2.0**126)
        tracer = nantrace.watch(model)
        if watched:
            tracer.start()
        for _ in range(10):
            scaled_step(scaler, optimizer, model(torch.randn(5, 4)).square().sum() * 1e3)
        tracer.stop()
        found.append([*[p.detach().clone() for p in model.parameters()], torch.tensor(scaler.get_scale())])

    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][-1] < 2.0**126


def test_a_bad_loss_raises_although_the_scaler_would_skip() -> None:
    """An unscaled loss that is not finite is a fault, not a matter of scale."""
    model = Program(lambda w, x: torch.log(w * x), [1.0])
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=4.0)

    def run() -> None:
        with nantrace.watch(model):
            for step in range(4):
                scaled_step(scaler, optimizer, model(torch.tensor(0.0 if step == 2 else 1.0)).sum())

    report = caught(run)

    assert report.step == 2
    assert (report.origin.op, report.phase) == ("log", "forward")
    assert report.snapshot.symptom.value == -math.inf
    assert "GradScaler" in report.snapshot.symptom.where


def test_a_loss_that_only_the_scale_made_infinite_is_silent() -> None:
    """A finite loss whose scaled twin overflows is the scaler's business."""
    model = Mlp()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=1e38)
    with nantrace.watch(model) as tracer:
        scaled_step(scaler, optimizer, model(torch.randn(5, 4)).square().sum() + 1e6)
        steps = tracer.step

    assert tracer.reports == []
    assert steps == 1


def test_gradients_that_stay_bad_after_unscaling_and_clipping_are_skipped_in_silence() -> None:
    """unscale_, clipping and step: a skipped step is silent there too."""
    model = Mlp()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=1e38)
    with nantrace.watch(model) as tracer:
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(5, 4)).square().sum() * 1e3).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        steps = tracer.step

    assert tracer.reports == []
    assert steps == 3


@pytest.mark.parametrize("enabled", [True, False])
def test_healthy_steps_are_counted_once(enabled: bool) -> None:
    """A scaler that steps (or is switched off) makes one step per call, not two."""
    model = Mlp()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=4.0, enabled=enabled)
    with nantrace.watch(model) as tracer:
        for _ in range(5):
            scaled_step(scaler, optimizer, model(torch.randn(5, 4)).square().sum())
        steps = tracer.step

    assert tracer.reports == []
    assert steps == 5


def test_a_bad_loss_with_a_disabled_scaler_raises() -> None:
    """A disabled scaler hands everything on, and so does the alarm."""
    model = Mlp()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", enabled=False)

    def run() -> None:
        with nantrace.watch(model):
            scaled_step(scaler, optimizer, torch.sqrt(model(torch.randn(5, 4)).square().sum() * -1))

    assert caught(run).origin.op == "sqrt"
