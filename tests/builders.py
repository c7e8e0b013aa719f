"""Small models and training steps that the tests share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace


def kept(expression: str) -> str:
    """A sub-expression as a report knows it: Python 3.10 keeps no columns."""
    return expression if sys.version_info >= (3, 11) else ""


def notes_of(error: BaseException) -> tuple[str, ...]:
    """What was added to an exception; on Python 3.10, which has no notes, the report that is printed instead."""
    if sys.version_info >= (3, 11):
        return tuple(error.__notes__)
    report = nantrace.report_of(error)
    assert report is not None
    return (report.text(),)


class Program(nn.Module):
    """A module whose forward is a function of its one parameter `w` (and of what it is called with)."""

    def __init__(self, function: Callable[..., Any], w: Any) -> None:
        super().__init__()
        self.function = function
        self.w = nn.Parameter(w if isinstance(w, Tensor) else torch.tensor(w))

    def forward(self, *args: Any) -> Any:
        return self.function(self.w, *args)


class Mlp(nn.Module):
    """Two linear layers; `fault` is called with the hidden activations and what it returns goes on."""

    def __init__(self, fault: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        if self.fault is not None:
            hidden = self.fault(hidden)
        return self.second(hidden)


class ConvNet(nn.Module):
    """Convolution, BatchNorm, in-place ReLU, dropout, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Dropout(0.2),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Attention(nn.Module):
    """A transformer block written by hand: causal attention with a -inf mask, dropout, layer norms."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ff = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, t, w = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / (w // self.heads) ** 0.5
        hidden = torch.ones(t, t, dtype=torch.bool).triu(1)
        weights = F.dropout(scores.masked_fill(hidden, float("-inf")).softmax(-1), 0.1, self.training)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, t, w))
        return self.head((x + self.ff(self.norm2(x))).mean(1))


class Encoder(nn.Module):
    """`nn.TransformerEncoderLayer` and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class Recurrent(nn.Module):
    """An LSTM of two layers with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 12, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def sgd(model: nn.Module, lr: float = 0.1, **options: Any) -> torch.optim.SGD:
    """Plain SGD over a model."""
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def bad_when(step: int, now: Callable[[], int]) -> Callable[[Tensor], Tensor]:
    """A fault that takes the logarithm of a negative number in one step alone."""

    def fault(hidden: Tensor) -> Tensor:
        return torch.log(-1 - hidden) if now() == step else hidden

    return fault


def caught(run: Callable[[], object]) -> nantrace.Report:
    """The report of the anomaly that `run` ends in."""
    with pytest.raises(nantrace.NumericalAnomaly) as raised:
        run()
    return raised.value.report


def report_on(
    forward: Callable[..., Any],
    w: Any,
    *args: Any,
    loss: Callable[[Any], Tensor] = torch.sum,
    **options: Any,
) -> nantrace.Report:
    """The report of one training step of a `Program`: forward, loss, backward, SGD."""
    model = Program(forward, w)
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model, **options):
            loss(model(*args)).backward()
            optimizer.step()

    return caught(run)


def stays_silent(
    forward: Callable[..., Any], w: Any, *args: Any, loss: Callable[[Any], Tensor] = torch.sum
) -> nantrace.Tracer:
    """Run the same step of a `Program` that must not raise; gives the tracer."""
    model = Program(forward, w)
    optimizer = sgd(model)
    with nantrace.watch(model) as tracer:
        loss(model(*args)).backward()
        optimizer.step()
    return tracer


def operand(report: nantrace.Report, name: str) -> Any:
    """The operand of that name at the failing element."""
    assert report.origin is not None
    assert report.origin.example is not None
    found = report.origin.example.operand(name)
    assert found is not None, f"no operand {name!r}, only {[o.name for o in report.origin.example.operands]}"
    return found
