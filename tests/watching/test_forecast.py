"""`forecast=True`: a warning before values overflow, and nothing where they do not."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nantrace

from ..builders import Mlp, Program, sgd


def regression(
    lr: float, steps: int = 150, model: nn.Module | None = None, **options: Any
) -> tuple[nantrace.Tracer, list[nantrace.ForecastWarning], int | None]:
    """Least squares with SGD, until the anomaly; the tracer, the warnings, and the anomaly's step."""
    model = model or nn.Linear(8, 1)
    optimizer, teacher, died = sgd(model, lr), torch.randn(8, 1), None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        tracer = nantrace.watch(model, **options)
        try:
            with tracer:
                for _ in range(steps):
                    x = torch.randn(64, 8)
                    optimizer.zero_grad()
                    (model(x) - x @ teacher).square().mean().backward()
                    optimizer.step()
        except nantrace.NumericalAnomaly as anomaly:
            died = anomaly.report.step
    return tracer, [w.message for w in seen if isinstance(w.message, nantrace.ForecastWarning)], died


def test_a_divergence_is_said_once_and_ahead() -> None:
    """One warning, long before the anomaly, with what grows and when it will overflow."""
    _, said, died = regression(1.5, forecast=True)

    (warning,) = said
    first = warning.forecasts[0]
    assert died is not None
    assert first.step + 10 < died
    assert first.step + first.steps_left == pytest.approx(died, rel=0.3)
    assert (first.kind, first.module, first.dtype) == ("loss", None, "float32")
    assert first.limit == torch.finfo(torch.float32).max
    assert str(warning).startswith(f"the loss will overflow float32 in about {first.steps_left} steps: at step ")
    assert "; float32 ends at 3.4e+38" in str(warning)


def test_each_series_is_kept_once() -> None:
    """What else grows is in `tracer.forecasts`, each series once, in the order of the steps."""
    tracer, said, _ = regression(1.5, forecast=True)

    series = [(forecast.kind, forecast.module) for forecast in tracer.forecasts]
    assert len(series) == len(set(series))
    assert {("loss", None), ("gradient norm", None), ("forward", ""), ("gradient", "")} == set(series)
    assert [forecast.step for forecast in tracer.forecasts] == sorted(f.step for f in tracer.forecasts)
    assert tracer.forecasts[: len(said[0].forecasts)] == list(said[0].forecasts)


@pytest.mark.parametrize("lr", [0.01, 0.3])
def test_a_healthy_run_is_silent(lr: float) -> None:
    """No forecast where the loss falls."""
    tracer, said, died = regression(lr, forecast=True)

    assert (tracer.forecasts, said, died) == ([], [], None)


def test_it_is_off_unless_asked_for() -> None:
    """The same divergence without the option: no warning before the anomaly."""
    tracer, said, died = regression(1.5)

    assert died is not None
    assert (tracer.forecasts, said) == ([], [])


def test_without_module_statistics_loss_and_norm_are_followed() -> None:
    """`level="loss"` has two series to forecast from."""
    tracer, said, _ = regression(1.5, forecast=True, level="loss")

    assert len(said) == 1
    assert {forecast.kind for forecast in tracer.forecasts} == {"loss", "gradient norm"}


def diverge(model: nn.Module, steps: int = 15) -> nantrace.Tracer:
    """A few steps with a learning rate that is far too high, none of which overflows yet."""
    optimizer = sgd(model, 2.0)
    with nantrace.watch(model, forecast=True) as tracer:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(64, 8)).square().mean().backward()
            optimizer.step()
    return tracer


def test_the_warning_names_the_users_file() -> None:
    """It is shown at a line outside nantrace and torch."""
    with pytest.warns(nantrace.ForecastWarning) as seen:
        diverge(nn.Linear(8, 1))

    assert [Path(warning.filename).name for warning in seen] == [Path(__file__).name]


def test_a_warning_that_is_an_error_stops_between_two_steps() -> None:
    """With warnings as errors it comes out of the next call of the model, and the watch is as it was."""
    model = nn.Linear(8, 1)
    optimizer = sgd(model, 2.0)
    stopped = 0
    with nantrace.watch(model, forecast=True) as tracer:
        for _ in range(15):
            try:
                out = model(torch.randn(64, 8))
            except nantrace.ForecastWarning:
                stopped += 1
                continue
            optimizer.zero_grad()
            out.square().mean().backward()
            optimizer.step()
        steps = [record.step for record in tracer.history.steps]

    assert stopped == 1
    assert steps == list(range(14))


def grows(step: int, factor: float) -> Tensor:
    return torch.full((4, 4), factor**step)


def train_on(model: nn.Module, factor: float, steps: int, **options: Any) -> nantrace.Tracer:
    """Steps that change nothing, on inputs that grow; the loss stays as it is."""
    optimizer = sgd(model, 0.0)
    with warnings.catch_warnings(), nantrace.watch(model, forecast=True, **options) as tracer:
        warnings.simplefilter("ignore", nantrace.ForecastWarning)
        for step in range(steps):
            optimizer.zero_grad()
            out = model(grows(step, factor))
            (out * 0 + model.get_parameter("w")).float().mean().backward()
            optimizer.step()
    return tracer


def test_an_output_in_half_precision_ends_sooner() -> None:
    """The dtype of the output counts, and the estimate is the one of the series."""
    tracer = train_on(Program(lambda w, x: (w * x).half(), 1.0), 1.2, 55)

    (forecast,) = tracer.forecasts
    assert (forecast.kind, forecast.module, forecast.dtype, forecast.limit) == ("forward", "", "float16", 65504.0)
    assert forecast.factor == pytest.approx(1.2, rel=0.01)
    assert forecast.absmax == pytest.approx(1.2**forecast.step, rel=0.01)
    assert forecast.step + forecast.steps_left == pytest.approx(math.log(65504, 1.2), abs=3)
    assert str(forecast).startswith("the output of the model will overflow float16 in about ")


def test_the_same_values_in_float32_are_no_forecast() -> None:
    """What nearly leaves float16 is nothing to float32."""
    assert train_on(Program(lambda w, x: w * x, 1.0), 1.2, 55).forecasts == []


class Several(nn.Module):
    """More outputs than the table begins with, one of which grows."""

    def __init__(self, count: int, growing: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))
        self.parts = nn.ModuleList(nn.Identity() for _ in range(count))
        self.growing = growing

    def forward(self, x: Tensor) -> Tensor:
        for number, part in enumerate(self.parts):
            part((self.w * (x if number == self.growing else torch.ones(3))).half())
        self.parts[self.growing](torch.ones(2))  # a second call in the step: the largest one counts
        return self.w * torch.ones(2)


def test_the_module_that_grows_is_named_among_many() -> None:
    """Of two hundred modules, the one whose output grows."""
    tracer = train_on(Several(200, 137), 1.5, 24)

    assert [(forecast.kind, forecast.module) for forecast in tracer.forecasts] == [("forward", "parts.137")]


def test_gradients_under_a_scaler_are_the_scalers_business() -> None:
    """A scale that doubles every step makes gradients grow until one step is skipped: that is how it works."""
    model = Mlp()
    optimizer = sgd(model, 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=1)
    with nantrace.watch(model, forecast=True) as tracer:
        for _ in range(130):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(5, 4)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        gradients = [event.absmax for event in tracer.history if event.kind == "gradient"]

    assert max(gradients) > 1e36  # the scale has been at the end
    assert tracer.forecasts == []


def diverge_by_hand(model: nn.Module) -> None:
    """The same without an optimizer."""
    with nantrace.watch(model, forecast=True):
        for _ in range(15):
            model(torch.randn(64, 8)).square().mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 2.0 * parameter.grad
                    parameter.grad = None


def test_hand_written_updates_are_followed() -> None:
    """A loop without an optimizer diverges as one with it."""
    with pytest.warns(nantrace.ForecastWarning, match="will overflow float32"):
        diverge_by_hand(nn.Linear(8, 1))


def test_a_second_watch_begins_anew() -> None:
    """What the first watch saw says nothing about the second one's steps."""
    model = nn.Linear(8, 1)
    tracer = nantrace.watch(model, forecast=True)
    for _ in range(2):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            with tracer:
                optimizer = sgd(model, 2.0)
                nn.init.ones_(model.weight)
                for _ in range(15):
                    optimizer.zero_grad()
                    model(torch.randn(64, 8)).square().mean().backward()
                    optimizer.step()

        assert [type(warning.message) for warning in seen] == [nantrace.ForecastWarning]


def test_watching_with_a_forecast_changes_nothing() -> None:
    """Weights are equal bit for bit, and the random stream is where it was."""
    found = []
    for options in ({}, {"forecast": True}):
        torch.manual_seed(5)
        model = nn.Linear(8, 1)
        regression(1.2, steps=60, model=model, **options)
        found.append([*(p.detach().clone() for p in model.parameters()), torch.get_rng_state()])

    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
