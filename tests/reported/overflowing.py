"""Values that leave the range of their dtype: exponentials, squares in half precision, sums over many layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cases import Training, descend, failure


class EdgeAttention(nn.Module):
    """A softmax over each node's edges, without taking off the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(3, 1)
        nn.init.constant_(self.score.weight, 0.5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        score = self.score(x[edges[0]] * x[edges[1]]).squeeze(1)
        alpha = torch.exp(score)
        total = torch.zeros(len(x)).index_add(0, edges[1], alpha)
        alpha = alpha / (total[edges[1]] + 1e-16)
        return torch.zeros_like(x).index_add(0, edges[1], alpha[:, None] * x[edges[0]])


class Gat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend, self.head = EdgeAttention(), nn.Linear(3, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.head(self.attend(x, edges))


@failure(
    step=2,
    phase="forward",
    op="exp",
    module="attend",
    line="torch.exp(score)",
    cause="overflow",
    remedy=("max", "softmax", "logsumexp"),
)
def edge_softmax_without_maximum() -> Training:
    """scatter softmax output 'nan', pyg-team/pytorch_geometric#53."""
    model = Gat()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])

    def step(i: int) -> Tensor:
        x = torch.rand(4, 3) * (60.0 if i == 2 else 1.0)
        return descend(optimizer, F.cross_entropy(model(x, edges), torch.tensor([0, 1, 0, 1])))

    return Training((model,), step)


class SelectiveScan(nn.Module):
    """A state-space recurrence whose step size was not passed through softplus."""

    def __init__(self) -> None:
        super().__init__()
        self.delta = nn.Linear(3, 3, bias=False)
        self.a_log = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        delta = self.delta(x)
        decay = torch.exp(delta * -torch.exp(self.a_log))
        state, outputs = torch.zeros(x.shape[0], 3), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + delta[:, t] * x[:, t]
            outputs.append(state)
        return torch.stack(outputs, 1)


class Mamba(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mixer, self.head = nn.Linear(2, 3), SelectiveScan(), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixer(self.embed(x)))


@failure(
    step=1,
    phase="forward",
    op="exp",
    module="mixer",
    line="torch.exp(delta * -torch.exp(self.a_log))",
    cause="overflow",
    remedy=("clamp", "scale", "range", "limit"),
)
def scan_without_softplus() -> Training:
    """Values of deltaA are very large, alxndrTL/mamba.py#53: the step size may be negative, its exponential grows."""
    model = Mamba()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)

    def step(i: int) -> Tensor:
        return descend(optimizer, model(torch.randn(2, 5, 2) * (2000.0 if i == 1 else 1.0)).square().mean())

    return Training((model,), step)


@torch.no_grad()
def sinkhorn(scores: Tensor) -> Tensor:
    """Balanced assignments of samples to prototypes."""
    q = torch.exp(scores / 0.05).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True) * len(q)
        q /= q.sum(0, keepdim=True) * q.shape[1]
    return (q * q.shape[1]).T


@failure(
    step=2,
    phase="loss",
    op="exp",
    module=None,
    line="torch.exp(scores / 0.05)",
    cause="overflow",
    remedy=("max", "logsumexp", "normal", "scale"),
)
def assignment_of_unnormalised_features() -> Training:
    """Question about sinkhorn and Nan, facebookresearch/swav#67: features without l2 norm, exp(scores / 0.05)."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)

    def step(i: int) -> Tensor:
        scores = model(torch.randn(6, 4) * (60.0 if i == 2 else 1.0))
        assignment = sinkhorn(scores)
        return descend(optimizer, -(assignment * F.log_softmax(scores, 1)).sum(1).mean())

    return Training((model,), step)


class TaskWeights(nn.Module):
    """A learned log-variance for each task; not watched."""

    def __init__(self) -> None:
        super().__init__()
        self.log_var = nn.Parameter(torch.zeros(2))

    def forward(self, losses: Tensor) -> Tensor:
        return (torch.exp(-self.log_var) * losses + self.log_var).sum()


@failure(
    step=2,
    phase="loss",
    op="exp",
    module=None,
    line="torch.exp(-self.log_var)",
    cause="overflow",
    remedy=("clamp", "limit", "range"),
)
def uncertainty_of_a_solved_task() -> Training:
    """Homoscedastic Loss Function, Hui-Li/multi-task-learning-example-PyTorch#2: a log-variance falls without end."""
    model, weights = nn.Linear(3, 2), TaskWeights()
    optimizer = torch.optim.SGD([*model.parameters(), *weights.parameters()], 1e-3)

    def step(i: int) -> Tensor:
        if i == 2:
            with torch.no_grad():
                weights.log_var[1] = -90.0
        losses = (model(torch.randn(5, 3)) - 1).square().mean(0)
        return descend(optimizer, weights(losses))

    return Training((model,), step)


class CountDecoder(nn.Module):
    """Mean and inverse dispersion of counts."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(3, 4)
        self.log_theta = nn.Parameter(torch.zeros(4))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return F.softplus(self.mean(z)), self.log_theta.exp()


@failure(
    step=2,
    phase="loss",
    op="lgamma",
    module=None,
    line="torch.lgamma(counts + theta)",
    cause="overflow",
    remedy=("clamp", "float64", "range", "limit", "scale"),
)
def dispersion_beyond_lgamma() -> Training:
    """potential issue with zinb / nb loss, scverse/scvi-tools#2965: lgamma of a huge inverse dispersion overflows."""
    model = CountDecoder()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def negative_binomial(counts: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
        rising = torch.lgamma(counts + theta)
        constant = torch.lgamma(theta) + torch.lgamma(counts + 1)
        share = theta * torch.log(theta / (theta + mu)) + counts * torch.log(mu / (theta + mu) + 1e-8)
        return -(rising - constant + share).mean()

    def step(i: int) -> Tensor:
        if i == 2:
            with torch.no_grad():
                model.log_theta[2] = 87.0
        mu, theta = model(torch.randn(5, 3))
        return descend(optimizer, negative_binomial(torch.randint(0, 9, (5, 4)).float(), mu, theta))

    return Training((model,), step)


class HandNorm(nn.Module):
    """A normalisation over groups by the moments of its input, in the input's own dtype."""

    def forward(self, x: Tensor) -> Tensor:
        groups = x.reshape(len(x), 2, -1)
        mean = groups.mean(-1, keepdim=True)
        variance = (groups * groups).mean(-1, keepdim=True) - mean * mean
        return ((groups - mean) / (variance + 1e-3).sqrt()).reshape(x.shape)


class MeshNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Linear(6, 8), HandNorm(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu())


@failure(
    step=1,
    phase="forward",
    op="mul",
    module="norm",
    line="(groups * groups).mean(-1, keepdim=True)",
    cause=("overflow", "precision"),
    remedy=("float32", "bfloat16", "scale"),
)
def squares_in_half_precision() -> Training:
    """compute fp16 GroupNorm variance in f32, neuroneural/brainchop-cli#56: activations of 400 squared in float16."""
    model = MeshNet().half()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        x = torch.randn(4, 6) * (800.0 if i == 1 else 1.0)
        return descend(optimizer, F.cross_entropy(model(x.half()).float(), torch.tensor([0, 1, 0, 1])))

    return Training((model,), step)


class EquivariantLayer(nn.Module):
    """Moves points along their differences, weighted by an unbounded network of the distance."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(1, 1)
        nn.init.constant_(self.weight.weight, 1.0)

    def forward(self, points: Tensor) -> Tensor:
        difference = points[:, None] - points[None]
        distance = difference.square().sum(-1, keepdim=True)
        return points + (difference * self.weight(distance)).sum(1)


class Egnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EquivariantLayer() for _ in range(5))

    def forward(self, points: Tensor) -> Tensor:
        for layer in self.layers:
            points = layer(points)
        return points


@failure(
    step=1,
    phase="forward",
    op=("pow", "square", "mul"),
    module="layers.3",
    line="difference.square().sum(-1, keepdim=True)",
    cause=("overflow", "exploding-gradient"),
    remedy=("scale", "norm", "clamp"),
)
def points_that_fly_apart() -> Training:
    """EGNN explodes for larger problems, lucidrains/egnn-pytorch#7: each layer cubes the size of the coordinates."""
    model = Egnn()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)

    def step(i: int) -> Tensor:
        return descend(optimizer, model(torch.randn(4, 3) * (2.0 if i == 1 else 0.01)).abs().mean())

    return Training((model,), step)
