"""Small training programs that diverge: at a learning rate that is too high, through time, or by one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

Loss = Callable[[nn.Module, int], Tensor]


@dataclass(frozen=True)
class Training:
    """A model, its loss in each step, and its optimizer; runs the same each time."""

    make: Callable[[], nn.Module]
    loss: Loss
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    steps: int = 60
    max_norm: float | None = None

    def run(self) -> list[float]:
        """Train, and return the losses."""
        torch.manual_seed(0)
        return self.train(self.make())

    def report(self) -> nantrace.Report:
        """Train under a watch that is to raise, and return its report."""
        torch.manual_seed(0)
        model = self.make()
        try:
            with nantrace.watch(model):
                self.train(model)
        except nantrace.NumericalAnomaly as anomaly:
            return anomaly.report
        raise AssertionError("the training stayed finite")

    def train(self, model: nn.Module) -> list[float]:
        """The loop itself."""
        optimizer = self.optimizer(list(model.parameters()))
        losses: list[float] = []
        for step in range(self.steps):
            optimizer.zero_grad()
            loss = self.loss(model, step)
            loss.backward()
            if self.max_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses


def sgd(lr: float, momentum: float = 0.0) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """Plain SGD."""
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def adam(lr: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """Adam."""
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def stable(losses: list[float]) -> bool:
    """Whether the losses stayed finite and ended no higher than they began, noise left aside."""
    return all(isfinite(loss) for loss in losses) and min(losses[-5:]) <= losses[0] <= 1e30


def linear_regression() -> nn.Module:
    """Its loss is quadratic."""
    return nn.Linear(10, 1)


def fit_line(model: nn.Module, step: int) -> Tensor:
    """A batch of noisy targets of a linear function."""
    noise = torch.Generator().manual_seed(step)
    x = torch.randn(32, 10, generator=noise) * 1.5
    return F.mse_loss(model(x), x[:, :1] - 0.5 * x[:, 1:2] + 0.1 * torch.randn(32, 1, generator=noise))


def mlp() -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))


def cnn() -> nn.Module:
    """Two convolutions and a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * 16, 4)),
    )


def classify_images(model: nn.Module, step: int) -> Tensor:
    """A batch of random images with learnable labels."""
    x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(step % 4))
    return F.cross_entropy(model(x), (x.mean((1, 2, 3)) * 20).long().clamp(-2, 1) + 2)


class Transformer(nn.Module):
    """One block of attention and a feed-forward layer, without normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.feed = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
        self.head = nn.Linear(16, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 4
        x = x + scores.softmax(-1) @ self.v(x)
        return self.head(x + self.feed(x))


def next_token(model: nn.Module, step: int) -> Tensor:
    """A batch of sequences whose next token is to be predicted."""
    tokens = torch.randint(0, 20, (16, 12), generator=torch.Generator().manual_seed(step % 4))
    return F.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten())


class Rnn(nn.Module):
    """A recurrent net whose recurrent weights are `gain` times an orthogonal matrix."""

    def __init__(self, gain: float, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.w_h, self.w_x, self.out = nn.Linear(16, 16), nn.Linear(3, 16), nn.Linear(16, 1)
        nn.init.orthogonal_(self.w_h.weight, gain)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 16)
        for step in range(x.shape[1]):
            h = self.activation(self.w_h(h) + self.w_x(x[:, step]))
        return self.out(h)


def add_up(model: nn.Module, step: int) -> Tensor:
    """A batch of sequences whose sum is to be predicted."""
    x = torch.randn(16, 60, 3, generator=torch.Generator().manual_seed(step))
    return F.mse_loss(model(x), x[:, :, 0].sum(1, keepdim=True) / 8)
