"""The programs that are measured: small real training steps, written as their users write them.

This file is run as if it were a user's own (see `outside`), so it imports nothing of nantrace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Place:
    """Where a program trains, in what floating-point type, and what is done to its model first (`torch.compile`)."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model


class Program:
    """A model, and its training step in two halves."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> None:
        self.model, self.optimizer, self.loss_of = model, optimizer, loss_of

    def gradients(self) -> Tensor:
        """Forward, loss and backward."""
        self.optimizer.zero_grad()
        loss = self.loss_of()
        loss.backward()
        return loss.detach()

    def step(self) -> Tensor:
        """The whole step."""
        loss = self.gradients()
        self.optimizer.step()
        return loss


class Transformer(nn.Module):
    """A language model of encoder layers."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        block = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, layers)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, length) int64 -> (batch, length, vocabulary)"""
        return self.head(self.encoder(self.embed(ids)))


class GPT2Block(nn.Module):
    """Causal attention and an MLP, each behind a layer norm and beside an identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width), nn.Dropout(0.1)
        )
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> the same"""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self._parts(x))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.merge(attended))
        return x + self.mlp(self.norm_2(x))

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.attention(self.norm_1(x)).chunk(3, dim=-1)


class GPT2(nn.Module):
    """The shape of GPT-2 124M: 12 layers of width 768, tied embeddings; random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50257, 768), nn.Embedding(1024, 768)
        self.blocks = nn.Sequential(*(GPT2Block(768, 12) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(768), nn.Linear(768, 50257, bias=False)
        self.head.weight = self.tokens.weight
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, length) int64 -> (batch, length, 50257)"""
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))


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

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, h, w) -> the same"""
        return self.act(self.body(x) + x)


class Cells(nn.Module):
    """An LSTM cell called once per time step: hundreds of module calls."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(width, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> (batch, 1)"""
        h = torch.zeros_like(x[:, 0])
        c = torch.zeros_like(h)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


class Recurrent(nn.Module):
    """One call of nn.LSTM, and a head on its last output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(width, width, batch_first=True), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> (batch, 1)"""
        return self.head(self.lstm(x)[0][:, -1])


class Block(nn.Module):
    """A residual block with layer norm; `fault` says in which pass it makes a NaN, if at all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.fault = ""

    def forward(self, x: Tensor) -> Tensor:
        """(rows, width) -> the same"""
        hidden = self.down(F.gelu(self.up(self.norm(x))))
        if self.fault == "forward":
            return x + torch.log(hidden - hidden.abs() - 1)
        if self.fault == "backward":
            return x + torch.sqrt((hidden - hidden.detach()).square())
        return x + torch.log1p(hidden.square())


class Stack(nn.Module):
    """Blocks one after the other; the one in the middle can be given a fault."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 1)

    @property
    def middle(self) -> Block:
        """The block that fails."""
        block = self.blocks[len(self.blocks) // 2]
        assert isinstance(block, Block)
        return block

    def forward(self, x: Tensor) -> Tensor:
        """(rows, width) -> (rows, 1)"""
        return self.head(self.blocks(x))


def language(place: Place, model: nn.Module, vocabulary: int, batch: int, length: int) -> Program:
    """Next-token prediction with AdamW."""
    model = place.prepare(model.to(place.device, place.dtype))
    ids = torch.randint(0, vocabulary, (batch, length + 1)).to(place.device)

    def loss() -> Tensor:
        return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    return Program(model, torch.optim.AdamW(model.parameters(), lr=1e-4), loss)


def classification(place: Place, model: nn.Module, x: Tensor, classes: int = 10) -> Program:
    """Labels of a batch, with SGD and momentum."""
    model = place.prepare(model.to(place.device, place.dtype))
    x, y = x.to(place.device, place.dtype), torch.randint(0, classes, (x.shape[0],)).to(place.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    return Program(model, optimizer, lambda: F.cross_entropy(model(x), y))


def regression(place: Place, model: nn.Module, x: Tensor) -> Program:
    """One number per row of a batch, with SGD."""
    model = place.prepare(model.to(place.device, place.dtype))
    x, y = x.to(place.device, place.dtype), torch.randn(x.shape[0], 1).to(place.device, place.dtype)
    return Program(model, torch.optim.SGD(model.parameters(), lr=1e-3), lambda: F.mse_loss(model(x), y))


def tiny_mlp(place: Place) -> Program:
    """Two linear layers: nothing is smaller."""
    return classification(place, nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)), torch.randn(16, 32))


def resnet(place: Place) -> Program:
    """Four residual blocks with BatchNorm."""
    blocks = [ResidualBlock(32) for _ in range(4)]
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    return classification(
        place, nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *blocks, *ends), torch.randn(8, 3, 32, 32)
    )


def tiny_cnn(place: Place) -> Program:
    """A step so small that mostly the fixed cost shows."""
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 24 * 24, 10)
    return classification(place, nn.Sequential(*layers), torch.randn(4, 1, 28, 28))


def loss_by_hand(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with label smoothing and a z-loss, written out: many temporaries as large as the logits."""
    shifted = logits - logits.amax(1, keepdim=True)
    weights = shifted.exp()
    total = weights.sum(1, keepdim=True)
    scores = shifted - total.log()
    picked = scores.gather(1, targets[:, None]).mean()
    smooth = scores.mean()
    penalty = (logits.logsumexp(1) ** 2).mean() * 1e-4
    return -(0.9 * picked + 0.1 * smooth) + penalty


def large_logits(place: Place) -> Program:
    """A small body with 8192 classes, and the loss written out."""
    layers = nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 8192)
    model = place.prepare(nn.Sequential(*layers).to(place.device, place.dtype))
    x = torch.randn(4096, 128).to(place.device, place.dtype)
    y = torch.randint(0, 8192, (4096,)).to(place.device)
    return Program(model, torch.optim.SGD(model.parameters(), lr=1e-3), lambda: loss_by_hand(model(x), y))


def gpt2(place: Place) -> Program:
    """GPT-2 124M: 128 tokens on a CPU, 8 x 1024 on a device."""
    return language(place, GPT2(), 50257, *((1, 128) if place.device == "cpu" else (8, 1024)))


MAKERS: dict[str, Callable[[Place], Program]] = {
    "tiny-mlp": tiny_mlp,
    "small-transformer": lambda place: language(place, Transformer(200, 64, 4, 4), 200, 4, 16),
    "medium-transformer": lambda place: language(place, Transformer(1000, 256, 4, 8), 1000, 8, 64),
    "resnet": resnet,
    "tiny-cnn": tiny_cnn,
    "lstm-cells": lambda place: regression(place, Cells(32), torch.randn(8, 200, 32)),
    "lstm": lambda place: regression(place, Recurrent(32), torch.randn(4, 16, 32)),
    "large-logits": large_logits,
    "gpt2": gpt2,
}


def program(name: str, place: Place) -> Program:
    """One of the works, always with the same weights and data."""
    torch.manual_seed(0)
    return MAKERS[name](place)


def stack(blocks: int, rows: int, width: int, place: Place) -> Program:
    """A stack of residual blocks that can be made to fail."""
    torch.manual_seed(0)
    model = place.prepare(Stack(blocks, width).to(place.device, place.dtype))
    x = torch.randn(rows, width).to(place.device, place.dtype)
    return Program(model, torch.optim.Adam(model.parameters(), lr=1e-4), lambda: model(x).square().mean())
