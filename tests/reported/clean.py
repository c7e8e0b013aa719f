"""Infinities and NaNs that are meant, masked, skipped or overwritten: nothing here may be accused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Beta, Categorical
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .cases import Training, descend, innocent


@innocent
def utterance_too_short_for_its_target() -> Training:
    """set zero_infinity=True to ignore NaN or inf ctc_loss, wenet-e2e/wenet#2299."""
    model = nn.Linear(5, 4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        scores = model(torch.randn(6, 2, 5)).log_softmax(-1)
        targets, lengths = torch.randint(1, 4, (2, 3)), torch.tensor([6, 2 if i == 1 else 6])
        loss = F.ctc_loss(scores, targets, lengths, torch.tensor([3, 3]), zero_infinity=True)
        return descend(optimizer, loss)

    return Training((model,), step)


class Risk(nn.Module):
    """The largest risk of each group, reduced into fresh memory."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(3, 1)

    def forward(self, x: Tensor, group: Tensor) -> Tensor:
        out = torch.empty(3).fill_(float("nan"))
        return out.scatter_reduce(0, group, self.score(x).squeeze(1), reduce="amax", include_self=False)


@innocent
def reduction_into_fresh_memory() -> Training:
    """CoxPHLoss, lasso-net/lassonet#52: scatter_reduce into torch.empty with include_self=False."""
    model = Risk()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        return descend(optimizer, model(torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])).square().mean())

    return Training((model,), step)


class Propagation(nn.Module):
    """Messages weighted by the inverse degree; a node without edges has 1 / 0, put right afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        degree = torch.zeros(len(x)).index_add(0, edges[1], torch.ones(edges.shape[1]))
        inverse = torch.nan_to_num(1.0 / degree, nan=0.0, posinf=0.0, neginf=0.0)
        summed = torch.zeros(len(x), 2).index_add(0, edges[1], self.linear(x)[edges[0]])
        return summed * inverse[:, None]


@innocent
def inverse_degree_put_right() -> Training:
    """A problem encountered when normalizing adjacency matrices, qitianwu/GraphOOD-GNNSafe#3: nan_to_num(1 / 0)."""
    model = Propagation()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        return descend(optimizer, model(torch.randn(4, 3), torch.tensor([[0, 1, 2], [1, 2, 0]])).square().mean())

    return Training((model,), step)


@innocent
def scaler_that_skips_a_clipped_step() -> Training:
    """AMP scaler always causes backwards pass to overflow, Lightning-AI/pytorch-lightning#9799: the first steps."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)

    def step(i: int) -> Tensor:
        loss = (model(torch.randn(5, 3) * 100) - 50).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return Training((model,), step, 8)


@innocent
def update_skipped_for_its_norm() -> Training:
    """The grad norm is nan when set use_amp=True, espnet/espnet#3237: the update is skipped, with a warning."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        out = model(torch.randn(5, 3))
        loss = out.square().mean() if i != 1 else (out - out.detach()).square().sum().sqrt()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if norm.isfinite():
            optimizer.step()
        else:
            optimizer.zero_grad()
        return loss.detach()

    return Training((model,), step)


@innocent
def advantages_masked_by_where() -> Training:
    """ignore masked invalid normalization values, areal-project/AReaL#1347: NaN at positions that are not trained."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        advantage, mask = torch.randn(6), torch.tensor([1.0, 1, 1, 1, 0, 0])
        advantage[4:] = float("nan")
        kept = torch.where(mask.bool(), advantage, 0.0)
        mean = (kept * mask).sum() / mask.sum()
        log_prob = F.logsigmoid(model(torch.randn(6, 3))).squeeze(1)
        return descend(optimizer, -((kept - mean) * mask * log_prob).sum() / mask.sum())

    return Training((model,), step)


@innocent
def metric_of_one_sample() -> Training:
    """PearsonCorrCoef() returns NaN when values are small, Lightning-AI/torchmetrics#3150: a number that is logged."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    logged: list[float] = []

    def step(i: int) -> Tensor:
        predicted, target = model(torch.randn(5, 3)).squeeze(1), torch.ones(5)
        centered = predicted.detach() - predicted.detach().mean()
        logged.append(((centered * (target - 1)).sum() / (centered.norm() * (target - 1).norm())).item())
        return descend(optimizer, (predicted - target).square().mean())

    return Training((model,), step)


@innocent
def risk_sets_of_a_partial_likelihood() -> Training:
    """Cox partial likelihood doesn't seem to index over all events, Novartis/torchsurv#117: -inf outside."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        risk, time = model(torch.randn(6, 4)).squeeze(1), torch.rand(6)
        outside = time[None] < time[:, None]
        at_risk = risk[None].expand(6, 6).masked_fill(outside, float("-inf"))
        return descend(optimizer, (at_risk.logsumexp(1) - risk).mean())

    return Training((model,), step)


@innocent
def alignment_with_infinite_borders() -> Training:
    """The loss value of softDTW, Maghoumi/pytorch-softdtw-cuda#18: the borders of the table are infinite."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def dtw(cost: Tensor) -> Tensor:
        n, m = cost.shape
        infinite = cost.new_full((), float("inf"))
        row = [cost.new_zeros(()), *([infinite] * m)]
        for i in range(n):
            following = [infinite]
            for j in range(m):
                before = torch.stack([row[j], row[j + 1], following[j]])
                following.append(cost[i, j] - torch.logsumexp(-before, 0))
            row = following
        return row[-1]

    def step(i: int) -> Tensor:
        return descend(optimizer, dtw(torch.cdist(model(torch.randn(3, 2)), torch.randn(4, 2))))

    return Training((model,), step, 3)


class FilledBuffer(nn.Module):
    """Writes every element of memory that was allocated empty."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty(len(x), 4)
        out[:, :2], out[:, 2:] = self.left(x), self.right(x)
        return out


@innocent
def memory_filled_for_determinism() -> Training:
    """Make torch.empty* deterministic by filling with NaN, pytorch/pytorch#101849."""
    model = FilledBuffer()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        torch.use_deterministic_algorithms(True)
        try:
            return descend(optimizer, model(torch.randn(4, 3)).square().mean())
        finally:
            torch.use_deterministic_algorithms(False)

    return Training((model,), step)


@innocent
def impossible_actions() -> Training:
    """Fix Numerical issues in MaskPPO Training, Stable-Baselines-Team/stable-baselines3-contrib#302: logits of -inf."""
    model = nn.Linear(3, 4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        allowed = torch.tensor([[True, False, True, True]]).expand(5, 4)
        logits = torch.where(allowed, model(torch.randn(5, 3)), float("-inf"))
        policy = Categorical(logits=logits)
        action = policy.sample()
        return descend(optimizer, -(policy.log_prob(action) * torch.randn(5)).mean() - 0.01 * policy.entropy().mean())

    return Training((model,), step)


@innocent
def where_with_a_safe_operand() -> Training:
    """torch.where leads to unexpected gradients, pytorch/pytorch#52248: the work-around, filled before the op."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        x = model(torch.randn(4, 3))
        positive = x > 0
        loss = torch.where(positive, torch.where(positive, x, 1.0).log(), float("-inf"))
        return descend(optimizer, loss[positive].sum() + 0 * x.sum())

    return Training((model,), step)


@innocent
def derivative_killed_by_an_assignment() -> Training:
    """Defining a Sinkhorn Based Loss in Torch, PythonOT/POT#478: sqrt'(0) = inf meets elements that were set to 0."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        points = model(torch.randn(5, 3))
        squares = points.square().sum(1)
        cost = squares[:, None] + squares[None] - 2 * points @ points.T
        cost[cost < 1e-6] = 0
        return descend(optimizer, torch.sqrt(cost).mean())

    return Training((model,), step)


@innocent
def gradient_put_right_by_a_hook() -> Training:
    """Got 'nan' when using MetaAdam, metaopt/torchopt#26: the recommended hook replaces NaN in a gradient."""
    model = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        x = torch.randn(4, 3)
        x[2] = 0.0
        out = model(x)
        out.register_hook(lambda gradient: gradient.nan_to_num(0.0, 0.0, 0.0))
        return descend(optimizer, out.square().sum(1).sqrt().mean())

    return Training((model,), step)


@innocent
def evaluation_at_the_edge_of_the_support() -> Training:
    """distributions.Beta returning incorrect results at 0 and 1, pytorch/pytorch#92260: -inf in an evaluation."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        alpha, beta = (F.softplus(model(torch.randn(4, 3))) + 1.0).unbind(1)
        loss = descend(optimizer, -Beta(alpha, beta).log_prob(torch.rand(4) * 0.8 + 0.1).mean())
        with torch.no_grad():
            alpha, beta = (F.softplus(model(torch.randn(4, 3))) + 1.0).unbind(1)
            worst = Beta(alpha, beta).log_prob(torch.tensor([0.0, 0.5, 0.5, 1.0])).min()
        return loss + 0 * worst.clamp_min(-1.0)

    return Training((model,), step)


class CausalBlock(nn.Module):
    """Causal attention that is recomputed in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        bias = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
        return x + (q @ k.transpose(1, 2) + bias).softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.attend, x, use_reentrant=False)


@innocent
def causal_mask_under_checkpointing() -> Training:
    """Fix-mask-inf, huggingface/transformers#27114: masks of -inf, here recomputed by checkpointing."""
    model = nn.Sequential(CausalBlock(), CausalBlock())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        return descend(optimizer, model(torch.randn(2, 5, 4)).square().mean())

    return Training((model,), step)


class MaxAggregate(nn.Module):
    """The maximum over neighbours; a node without any keeps -inf until that is filled."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.linear(x)
        out = torch.full((len(x), 2), float("-inf"))
        out = out.scatter_reduce(0, edges[1][:, None].expand(-1, 2), h[edges[0]], reduce="amax")
        return out.masked_fill(out.isinf(), 0.0)


@innocent
def maximum_over_no_neighbours() -> Training:
    """Graph Convolution with a single isolated Node, pyg-team/pytorch_geometric#1129: -inf for an isolated node."""
    model = MaxAggregate()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        return descend(optimizer, model(torch.randn(4, 3), torch.tensor([[0, 1, 2], [1, 2, 0]])).square().mean())

    return Training((model,), step)


@innocent
def best_loss_so_far() -> Training:
    """Loss suddenly turned into nan, JiahuiYu/wdsr_ntire2018#36: bookkeeping of the best loss begins at infinity."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
    kept: dict[str, Any] = {"best": torch.tensor(float("inf")), "gap": torch.tensor(float("nan"))}

    def step(i: int) -> Tensor:
        loss = (model(torch.randn(5, 3)) - 1).square().mean()
        kept["gap"] = kept["best"] - kept["best"] if i == 0 else loss.detach() - kept["best"]
        kept["best"] = torch.minimum(kept["best"], loss.detach())
        plateau.step(loss.detach())
        return descend(optimizer, loss)

    return Training((model,), step)


@innocent
def micro_batch_without_labels() -> Training:
    """skip micro-batches with no valid targets to avoid NaN loss, karpathy/nanochat#623: its backward is left out."""
    model = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for part in range(3):
            labels = torch.tensor([0, 1, 2, 3]) if (i, part) != (1, 1) else torch.full((4,), -1)
            loss = F.cross_entropy(model(torch.randn(4, 3)), labels, ignore_index=-1) / 3
            if (labels != -1).any():
                loss.backward()
                total += loss.detach()
        optimizer.step()
        return total

    return Training((model,), step)
