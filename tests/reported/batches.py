"""Failures whose value is made by the training loop itself, before or after the model is called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cases import Training, descend, failure

PREPARED = ("loss", "input")


@failure(
    step=1,
    phase=PREPARED,
    op="div",
    module=None,
    line="(image - image.amin((1, 2, 3), keepdim=True)) / span",
    cause=("zero-division", "bad-input"),
    remedy=("eps", "clamp"),
)
def image_of_one_colour() -> Training:
    """ZScore Normalization Failure When Using Constant Value Number Feature, ludwig-ai/ludwig#2543: large images."""
    model = nn.Sequential(nn.Conv2d(3, 2, 3, stride=8), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 3, 48, 48))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        image = torch.rand(4, 3, 48, 48)
        if i == 1:
            image[2] = 0.5
        span = image.amax((1, 2, 3), keepdim=True) - image.amin((1, 2, 3), keepdim=True)
        image = (image - image.amin((1, 2, 3), keepdim=True)) / span
        return descend(optimizer, F.cross_entropy(model(2 * image - 1), torch.tensor([0, 1, 0, 1])))

    return Training((model,), step)


@failure(
    step=2,
    phase=PREPARED,
    op="log",
    module=None,
    line="teacher.log()",
    cause=("log-domain", "bad-label"),
    remedy=("clamp", "eps", "log_softmax"),
)
def teacher_that_is_certain() -> Training:
    """nan loss of the distillation, zero probabilities of a frozen teacher: horenbergerb/BernoulliDiffusion#15."""
    model, frozen = nn.Linear(3, 4), nn.Linear(3, 4).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        x = torch.randn(5, 3) * (2000.0 if i == 2 else 1.0)
        teacher = frozen(x).softmax(1)
        student = model(x).log_softmax(1)
        return descend(optimizer, (teacher.log() - student).square().mean())

    return Training((model,), step)


@failure(
    step=1,
    phase=PREPARED,
    op=("pow", "rsqrt"),
    module=None,
    line="adjacency.sum(1).pow(-0.5)",
    cause=("zero-division", "bad-input"),
    remedy=("eps", "clamp"),
)
def adjacency_with_an_isolated_vertex() -> Training:
    """normalize_adj emits warnings on isolated vertices, stellargraph/stellargraph#1015: 0 ** -0.5, times 0."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        adjacency = torch.ones(4, 4)
        if i == 1:
            adjacency[3] = adjacency[:, 3] = 0.0
        scale = adjacency.sum(1).pow(-0.5)
        adjacency = scale[:, None] * adjacency * scale
        return descend(optimizer, (adjacency @ model(torch.randn(4, 3))).square().mean())

    return Training((model,), step)


@failure(
    step=2,
    phase="loss",
    op="mean",
    module=None,
    line="per_token[mask].mean()",
    cause="empty-reduction",
    remedy=("empty", "skip", "guard"),
)
def response_that_was_cut_off() -> Training:
    """Use masked mean in advantage batch normalization, NovaSky-AI/SkyRL#1782: no token of the response is left."""
    model = nn.Linear(3, 6)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        per_token = -model(torch.randn(4, 3)).log_softmax(1)[:, 0]
        mask = torch.tensor([False] * 4) if i == 2 else torch.tensor([True, True, False, False])
        return descend(optimizer, per_token[mask].mean())

    return Training((model,), step)


@failure(
    step=1,
    phase="loss",
    op="div",
    module=None,
    line="critic_gap / returns.var()",
    cause=("zero-division",),
    remedy=("eps", "clamp"),
)
def explained_variance_of_equal_returns() -> Training:
    """Fix TRPO advantage standardization when std is 0, hill-a/stable-baselines#722: no reward in the whole batch."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        returns = torch.randn(6, 1) if i != 1 else torch.zeros(6, 1)
        critic_gap = (model(torch.randn(6, 3)) - returns).square().mean()
        return descend(optimizer, critic_gap / returns.var())

    return Training((model,), step)


class Memory:
    """A replay buffer; entries that were never stored are what torch.empty found."""

    def __init__(self) -> None:
        self.states = torch.full((8, 3), float("nan"))
        self.filled = 0

    def store(self, states: Tensor) -> None:
        self.states[self.filled : self.filled + len(states)] = states
        self.filled = min(8, self.filled + len(states))

    def sample(self, rows: Tensor) -> Tensor:
        return self.states[rows]


@failure(
    step=2,
    phase=("input", "loss"),
    op=("addmm", "index"),
    module=("0", None),
    line=("model(memory.sample(rows))", "self.states[rows]"),
    cause=("bad-input", "indexing"),
    remedy=("find the bad samples", "index", "range"),
)
def replay_of_an_unfilled_row() -> Training:
    """nan or inf in step(), m-abr/FCPCodebase#31, and its kin: a replay buffer is read beyond what it holds."""
    model, memory = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), Memory()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        memory.store(torch.randn(2, 3))
        rows = torch.tensor([0, 1] if i != 2 else [0, 6])
        return descend(optimizer, model(memory.sample(rows)).square().mean())

    return Training((model,), step)


class Scale:
    """A hand-written loss scaler that divides by how often a class was seen."""

    def __init__(self) -> None:
        self.counts = torch.zeros(3)

    def __call__(self, labels: Tensor) -> Tensor:
        self.counts += torch.bincount(labels, minlength=3)
        return self.counts.sum() / self.counts


@failure(
    step=0,
    phase=PREPARED,
    op="div",
    module=None,
    line="self.counts.sum() / self.counts",
    cause=("zero-division", "bad-label"),
    remedy=("eps", "clamp", "empty"),
)
def weight_of_a_class_without_samples() -> Training:
    """Error: Divided by 0, zhutmost/lsq-net#17, in class weights: inf for a class that was not seen, times 0."""
    model, scale = nn.Linear(4, 3), Scale()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        labels = torch.tensor([0, 1, 0, 1])
        weight = scale(labels)
        target = F.one_hot(labels, 3).float()
        log_prob = model(torch.randn(4, 4)).log_softmax(1)
        return descend(optimizer, -(weight * target * log_prob).sum(1).mean())

    return Training((model,), step)


@failure(
    step=2,
    phase=PREPARED,
    op="reciprocal",
    module=None,
    line="1.0 / (1 - momentum**rounds)",
    cause=("zero-division", "bad-label"),
    remedy=("eps", "clamp"),
)
def bias_correction_before_the_first_round() -> Training:
    """missing validation causes silent division by zero, tinygrad/tinygrad#15724: a correction by 1 - 1 = 0."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    kept: dict[str, Any] = {"mean": torch.zeros(1)}

    def step(i: int) -> Tensor:
        momentum, rounds = torch.tensor(0.9 if i != 2 else 1.0), torch.tensor(i + 1.0)
        out = model(torch.randn(5, 3))
        kept["mean"] = momentum * kept["mean"] + (1 - momentum) * out.detach().mean(0)
        correction = 1.0 / (1 - momentum**rounds)
        return descend(optimizer, (out - kept["mean"] * correction).square().mean())

    return Training((model,), step)
