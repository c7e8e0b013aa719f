"""One model with learning rates from healthy to a thousandfold, and recurrent models of growing gain and length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F

from .running import Ended
from .trainings import (
    LanguageModel,
    Training,
    adam,
    convolutional,
    counting,
    images,
    mlp,
    recurrent,
    regression,
    sequences,
    sgd,
    supervised,
    token_loss,
)

FACTORS = (1, 3, 10, 30, 100, 300, 1000, 1_000_000)
LENGTHS = (20, 100, 300)
SCALES = (0.9, 1.0, 1.3, 2.0, 4.0)
# of the causes there are, those that say that the training diverged
DIVERGED = {"learning-rate", "exploding-gradient"}


@dataclass(frozen=True)
class Case:
    """One training of a series."""

    series: str
    setting: str  # the factor on the learning rate, or the gain of the recurrent matrix
    healthy: bool  # must stay silent
    make: Callable[[], Training]

    def verdict(self, ended: Ended) -> str:
        """ "" where the run is told as it should be, else what is wrong."""
        if ended.report is None:
            return "" if ended.finite else "not finite, and no report"
        if self.healthy:
            return "a healthy run was stopped"
        if ended.report.step == 0 and ended.report.phase in ("forward", "loss") and ended.cause == "overflow":
            return ""  # before anything was learned: the start itself leads out of the range
        return "" if ended.cause in DIVERGED else f"told as {ended.cause}"


def _regressor(optimizer: Callable[..., torch.optim.Optimizer]) -> Training:
    return supervised(mlp(), regression(), F.mse_loss, optimizer)


def _language_model(optimizer: Callable[..., torch.optim.Optimizer]) -> Training:
    return supervised(LanguageModel(), counting(), token_loss, optimizer)


def _classifier(optimizer: Callable[..., torch.optim.Optimizer]) -> Training:
    return supervised(convolutional(), images(), F.cross_entropy, optimizer)


def _sequence(kind: str, scale: float, length: int, lr: float) -> Training:
    return supervised(recurrent(kind, scale), sequences(length), F.mse_loss, sgd(lr))


def learning_rates(factors: tuple[int, ...] = FACTORS) -> Iterator[Case]:
    """MLP, Transformer and CNN, with SGD and Adam."""
    for name, build, rate in (
        ("MLP, MSE", _regressor, 0.01),
        ("Transformer", _language_model, 0.05),
        ("CNN", _classifier, 0.02),
    ):
        for factor in factors:
            yield Case(f"{name}, SGD {rate}", f"x {factor:g}", factor == 1, partial(build, sgd(rate * factor)))
        for factor in factors:
            yield Case(f"{name}, Adam 0.001", f"x {factor:g}", factor == 1, partial(build, adam(1e-3 * factor)))


def recurrences(lengths: tuple[int, ...] = LENGTHS, scales: tuple[float, ...] = SCALES) -> Iterator[Case]:
    """ReLU and tanh RNN and LSTM from a recurrent matrix with all singular values at `scale`.

    All are trained gently, and those whose state is bounded with a hundredfold learning rate, too.
    """
    for kind, lr in (("relu", 0.01), ("tanh", 0.01), ("tanh", 1.0), ("lstm", 0.01), ("lstm", 1.0)):
        for length in lengths:
            for scale in scales:
                make = partial(_sequence, kind, scale, length, lr)
                yield Case(f"{kind} RNN of {length}, lr {lr:g}", f"{scale:g}", lr < 1 and scale < 1, make)
