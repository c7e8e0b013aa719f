"""What was bad before the step began: data, labels, buffers, weights; and statistics of too few samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from .cases import Training, descend, failure


@failure(
    step=1,
    phase="input",
    op=("addmm", "linear", "mm"),
    module="0",
    line="model(table[rows])",
    cause="bad-input",
    remedy=("find the bad samples", "impute"),
)
def constant_column_normalised_before() -> Training:
    """Normalization for tabulardata produces nan for constant columns, fastai/fastai#889: when it is read."""
    table = torch.randn(8, 4)
    table[4:, 2] = 20.0
    table[4:] = (table[4:] - table[4:].mean(0)) / table[4:].std(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        rows = torch.arange(4) + (4 if i == 1 else 0)
        return descend(optimizer, F.cross_entropy(model(table[rows]), torch.tensor([0, 1, 0, 1])))

    return Training((model,), step)


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.value = nn.Linear(3, 6), nn.Linear(6, 1), nn.Linear(6, 1)
        self.log_std = nn.Parameter(torch.zeros(1))

    def forward(self, observation: Tensor) -> tuple[Normal, Tensor]:
        hidden = self.body(observation).tanh()
        return Normal(self.mean(hidden), self.log_std.exp()), self.value(hidden)


@failure(
    step=2,
    phase="input",
    op="sub",
    module=None,
    line="returns - value.detach()",
    cause=("bad-input", "bad-label"),
    remedy=("scan", "drop", "check", "reward", "clamp"),
)
def simulation_that_exploded() -> Training:
    """actor's std becomes "nan" during PPO training, leggedrobotics/rsl_rl#33: infinite rewards."""
    model = ActorCritic()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        returns = torch.randn(6, 1)
        if i == 2:
            returns[3] = float("inf")
        policy, value = model(torch.randn(6, 3))
        advantage = returns - value.detach()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        actor = -(policy.log_prob(torch.randn(6, 1)) * advantage).mean()
        return descend(optimizer, actor + (value - returns).square().mean())

    return Training((model,), step)


@failure(
    step=2,
    phase=("loss", "input"),
    op="std",
    module=None,
    line="advantage.std() + 1e-8",
    cause="empty-reduction",
    remedy=("batch", "one", "single", "unbiased", "correction"),
)
def minibatch_of_one_advantage() -> Training:
    """NaN's if a single observation is sampled from PPO's rollout_buffer, DLR-RM/stable-baselines3#325."""
    model = ActorCritic()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        n = 1 if i == 2 else 6
        advantage = torch.randn(n, 1)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        policy, value = model(torch.randn(n, 3))
        return descend(optimizer, value.square().mean() - (policy.log_prob(torch.randn(n, 1)) * advantage).mean())

    return Training((model,), step)


class MinibatchStd(nn.Module):
    """Appends the deviation over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        spread = torch.std(x, dim=0).mean()
        return torch.cat([x, spread.expand(len(x), 1)], 1)


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.minibatch_std, self.score = nn.Linear(4, 3), MinibatchStd(), nn.Linear(4, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.score(self.minibatch_std(self.features(image)))


@failure(
    step=2,
    phase="forward",
    op="std",
    module="minibatch_std",
    line="torch.std(x, dim=0)",
    cause="empty-reduction",
    remedy=("batch", "one", "single", "unbiased", "correction"),
)
def last_batch_of_one_image() -> Training:
    """loss is NAN, ziwei-jiang/PGGAN-PyTorch#1: the discriminator's deviation over a batch of one image."""
    generator, critic = nn.Linear(2, 4), Critic()
    generator_optimizer = torch.optim.Adam(generator.parameters(), 1e-3)
    critic_optimizer = torch.optim.Adam(critic.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        n = 1 if i == 2 else 4
        fake = generator(torch.randn(n, 2))
        loss = F.softplus(critic(fake.detach())).mean() + F.softplus(-critic(torch.randn(n, 4))).mean()
        descend(critic_optimizer, loss)
        return descend(generator_optimizer, F.softplus(-critic(fake)).mean())

    return Training((generator, critic), step)


@failure(
    step=1,
    phase="loss",
    op="mean",
    module=None,
    line="features[labels == k].mean(0)",
    cause="empty-reduction",
    remedy=("empty", "skip", "guard"),
)
def instance_without_points() -> Training:
    """Nan Loss & NormBackward1 in discriminative.py, pqhieu/jsis3d#26: the centroid of an instance without points."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def spread(features: Tensor, labels: Tensor) -> Tensor:
        centers = torch.stack([features[labels == k].mean(0) for k in range(3)])
        return (features - centers[labels]).norm(dim=1).mean() + 0.01 * centers.norm(dim=1).mean()

    def step(i: int) -> Tensor:
        labels = torch.tensor([0, 0, 1, 1, 2 if i != 1 else 0, 0])
        return descend(optimizer, spread(model(torch.randn(6, 3)), labels))

    return Training((model,), step)


@failure(
    error=RuntimeError,
    step=1,
    phase="loss",
    op="scatter",
    module=None,
    line=".scatter_(1, anchors[:, None], 0.0)",
    cause="indexing",
    remedy=("range", "index", "size"),
)
def mask_of_the_wrong_size() -> Training:
    """Problem in contrastive loss, tfzhou/ContrastiveSeg#16: more anchors than the memory bank has columns."""
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    memory = torch.randn(6, 4)

    def contrast(features: Tensor) -> Tensor:
        logits = F.normalize(features, dim=1) @ F.normalize(memory, dim=1).T
        anchors = torch.arange(len(features))
        mask = torch.ones_like(logits).scatter_(1, anchors[:, None], 0.0)
        return (logits.exp() * mask).sum(1).log().mean()

    def step(i: int) -> Tensor:
        return descend(optimizer, contrast(model(torch.randn(5 if i != 1 else 8, 3))))

    return Training((model,), step)


class RunningNorm(nn.Module):
    """A batch normalisation that keeps a running deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_std", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.running_mean) / self.running_std
        mean, std = x.mean(0), x.std(0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, 0.1)
            self.running_std.lerp_(std, 0.1)
        return (x - mean) / (std + 1e-5)


@failure(
    step=(2, 3),
    phase="parameters",
    op="div",
    module="1",
    line="(x - self.running_mean) / self.running_std",
    cause="bad-parameter",
    remedy=("buffer", "statist", "reset", "running_std"),
)
def statistics_poisoned_by_a_skipped_batch() -> Training:
    """nan values in batch normalization during testing phase, facebookresearch/SparseConvNet#190: a batch of one."""
    model = nn.Sequential(nn.Linear(4, 3), RunningNorm(), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)

    def step(i: int) -> Tensor | None:
        if i == 3:
            model.eval()
            with torch.no_grad():
                return model(torch.randn(4, 4)).mean()
        loss = model(torch.randn(1 if i == 2 else 6, 4)).square().mean()
        if not loss.isfinite():
            optimizer.zero_grad()
            return None
        return descend(optimizer, loss)

    return Training((model,), step)


class MovingCodebook(nn.Module):
    """A codebook of moving averages; a code that was never chosen has a count of 0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.tensor([[0.0, 0.0], [1.0, 1.0], [50.0, 50.0]]))

    def forward(self, z: Tensor) -> Tensor:
        nearest = torch.cdist(z, self.codes).argmin(1)
        quantized = self.codes[nearest]
        with torch.no_grad():
            chosen = F.one_hot(nearest, 3).float()
            self.codes = chosen.T @ z / chosen.sum(0)[:, None]
        return z + (quantized - z).detach()


class VqVae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.codebook, self.decode = nn.Linear(3, 2), MovingCodebook(), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.codebook(self.encode(x)))


@failure(
    missing="rows that an earlier step wrote as 0/0 are taken, with certainty, for rows that were never written",
    step=1,
    phase="parameters",
    op=("cdist", "_cdist", "euclidean_dist", "_euclidean_dist", "index"),
    module="codebook",
    line=("torch.cdist(z, self.codes)", "self.codes[nearest]"),
    cause="bad-parameter",
    remedy=("buffer", "codes"),
)
def code_that_was_never_chosen() -> Training:
    """EMA update for codebook, nadavbh12/VQ-VAE#11: the codes are divided by how often they were chosen."""
    model = VqVae()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        x = torch.randn(6, 3)
        return descend(optimizer, (model(x) - x).square().mean())

    return Training((model,), step)


class ScaledBlock(nn.Module):
    """A block with a learned scale per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gamma = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.linear(x)


@failure(
    step=0,
    phase="parameters",
    op="mul",
    module="0",
    line="self.gamma * self.linear(x)",
    cause=("bad-parameter", "precision"),
    remedy=("checkpoint", "gamma", "init", "load"),
)
def weights_too_large_for_half() -> Training:
    """Model weights result in nan-values for half precision, mahmoodlab/UNI#18: a scale beyond 65504 becomes inf."""
    model = nn.Sequential(ScaledBlock(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].gamma[1] = 1e5
    model.half()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        return descend(optimizer, F.cross_entropy(model(torch.randn(4, 3).half()).float(), torch.tensor([0, 1, 0, 1])))

    return Training((model,), step)
