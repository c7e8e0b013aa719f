"""Runs a training inside a watch and says how it ended."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch

import nantrace
from nantrace.model import Forecast

from .trainings import Training


@dataclass(frozen=True)
class Ended:
    """How a training ended: with a report, or silent; and what was forecast on the way."""

    report: nantrace.Report | None
    steps: int
    losses: tuple[float, ...]
    finite: bool  # losses and weights
    said: tuple[Forecast, ...]  # the first forecast of each warning
    forecasts: tuple[Forecast, ...]

    @property
    def cause(self) -> str:
        """The cause in the report, "silent" for a finite run without one."""
        if self.report is not None:
            return str(self.report.cause)
        return "silent" if self.finite else "MISSED"

    @property
    def sudden(self) -> int:
        """The steps from the last loss of at most a million to the anomaly: what there was to forecast from."""
        return self.steps - max((step for step, loss in enumerate(self.losses) if abs(loss) <= 1e6), default=0)

    @property
    def blew_up(self) -> bool:
        """Whether the loss passed a million and a thousand times its beginning, be it that the run stayed finite."""
        return not all(abs(loss) <= max(1e6, 1e3 * abs(self.losses[0])) for loss in self.losses)


def run(make: Callable[[], Training], steps: int, seed: int, **options: object) -> Ended:
    """Train for so many steps, or until the anomaly."""
    torch.manual_seed(seed)
    training = make()
    losses: list[float] = []
    report = None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        tracer = nantrace.watch(*training.models, **options)
        try:
            with tracer:
                for _ in range(steps):
                    losses.append(float(training.step()))
        except nantrace.NumericalAnomaly as anomaly:
            report = anomaly.report
    said = [w.message.forecasts[0] for w in seen if isinstance(w.message, nantrace.ForecastWarning)]
    weights = [p for model in training.models for p in model.parameters()]
    finite = all(map(isfinite, losses)) and all(bool(torch.isfinite(p).all()) for p in weights)
    at = len(losses) if report is None else report.step
    return Ended(report, at, tuple(losses), finite, tuple(said), tuple(tracer.forecasts))
