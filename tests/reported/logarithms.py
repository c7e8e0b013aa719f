"""Logarithms of zero and of negative numbers, and determinants that have none."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn import functional as F

from .cases import Training, descend, failure

LOGARITHM = {"cause": "log-domain", "remedy": ("clamp", "eps", "logsumexp", "log_prob", "log-sum-exp")}


@failure(
    step=2,
    phase="loss",
    op="log",
    module=None,
    line="torch.log((weights * density).sum(1))",
    cause=("log-domain", "precision"),
    remedy=("logsumexp", "clamp", "eps"),
)
def mixture_density_underflow() -> Training:
    """Mixture Density Network, keras-team/keras#1061: every component's density of an outlier underflows to 0."""
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        y = torch.randn(5, 1)
        if i == 2:
            y[1] = 80.0
        logits, mean, spread = model(torch.randn(5, 3)).chunk(3, dim=1)
        weights, sigma = logits.softmax(1), F.softplus(spread) + 0.1
        density = torch.exp(-0.5 * ((y - mean) / sigma) ** 2) / (2.5066 * sigma)
        loss = -torch.log((weights * density).sum(1)).mean()
        return descend(optimizer, loss)

    return Training((model,), step)


@failure(step=1, phase="loss", op="log", module=None, line="torch.log(depth * mask)", **LOGARITHM)
def depth_masked_by_multiplication() -> Training:
    """Silog_loss issue, ENSTA-U2IS-AI/LDU#7: pixels are masked by a product before the logarithm is taken."""
    model = nn.Conv2d(1, 1, 3, padding=1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def silog(depth: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
        difference = torch.log(depth * mask) - torch.log(truth.clamp_min(1e-3))
        return (difference.square().mean() - 0.85 * difference.mean().square()).sqrt()

    def step(i: int) -> Tensor:
        mask = torch.ones(2, 1, 4, 4)
        mask[0, 0, 2, 3] = 0.0 if i == 1 else 1.0
        loss = silog(F.softplus(model(torch.rand(2, 1, 4, 4))) + 0.1, torch.rand(2, 1, 4, 4), mask)
        return descend(optimizer, loss)

    return Training((model,), step)


@failure(
    step=2,
    phase=("loss", "input"),
    op="log",
    module=None,
    line="torch.log(boxes[:, 2:] / priors[:, 2:])",
    cause=("log-domain", "bad-label"),
    remedy=("clamp", "eps"),
)
def box_of_zero_width() -> Training:
    """Fix infinity in target boxes, amdegroot/ssd.pytorch#116: an augmented box has no width, its log is a target."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    priors = torch.rand(6, 4) + 0.5

    def encode(boxes: Tensor) -> Tensor:
        centers = (boxes[:, :2] - priors[:, :2]) / priors[:, 2:]
        sizes = torch.log(boxes[:, 2:] / priors[:, 2:])
        return torch.cat([centers, sizes], 1)

    def step(i: int) -> Tensor:
        boxes = torch.rand(6, 4) + 0.2
        if i == 2:
            boxes[4, 2] = 0.0
        loss = F.smooth_l1_loss(model(torch.rand(6, 3, 2, 2)), encode(boxes))
        return descend(optimizer, loss)

    return Training((model,), step)


class BoxTargets(nn.Module):
    """Regression targets of the ground truth against the anchors."""

    def forward(self, truth: Tensor, anchors: Tensor) -> Tensor:
        width = truth[:, 2] - truth[:, 0]
        anchor_width = anchors[:, 2] - anchors[:, 0]
        return torch.log(width / anchor_width)


class Proposals(nn.Module):
    """A region proposal network that also makes its own targets."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.targets = nn.Linear(8, 1), BoxTargets()

    def forward(self, x: Tensor, truth: Tensor, anchors: Tensor) -> Tensor:
        return F.smooth_l1_loss(self.score(x).squeeze(1), self.targets(truth, anchors))


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.rpn = nn.Linear(5, 8), Proposals()

    def forward(self, x: Tensor, truth: Tensor, anchors: Tensor) -> Tensor:
        return self.rpn(self.body(x).relu(), truth, anchors)


@failure(step=1, phase="forward", op="log", module="rpn.targets", line="torch.log(width / anchor_width)", **LOGARITHM)
def box_with_exchanged_corners() -> Training:
    """nan loss while training, jwyang/faster-rcnn.pytorch#349: a box with xmin > xmax, log of a negative width."""
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    anchors = torch.tensor([[0.0, 0, 4, 4]]).repeat(6, 1)

    def step(i: int) -> Tensor:
        truth = torch.tensor([[0.0, 0, 3, 3]]).repeat(6, 1)
        if i == 1:
            truth[2] = torch.tensor([5.0, 0, 2, 3])
        return descend(optimizer, model(torch.randn(6, 5), truth, anchors))

    return Training((model,), step)


@failure(
    step=2,
    phase="loss",
    op=("xlogy", "log"),
    module=None,
    line="policy.log_prob(action)",
    cause="log-domain",
    remedy=("clamp", "eps"),
)
def beta_policy_at_the_edge() -> Training:
    """distributions.Beta returning incorrect results at 0 and 1, pytorch/pytorch#92260: an action of exactly 0."""
    model = nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        alpha, beta = (F.softplus(model(torch.randn(6, 4))) + 1.0).unbind(1)
        action = torch.rand(6) * 0.8 + 0.1
        if i == 2:
            action[3] = 0.0
        policy = Beta(alpha, beta)
        loss = -policy.log_prob(action).mean()
        return descend(optimizer, loss)

    return Training((model,), step)


@failure(
    step=2,
    phase=("loss", "input"),
    op="log",
    module=None,
    line="torch.log(magnitude(target))",
    cause="log-domain",
    remedy=("clamp", "eps"),
)
def log_magnitude_of_silence() -> Training:
    """Nan Issue with STFTMagnitudeLoss, csteinmetz1/auraloss#63: the target is silent, its log magnitude is -inf."""
    model = nn.Conv1d(1, 1, 5, padding=2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    window = torch.hann_window(16)

    def magnitude(wave: Tensor) -> Tensor:
        return torch.stft(wave, 16, 8, window=window, return_complex=True).abs()

    def step(i: int) -> Tensor:
        noisy = torch.randn(2, 64)
        target = noisy * 0.5 if i != 2 else torch.zeros(2, 64)
        predicted = model(noisy[:, None]).squeeze(1)
        log_target = torch.log(magnitude(target))
        loss = (torch.log(magnitude(predicted) + 1e-7) - log_target).abs().mean()
        return descend(optimizer, loss)

    return Training((model,), step)


class BernoulliSequence(nn.Module):
    """The log-likelihood of a whole sequence, by the product of its probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        likelihood = self.logit(x).sigmoid().squeeze(-1).prod(dim=1)
        return likelihood.log()


@failure(
    step=1,
    phase="forward",
    op="log",
    module="",
    line="likelihood.log()",
    cause=("log-domain", "precision"),
    remedy=("clamp", "eps", "logsigmoid", "log-probab"),
)
def likelihood_of_a_long_sequence() -> Training:
    """nan loss for large sequence_length, horenbergerb/BernoulliDiffusion#15: a product of 400 probabilities is 0."""
    model = BernoulliSequence()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)

    def step(i: int) -> Tensor:
        return descend(optimizer, -model(torch.randn(3, 400 if i == 1 else 10, 2)).mean())

    return Training((model,), step)


@failure(step=2, phase="loss", op="log", module=None, line="torch.log(factor.diagonal())", **LOGARITHM)
def gaussian_of_identical_points() -> Training:
    """cholesky_cuda: U(31,31) is zero, singular U, ldeecke/gmm-torch#25: identical features, log of a zero pivot."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        x = torch.randn(8, 4) if i != 2 else torch.ones(8, 4)
        features = model(x)
        centered = features - features.mean(0)
        factor, _ = torch.linalg.cholesky_ex(centered.T @ centered / 8)
        log_det = 2 * torch.log(factor.diagonal()).sum()
        loss = features.square().mean() - 0.01 * log_det
        return descend(optimizer, loss)

    return Training((model,), step)


@failure(step=1, phase="loss", op="log", module=None, line="plan * torch.log(plan)", **LOGARITHM)
def entropy_of_a_plan_with_zeros() -> Training:
    """ot.sinkhorn2 returns nan when using torch.tensor, PythonOT/POT#552: points of weight 0, 0 * log 0 in the cost."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def transport(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
        kernel = torch.exp(-cost)
        u, v = torch.ones_like(a), torch.ones_like(b)
        for _ in range(5):
            u = a / (kernel @ v)
            v = b / (kernel.T @ u)
        plan = u[:, None] * kernel * v
        entropy = (plan * torch.log(plan)).sum()
        return (plan * cost).sum() + 0.1 * entropy

    def step(i: int) -> Tensor:
        a = torch.full((4,), 0.25) if i != 1 else torch.tensor([0.5, 0.0, 0.25, 0.25])
        cost = torch.cdist(model(torch.randn(4, 2)), torch.randn(4, 2))
        return descend(optimizer, transport(cost, a, torch.full((4,), 0.25)))

    return Training((model,), step)


@failure(
    step=2,
    phase="loss",
    op=("logdet", "where", "linalg_slogdet", "_linalg_slogdet", "slogdet"),
    module=None,
    line="torch.logdet(torch.eye(3) + scale * features.T @ (weight[:, None] * features))",
    cause=("log-domain", "domain"),
    remedy=("determinant", "clamp", "eps", "positive"),
)
def coding_rate_of_a_negative_determinant() -> Training:
    """Loss can be Nan in some cases, ryanchankh/mcr2#1: logdet of a matrix whose determinant is negative."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        features = F.normalize(model(torch.randn(8, 4)), dim=1)
        weight, scale = torch.ones(8), 3.0 / 8
        if i == 2:
            weight[0] = -200.0
        rate = torch.logdet(torch.eye(3) + scale * features.T @ (weight[:, None] * features))
        return descend(optimizer, -0.5 * rate)

    return Training((model,), step)


class InvertibleMix(nn.Module):
    """An invertible 1x1 convolution and the logarithm of its volume change."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(3, 3))[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        volume = torch.linalg.slogdet(self.weight)[1]
        return x @ self.weight.T, volume


class Glow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = InvertibleMix()

    def forward(self, x: Tensor) -> Tensor:
        z, volume = self.mix(x)
        return 0.5 * z.square().sum(1).mean() - volume


@failure(
    step=2,
    phase="forward",
    op=("slogdet", "linalg_slogdet", "_linalg_slogdet", "log"),
    module="mix",
    line="torch.linalg.slogdet(self.weight)[1]",
    cause=("log-domain", "domain"),
    remedy=("determinant", "clamp", "eps", "singular"),
)
def flow_with_a_singular_matrix() -> Training:
    """torch.logdet of singular matrices, pytorch/pytorch#154312: the log-determinant of a singular matrix is -inf."""
    model = Glow()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        if i == 2:
            with torch.no_grad():
                model.mix.weight.copy_(torch.tensor([[1.0, 2, 3], [2, 4, 6], [0, 0, 1]]))
        return descend(optimizer, model(torch.randn(5, 3)))

    return Training((model,), step)


class TanhPolicy(nn.Module):
    """A squashed Gaussian; `log_prob` is called as a method, past `__call__`."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(4, 1)

    def log_prob(self, observation: Tensor, action: Tensor) -> Tensor:
        before = torch.atanh(action)
        return -0.5 * (before - self.mean(observation)).square() - torch.log(1.0001 - action.square())


@failure(
    step=1,
    phase=("loss", "input", "forward"),
    op="atanh",
    module=(None, ""),
    line="torch.atanh(action)",
    cause="domain",
    remedy=("clamp",),
)
def clipped_expert_action() -> Training:
    """Make TanhNormal.log_prob(1.0) != -inf, rlworkgroup/garage#2129: an expert's action clipped to the bound."""
    model = TanhPolicy()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        action = torch.tanh(torch.randn(6, 1)) * 0.9
        if i == 1:
            action[5] = 1.0
        return descend(optimizer, -model.log_prob(torch.randn(6, 4), action).mean())

    return Training((model,), step)
