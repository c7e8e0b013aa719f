"""Small trainings whose learning rate, length, precision and start decide whether they stay finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Step = Callable[[], Tensor]
MakeOptimizer = Callable[..., torch.optim.Optimizer]
Batch = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Training:
    """The models and one training step of them, which gives the loss."""

    models: tuple[nn.Module, ...]
    step: Step


def sgd(lr: float, **options: float) -> MakeOptimizer:
    """Plain SGD, or with momentum."""
    return partial(torch.optim.SGD, lr=lr, **options)


def adam(lr: float, **options: float) -> MakeOptimizer:
    """Adam."""
    return partial(torch.optim.Adam, lr=lr, **options)


def supervised(model: nn.Module, batch: Batch, loss_of: Callable[..., Tensor], optimizer: MakeOptimizer) -> Training:
    """Forward, loss, backward, step."""
    stepper = optimizer(model.parameters())

    def step() -> Tensor:
        x, y = batch()
        stepper.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        stepper.step()
        return loss.detach()

    return Training((model,), step)


def ramped(model: nn.Module, batch: Batch, loss_of: Callable[..., Tensor], optimizer: MakeOptimizer) -> Training:
    """The learning rate is warmed up from a thousandth over 150 steps."""
    stepper = optimizer(model.parameters())
    schedule = torch.optim.lr_scheduler.LinearLR(stepper, 1e-3, 1.0, 150)

    def step() -> Tensor:
        x, y = batch()
        stepper.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        stepper.step()
        schedule.step()
        return loss.detach()

    return Training((model,), step)


def in_half(model: nn.Module, batch: Batch, loss_of: Callable[..., Tensor], optimizer: MakeOptimizer) -> Training:
    """Autocast to float16 with a GradScaler that doubles its scale every 20 steps."""
    stepper = optimizer(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=20)

    def step() -> Tensor:
        x, y = batch()
        stepper.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = loss_of(model(x).float(), y)
        scaler.scale(loss).backward()
        scaler.step(stepper)
        scaler.update()
        return loss.detach()

    return Training((model,), step)


# Data: a fixed teacher, a fresh batch each step


def regression(inputs: int = 8, *, size: float = 1.0, noise: float = 0.05) -> Batch:
    """A linear target of this size."""
    teacher = torch.randn(inputs, 1) * size

    def batch() -> tuple[Tensor, Tensor]:
        x = torch.randn(64, inputs)
        return x, x @ teacher + noise * size * torch.randn(64, 1)

    return batch


def images(classes: int = 4) -> Batch:
    """Class means in 1x8x8 images, with noise."""
    means = torch.randn(classes, 1, 8, 8)

    def batch() -> tuple[Tensor, Tensor]:
        y = torch.randint(classes, (32,))
        return means[y] + 0.5 * torch.randn(32, 1, 8, 8), y

    return batch


def counting(vocabulary: int = 24, length: int = 12) -> Batch:
    """Token sequences that count upwards; the label is the next token."""

    def batch() -> tuple[Tensor, Tensor]:
        start = torch.randint(vocabulary, (16, 1))
        ids = (start + torch.arange(length + 1)) % vocabulary
        return ids[:, :-1], ids[:, 1:]

    return batch


def sequences(length: int, inputs: int = 4) -> Batch:
    """Random sequences; the label is the mean over time."""

    def batch() -> tuple[Tensor, Tensor]:
        x = torch.randn(16, length, inputs)
        return x, x.mean(1)[:, :1]

    return batch


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the positions."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


# Models


def mlp(activation: type[nn.Module] = nn.ReLU, width: int = 32, depth: int = 2) -> nn.Sequential:
    """8 inputs, `depth` hidden layers, one output."""
    layers: list[nn.Module] = [nn.Linear(8, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def convolutional(outputs: int = 4) -> nn.Sequential:
    """Two convolutions with BatchNorm and a linear head."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, outputs),
    )


class LanguageModel(nn.Module):
    """Embedding, two encoder layers, linear head."""

    def __init__(self, vocabulary: int = 24, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, length) -> (batch, length, vocabulary)"""
        return self.head(self.encoder(self.embed(ids)))


class Last(nn.Module):
    """A recurrent layer, and a linear head on its last output."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, inputs) -> (batch, 1)"""
        return self.head(self.layer(x)[0][:, -1])


def recurrent(kind: str, scale: float = 1.0, width: int = 16, inputs: int = 4) -> Last:
    """ "relu", "tanh" or "lstm", its recurrent weights an orthogonal matrix (or four) times `scale`."""
    layer: nn.RNNBase
    if kind == "lstm":
        layer = nn.LSTM(inputs, width, batch_first=True)
    else:
        layer = nn.RNN(inputs, width, nonlinearity=kind, batch_first=True)
    with torch.no_grad():
        for block in layer.weight_hh_l0.split(width):
            block.copy_(nn.init.orthogonal_(torch.empty(width, width)) * scale)
    return Last(layer)


def adversarial(
    generator: MakeOptimizer, critic: MakeOptimizer, loss_of: Callable[[Tensor, Tensor], Tensor]
) -> Training:
    """A generator and a critic in turns; `loss_of` is the critic's loss of its outputs on real and made samples."""
    maker, judge = mlp(), mlp()
    maker[-1] = nn.Linear(32, 8)
    make_step, judge_step = generator(maker.parameters()), critic(judge.parameters())

    def step() -> Tensor:
        judge_step.zero_grad()
        loss = loss_of(judge(torch.randn(32, 8) + 2), judge(maker(torch.randn(32, 8)).detach()))
        loss.backward()
        judge_step.step()
        make_step.zero_grad()
        (-judge(maker(torch.randn(32, 8)))).mean().backward()
        make_step.step()
        return loss.detach()

    return Training((maker, judge), step)


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """A critic's loss that is bounded below."""
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def wasserstein(real: Tensor, made: Tensor) -> Tensor:
    """A critic's loss without a bound: nothing holds the critic's weights."""
    return made.mean() - real.mean()
