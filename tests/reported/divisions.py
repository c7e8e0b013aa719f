"""Divisions by zero: empty groups, silent signals, constant targets, scales that reached zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cases import Training, descend, failure

DIVISION = {"cause": "zero-division", "remedy": ("eps", "clamp", "skip", "empty")}


class MeanAggregate(nn.Module):
    """The mean of a node's neighbours."""

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        total = torch.zeros_like(x).index_add(0, target, x[source])
        degree = torch.zeros(len(x)).index_add(0, target, torch.ones(len(target)))
        return total / degree[:, None]


class GraphSage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.aggregate, self.head = nn.Linear(3, 4), MeanAggregate(), nn.Linear(4, 2)

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.aggregate(self.embed(x).relu(), source, target))


@failure(step=2, phase="forward", op="div", module="aggregate", line="total / degree[:, None]", **DIVISION)
def node_without_neighbours() -> Training:
    """zero division in Graphsage, MrLeeeee/GCN-GAT-and-Graphsage#3: the degree of a sampled node is 0."""
    model = GraphSage()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    source, target = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 2, 3, 0, 2])

    def step(i: int) -> Tensor:
        kept = target != 3 if i == 2 else torch.ones(5, dtype=torch.bool)
        out = model(torch.randn(4, 3), source[kept], target[kept])
        return descend(optimizer, F.cross_entropy(out, torch.tensor([0, 1, 0, 1])))

    return Training((model,), step)


class LearnedGraph(nn.Module):
    """Propagates over a sparse adjacency matrix of learned weights, symmetrically normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        weight = self.weight.relu()
        degree = torch.zeros(len(x)).index_add(0, edges[0], weight)
        scale = degree.rsqrt()
        values = weight * scale[edges[0]] * scale[edges[1]]
        adjacency = torch.sparse_coo_tensor(edges, values, (len(x), len(x)))
        return torch.sparse.mm(adjacency, x)


class Slaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.graph, self.head = LearnedGraph(), nn.Linear(3, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.head(self.graph(x, edges))


@failure(step=1, phase="forward", op=("rsqrt", "pow"), module="graph", line="degree.rsqrt()", **DIVISION)
def sparse_graph_with_a_lost_node() -> Training:
    """Loss is nan when setting args.sparse=1, BorealisAI/SLAPS-GNN#3: all learned edges of a node are 0."""
    model = Slaps()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    edges = torch.tensor([[0, 1, 2, 3, 3], [1, 2, 3, 0, 1]])

    def step(i: int) -> Tensor:
        if i == 1:
            with torch.no_grad():
                model.graph.weight[1] = -0.5
        return descend(optimizer, model(torch.randn(4, 3), edges).square().mean())

    return Training((model,), step)


class SupervisedContrast(nn.Module):
    """The supervised contrastive loss, a module that is not watched."""

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        logits = features @ features.T / 0.5
        others = ~torch.eye(len(labels), dtype=torch.bool)
        mask = (labels[:, None] == labels[None]).float() * others
        log_prob = logits - (logits.exp() * others).sum(1, keepdim=True).log()
        return -((mask * log_prob).sum(1) / mask.sum(1)).mean()


@failure(step=2, phase="loss", op="div", module=None, line="/ mask.sum(1)", **DIVISION)
def class_with_one_sample() -> Training:
    """NaN loss for no positive pair from SupCon, HobbitLong/SupContrast#141."""
    model, criterion = nn.Linear(6, 4), SupervisedContrast()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        labels = torch.tensor([0, 0, 1, 1, 2, 2 if i != 2 else 3])
        return descend(optimizer, criterion(F.normalize(model(torch.randn(6, 6)), dim=1), labels))

    return Training((model,), step)


@failure(step=1, phase="loss", op="div", module=None, line="/ events.sum()", **DIVISION)
def batch_without_events() -> Training:
    """no loss for training with small batch size, havakv/pycox#124: every sample of the batch is censored."""
    model = nn.Linear(5, 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def cox(risk: Tensor, events: Tensor) -> Tensor:
        log_risk = torch.logcumsumexp(risk, 0)
        return -((risk - log_risk) * events).sum() / events.sum()

    def step(i: int) -> Tensor:
        events = torch.tensor([1.0, 0, 1, 0]) if i != 1 else torch.zeros(4)
        return descend(optimizer, cox(model(torch.randn(4, 5)).squeeze(1), events))

    return Training((model,), step)


class Quantizer(nn.Module):
    """A quantizer with a learned step size."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        level = (x / self.scale).clamp(-8, 7)
        level = (level.round() - level).detach() + level
        return level * self.scale


@failure(step=2, phase="forward", op="div", module="2", line="(x / self.scale).clamp(-8, 7)", **DIVISION)
def quantizer_whose_scale_is_zero() -> Training:
    """Error: Divided by 0, zhutmost/lsq-net#17: the learned scale has reached 0, activations of 0 become NaN."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Quantizer(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        if i == 2:
            with torch.no_grad():
                model[2].scale.zero_()
        return descend(optimizer, model(torch.randn(6, 4)).square().mean())

    return Training((model,), step)


class BitLinear(nn.Module):
    """A linear layer whose activations are scaled to 8 bits per row."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        scale = 127.0 / x.abs().amax(-1, keepdim=True)
        quantized = (x * scale).round().clamp(-128, 127) / scale
        return F.linear(x + (quantized - x).detach(), self.weight)


@failure(
    step=1,
    phase="forward",
    op=("div", "reciprocal"),
    module="1",
    line="127.0 / x.abs().amax(-1, keepdim=True)",
    **DIVISION,
)
def row_of_dead_activations() -> Training:
    """Fix division-by-zero, microsoft/BitNet#123: all activations of a row are 0, their maximum is the divisor."""
    model = nn.Sequential(nn.ReLU(), BitLinear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)

    def step(i: int) -> Tensor:
        x = torch.randn(5, 4).abs()
        if i == 1:
            x[2] = -x[2]
        return descend(optimizer, model(x).square().mean())

    return Training((model,), step)


@failure(step=2, phase="loss", op="div", module=None, line="alpha = (estimate * source).sum", **DIVISION)
def separation_of_a_silent_source() -> Training:
    """SDR loss sensitive to nan, csteinmetz1/auraloss#25: the source is silent in this excerpt."""
    model = nn.Conv1d(1, 1, 3, padding=1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def si_sdr(estimate: Tensor, source: Tensor) -> Tensor:
        alpha = (estimate * source).sum(-1, keepdim=True) / source.square().sum(-1, keepdim=True)
        target = alpha * source
        noise = estimate - target
        return 10 * torch.log10(target.square().sum(-1) / (noise.square().sum(-1) + 1e-8) + 1e-8)

    def step(i: int) -> Tensor:
        source = torch.randn(3, 32)
        if i == 2:
            source[1] = 0.0
        estimate = model((source + torch.randn(3, 32))[:, None]).squeeze(1)
        return descend(optimizer, -si_sdr(estimate, source).mean())

    return Training((model,), step)


@failure(
    step=2,
    phase=("loss", "input"),
    op="div",
    module=None,
    line="torch.minimum(snr, torch.tensor(5.0)) / snr",
    cause="zero-division",
    remedy=("eps", "clamp"),
)
def diffusion_with_zero_terminal_snr() -> Training:
    """Fix min-snr-gamma for v-prediction and ZSNR, kohya-ss/sd-scripts#934: the last timestep has an SNR of 0."""
    model = nn.Linear(5, 4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    kept = torch.linspace(0.999, 0.0, 10)

    def step(i: int) -> Tensor:
        t = torch.tensor([1, 4, 9]) if i == 2 else torch.tensor([0, 3, 8])
        clean, noise, share = torch.randn(3, 4), torch.randn(3, 4), kept[t][:, None]
        noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
        snr = kept[t] / (1 - kept[t])
        weight = torch.minimum(snr, torch.tensor(5.0)) / snr
        error = (model(torch.cat([noisy, t[:, None] / 10], 1)) - noise).square().mean(1)
        return descend(optimizer, (weight * error).mean())

    return Training((model,), step)


@failure(step=1, phase="loss", op="div", module=None, line="(p * t).sum() / (p.norm() * t.norm())", **DIVISION)
def correlation_with_a_constant() -> Training:
    """Preventing NaN output from pearson correlation loss function, NVIDIA-Genomics-Research/AtacWorks#104."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def pearson(predicted: Tensor, target: Tensor) -> Tensor:
        p, t = predicted - predicted.mean(), target - target.mean()
        return (p * t).sum() / (p.norm() * t.norm())

    def step(i: int) -> Tensor:
        target = torch.randn(8) if i != 1 else torch.zeros(8)
        return descend(optimizer, 1 - pearson(model(torch.randn(8, 4)).squeeze(1), target))

    return Training((model,), step)


class UnitPhase(nn.Module):
    """Keeps the phase of a complex spectrum alone."""

    def forward(self, spectrum: Tensor) -> Tensor:
        return spectrum / spectrum.abs()


class PhaseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.phase = nn.Linear(8, 8, bias=False), UnitPhase()

    def forward(self, x: Tensor) -> Tensor:
        return self.phase(torch.fft.rfft(self.mix(x)))


@failure(step=2, phase="forward", op="div", module="phase", line="spectrum / spectrum.abs()", **DIVISION)
def phase_of_a_zero_sample() -> Training:
    """nan gradient for ComplexDense with angle-based loss, NEGU93/cvnn#12: a sample of zeros has no phase."""
    model = PhaseNet()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        x = torch.randn(4, 8)
        if i == 2:
            x[3] = 0.0
        target = torch.polar(torch.ones(4, 5), torch.rand(4, 5))
        return descend(optimizer, (model(x) - target).abs().mean())

    return Training((model,), step)


class Poincare(nn.Module):
    """Distances in the Poincare ball."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Embedding(5, 2)
        nn.init.uniform_(self.points.weight, -0.3, 0.3)

    def forward(self, pairs: Tensor) -> Tensor:
        u, v = self.points(pairs).unbind(1)
        gap, inside_u, inside_v = (u - v).square().sum(-1), 1 - u.square().sum(-1), 1 - v.square().sum(-1)
        x = 1 + 2 * gap / (inside_u * inside_v)
        return torch.log(x + torch.sqrt(x.square() - 1 + 1e-7))


@failure(step=2, phase="forward", op="div", module="", line="2 * gap / (inside_u * inside_v)", **DIVISION)
def point_on_the_boundary() -> Training:
    """Get nan loss using RiemannianAdam, geoopt/geoopt#227: a point has reached the boundary of the ball."""
    model = Poincare()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        if i == 2:
            with torch.no_grad():
                model.points.weight[1] = torch.tensor([1.0, 0.0])
        return descend(optimizer, model(torch.tensor([[0, 1], [2, 3], [3, 4]])).mean())

    return Training((model,), step)


@failure(
    step=1,
    phase=("loss", "input"),
    op="div",
    module=None,
    line="centered / frames.std(1, keepdim=True)",
    cause=("zero-division", "bad-input"),
    remedy=("eps", "clamp"),
)
def frame_of_silence() -> Training:
    """Clip standard deviation, maxrmorrison/torchcrepe#5: frames are divided by their deviation before the model."""
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        frames = torch.randn(4, 16)
        if i == 1:
            frames[2] = 0.0
        centered = frames - frames.mean(1, keepdim=True)
        frames = centered / frames.std(1, keepdim=True)
        return descend(optimizer, F.cross_entropy(model(frames), torch.tensor([0, 1, 2, 0])))

    return Training((model,), step)
