"""GradScaler: infinite scaled gradients and skipped steps are how it works, a bad loss is not."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

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


# What is more than a scale that is too large


class Narrow(nn.Module):
    """Its second layer's gradient overflows float16 once the scale is past a bound that no healthy scale reaches."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return Overflowing.apply(self.second(torch.relu(self.first(x))), self.factor)


class Overflowing(torch.autograd.Function):
    """The identity, with a derivative that is too large: scaled gradients become infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * ctx.factor * ctx.factor, None


def train_narrow(factors: list[float], **scaler_options: Any) -> tuple[nantrace.Tracer, list[warnings.WarningMessage]]:
    """Steps of a `Narrow` model under a scaler, one per factor; 1e30 overflows."""
    model = Narrow(1.0)
    optimizer = sgd(model, 1e-3)
    scaler = torch.amp.GradScaler("cpu", **scaler_options)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with nantrace.watch(model) as tracer:
            for factor in factors:
                model.factor = factor
                scaled_step(scaler, optimizer, model(torch.ones(5, 4)).mean())
    return tracer, [warning for warning in seen if warning.category is nantrace.NumericalAnomalyWarning]


def test_a_long_streak_of_skips_is_one_warning_that_names_the_module() -> None:
    """Sixteen skips in a row have divided the scale by all that torch's initial scale is; it is said once."""
    tracer, seen = train_narrow([1e30] * 40, init_scale=2.0**60)

    assert len(seen) == 1
    text = str(seen[0].message)
    assert text.startswith("GradScaler has skipped 16 steps in a row, its scale is 1.759e+13 now")
    assert "the gradient of second.weight is the first that is not finite" in text
    report = seen[0].message.report
    assert (report.step, report.phase) == (15, "backward")
    assert report.origin.op == "Overflowing"
    assert tracer.reports == []


def test_a_scale_below_its_floor_is_a_warning() -> None:
    """torch's documentation: below 1, something is likely wrong."""
    _, seen = train_narrow([1e30] * 6, init_scale=4.0)

    assert [str(warning.message).partition(":")[0] for warning in seen] == [
        "GradScaler has skipped 3 steps in a row, its scale is 0.5 now"
    ]


def test_each_streak_has_its_own_warning() -> None:
    """A healthy step ends a streak."""
    _, seen = train_narrow([1e30] * 18 + [1.0] + [1e30] * 18, init_scale=2.0**100)

    assert [warning.message.report.step for warning in seen] == [15, 34]


def test_short_streaks_are_silent() -> None:
    """The start of a run and every growth of the scale cost a few skips."""
    _, seen = train_narrow([1e30] * 15 + [1.0] + [1e30] * 15 + [1.0], init_scale=2.0**100)

    assert seen == []


def test_a_fused_optimizer_that_skips_inside_is_counted() -> None:
    """GradScaler calls a fused optimizer's step in any case; its kernel does nothing then."""
    model = Narrow(1e30)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    with warnings.catch_warnings(record=True) as seen, nantrace.watch(model) as tracer:
        warnings.simplefilter("always")
        for _ in range(20):
            scaled_step(scaler, optimizer, model(torch.ones(5, 4)).mean())
        steps = tracer.step

    assert ["16 steps in a row" in str(warning.message) for warning in seen] == [True]
    assert steps == 20


@pytest.mark.filterwarnings("ignore::nantrace.NumericalAnomalyWarning")
def test_the_warning_is_dumped(tmp_path: Path) -> None:
    """With a folder for dumps, the streak leaves one."""
    model = Narrow(1e30)
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=4.0)
    with nantrace.watch(model, dump_dir=tmp_path) as tracer:
        for _ in range(5):
            scaled_step(scaler, optimizer, model(torch.ones(5, 4)).mean())

    assert len(tracer.dumps) == 1
    assert nantrace.load(tracer.dumps[0]).phase == "backward"


def test_a_nan_in_forward_is_not_hidden_by_the_skip() -> None:
    """The loss is finite, as a mask drops the NaN; its gradient is NaN, and the scaler would skip for ever."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))
            self.log = Logarithm()

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, self.log(self.w * x), torch.zeros(()))

    class Logarithm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(torch.log(x))

    model = Inner()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=4.0)

    def run() -> None:
        with nantrace.watch(model):
            for step in range(4):
                x = torch.tensor([2.0, -1.0 if step == 2 else 3.0])
                scaled_step(scaler, optimizer, model(x).sum())

    report = caught(run)

    assert (report.step, report.phase, report.origin.op, report.origin.module) == (2, "forward", "log", "log")
    assert "GradScaler skipped the step of SGD" in report.snapshot.symptom.where


def test_a_nan_in_forward_that_the_gradients_do_not_come_from_is_silent() -> None:
    """A placeholder in a module's output, and a scale that is too large at the same time: the skip is expected."""

    class Placeholder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full_like(x, float("nan"))

    class Both(Narrow):
        def __init__(self) -> None:
            super().__init__(1e30)
            self.placeholder = Placeholder()

        def forward(self, x: Tensor) -> Tensor:
            self.placeholder(x)
            return super().forward(x)

    model = Both()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=2.0**60)
    with nantrace.watch(model) as tracer:
        for _ in range(3):
            scaled_step(scaler, optimizer, model(torch.ones(5, 4)).mean())

    assert tracer.reports == []
