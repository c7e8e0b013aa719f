"""The models that overhead is measured on: small real training steps with a loss and an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

Step = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Work:
    """A model and one training step of it."""

    name: str
    model: nn.Module
    step: Step


class Transformer(nn.Module):
    """A causal language model of `layers` encoder layers."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        block = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, layers)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, length) int64 -> (batch, length, vocabulary)"""
        return self.head(self.encoder(self.embed(ids)))


class ResidualBlock(nn.Module):
    """Two convolutions with BatchNorm and in-place ReLU around an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, width, h, w) -> the same"""
        return self.act(self.body(x) + x)


class Cells(nn.Module):
    """An LSTM cell called once per time step: hundreds of module calls."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.cell, self.head, self.length = nn.LSTMCell(width, width), nn.Linear(width, 1), length

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, width) -> (batch, 1)"""
        h = torch.zeros(x.shape[0], x.shape[2])
        c = torch.zeros_like(h)
        for t in range(self.length):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


def transformer(name: str, vocabulary: int, width: int, layers: int, heads: int, batch: int, length: int) -> Work:
    """A Transformer step with AdamW and gradient clipping."""
    torch.manual_seed(0)
    model = Transformer(vocabulary, width, layers, heads)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, vocabulary, (batch, length))

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Work(name, model, step)


def residual_network() -> Work:
    """A ResNet-style step with SGD."""
    torch.manual_seed(0)
    width = 32
    blocks = [ResidualBlock(width) for _ in range(4)]
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )
    return _regression("ResNet-style CNN", model, torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,)))


def tiny_network() -> Work:
    """A step so small that only the fixed cost shows."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 24 * 24, 10)
    )
    return _regression("tiny CNN", model, torch.randn(4, 1, 28, 28), torch.randint(0, 10, (4,)))


def cells() -> Work:
    """LSTM cells over 200 time steps."""
    torch.manual_seed(0)
    model = Cells(32, 200)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x, y = torch.randn(8, 200, 32), torch.randn(8, 1)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Work("LSTM cells x 200", model, step)


def _regression(name: str, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Work:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Work(name, model, step)


def all_works() -> list[Callable[[], Work]]:
    """Every workload, made when it is asked for."""
    return [
        lambda: transformer("small Transformer", 200, 64, 4, 4, 4, 17),
        lambda: transformer("medium Transformer", 1000, 256, 4, 8, 8, 65),
        residual_network,
        tiny_network,
        cells,
    ]
