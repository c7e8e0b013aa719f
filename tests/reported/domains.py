"""Roots and powers of negative numbers, and special functions outside their domain."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cases import Training, descend, failure


class QuadraticSpline(nn.Module):
    """The inverse of a quadratic segment."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.full((2,), 2.0))

    def forward(self, y: Tensor) -> Tensor:
        discriminant = self.b.square() - 4 * self.a * y
        return 2 * y / (self.b + torch.sqrt(discriminant))


class SplineFlow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift, self.spline = nn.Linear(2, 2), QuadraticSpline()

    def forward(self, y: Tensor) -> Tensor:
        return self.spline(y + 0.01 * self.shift(y))


@failure(
    step=2,
    phase="forward",
    op="sqrt",
    module="spline",
    line="torch.sqrt(discriminant)",
    cause=("sqrt-domain", "domain"),
    remedy=("clamp",),
)
def spline_outside_its_interval() -> Training:
    """AssertionError due to negative discriminant, bayesiains/nflows#87: a point beyond the spline's interval."""
    model = SplineFlow()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)

    def step(i: int) -> Tensor:
        y = 0.5 * torch.rand(5, 2)
        if i == 2:
            y[4, 1] = 3.0
        return descend(optimizer, model(y).square().mean())

    return Training((model,), step)


class WeightedGraph(nn.Module):
    """A graph convolution normalised by the weighted degree."""

    def __init__(self) -> None:
        super().__init__()
        self.edge_weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        degree = torch.zeros(len(x)).index_add(0, edges[1], self.edge_weight)
        norm = degree.pow(-0.5)
        norm[norm == float("inf")] = 0
        messages = x[edges[0]] * (norm[edges[0]] * self.edge_weight * norm[edges[1]])[:, None]
        return torch.zeros_like(x).index_add(0, edges[1], messages)


class Gcn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = WeightedGraph(), nn.Linear(3, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.head(self.conv(x, edges))


@failure(
    step=1,
    phase="forward",
    op="pow",
    module="conv",
    line="degree.pow(-0.5)",
    cause=("pow-domain", "domain"),
    remedy=("clamp", "abs", "positive"),
)
def graph_with_negative_weights() -> Training:
    """GCNConv nan, pyg-team/pytorch_geometric#61: a negative weighted degree to the power of -0.5."""
    model = Gcn()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])

    def step(i: int) -> Tensor:
        if i == 1:
            with torch.no_grad():
                model.conv.edge_weight[2] = -0.5
        return descend(optimizer, F.cross_entropy(model(torch.randn(4, 3), edges), torch.tensor([0, 1, 0, 1])))

    return Training((model,), step)


class FrozenNorm(nn.Module):
    """A pretrained body with frozen statistics and a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.bn.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(x)).mean(-1))


@failure(
    step=2,
    phase="forward",
    op=("batch_norm", "_batch_norm_no_update"),
    module="bn",
    line="self.bn(self.conv(x))",
    cause=("sqrt-domain", "domain", "bad-parameter"),
    remedy=("variance", "running_var", "clamp", "checkpoint"),
)
def negative_running_variance() -> Training:
    """F.batch_norm output nan, pytorch/pytorch#106605: running_var is filled with normal random numbers."""
    model = FrozenNorm()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        if i == 2:
            model.bn.running_var.copy_(torch.tensor([0.5, -1.2, 0.3, 0.9]))
        return descend(optimizer, F.cross_entropy(model(torch.randn(4, 2, 6)), torch.tensor([0, 1, 0, 1])))

    return Training((model,), step)


class OnlineNormalizer(nn.Module):
    """Running sums of the inputs and of their squares."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("total", torch.zeros(3))
        self.register_buffer("squares", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.count += len(x)
        self.total += x.sum(0)
        self.squares += x.square().sum(0)
        mean = self.total / self.count
        std = torch.sqrt(self.squares / self.count - mean.square())
        return (x - mean) / (std + 1e-3)


class Simulator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normalizer, self.net = OnlineNormalizer(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.normalizer(x))


@failure(
    step=1,
    phase="forward",
    op="sqrt",
    module="normalizer",
    line="torch.sqrt(self.squares / self.count - mean.square())",
    cause=("sqrt-domain", "domain", "precision"),
    remedy=("clamp",),
)
def variance_by_difference_of_moments() -> Training:
    """nan in normalization, google-deepmind/deepmind-research#346: the variance of a constant column is negative."""
    model = Simulator()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        x = torch.randn(8 if i == 0 else 10, 3)
        x[:, 1] = 1000.1
        return descend(optimizer, model(x).square().mean())

    return Training((model,), step)
