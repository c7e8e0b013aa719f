"""Values born in the update itself: torch's optimizers, third-party ones, gradient surgery."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cases import Training, descend, failure


@failure(
    step=3,
    phase="optimizer",
    op=("rmsprop", "sqrt", "addcdiv", "addcmul"),
    module="",
    line="optimizer.step()",
    cause=("optimizer", "sqrt-domain", "precision"),
    remedy=("eps", "centered"),
)
def centered_rmsprop() -> Training:
    """Centered RMSprop can take the square root of a negative number, CanReader/FastNN#12: a constant gradient."""
    model = nn.Linear(40, 1, bias=False)
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-3, alpha=0.01, centered=True)
    slope = torch.randn(1, 40) * 10

    def step(i: int) -> Tensor:
        loss = model(slope).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Training((model,), step, 6)


class AdamP(torch.optim.Optimizer):
    """Adam whose eps is added after the inverse root has been taken."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
                state["mean"].lerp_(p.grad, 0.1)
                state["square"].mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                inverse = state["square"].rsqrt().add_(1e-8)
                p.sub_(state["mean"] * inverse, alpha=group["lr"])


@failure(
    step=0,
    phase="optimizer",
    op=("rsqrt", "adamp", "mul"),
    module="embed",
    line=("rsqrt()", "optimizer.step()"),
    cause=("zero-division", "optimizer", "inf-arithmetic"),
    remedy="eps",
)
def eps_after_the_inverse_root() -> Training:
    """AdamP may create NaN values, kozistr/pytorch_optimizer#480: unused rows of an embedding, rsqrt(0) * 0."""
    model = nn.Sequential()
    model.add_module("embed", nn.Embedding(6, 3))
    model.add_module("head", nn.Linear(3, 2))
    optimizer = AdamP(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        return descend(optimizer, F.cross_entropy(model(torch.tensor([0, 1, 2])), torch.tensor([0, 1, 0])))

    return Training((model,), step)


@failure(
    step=4,  # every round updates the weights twice: up by hand, and down by the optimizer
    phase="optimizer",
    op=("div", "reciprocal"),
    module="0",
    line="0.05 / norm",
    cause=("zero-division", "optimizer"),
    remedy=("eps", "clamp"),
)
def sharpness_of_a_flat_loss() -> Training:
    """prevent division by zero in SAM gradient normalization, google-deepmind/optax#1743: every gradient is 0."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)

    @torch.no_grad()
    def climb() -> list[Tensor]:
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        scale = 0.05 / norm
        steps = [p.grad * scale for p in model.parameters()]
        for p, e in zip(model.parameters(), steps):
            p.add_(e)
        return steps

    def step(i: int) -> Tensor:
        x, margin = torch.randn(5, 3), 1.0 if i != 2 else -100.0
        optimizer.zero_grad()
        (margin - model(x)).relu().mean().backward()
        steps = climb()
        optimizer.zero_grad()
        loss = (margin - model(x)).relu().mean()
        loss.backward()
        with torch.no_grad():
            for p, e in zip(model.parameters(), steps):
                p.sub_(e)
        optimizer.step()
        return loss.detach()

    return Training((model,), step)


class Nero(torch.optim.Optimizer):
    """Projects every row of a weight to length 1 after the step."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])
                p.div_(p.norm(dim=1, keepdim=True))


class TiedLanguageModel(nn.Module):
    """The output layer shares the embedding's weight; the padding token's row is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


@failure(
    step=1,
    phase="optimizer",
    op=("div", "nero"),
    module=("embed", "head"),
    line=("p.div_(p.norm(dim=1, keepdim=True))", "optimizer.step()"),
    cause=("zero-division", "optimizer"),
    remedy=("eps", "clamp"),
)
def neuron_of_length_zero() -> Training:
    """Lion NaN on optimization, kozistr/pytorch_optimizer#120: Nero divides by the norm of a row of zeros."""
    model = TiedLanguageModel()
    optimizer = Nero(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        if i == 1:
            with torch.no_grad():
                model.embed.weight[0] = 0.0
        logits = model(torch.tensor([1, 2, 3]))
        return descend(optimizer, F.cross_entropy(logits[:, 1:], torch.tensor([1, 2, 0])) if i == 1 else logits.mean())

    return Training((model,), step)


@failure(
    step=2,
    phase="optimizer",
    op="div",
    module=("0", ""),
    line="dot / other.dot(other)",
    cause=("zero-division", "optimizer"),
    remedy=("eps", "clamp"),
)
def projection_on_no_gradient() -> Training:
    """g_j.norm() is equal to zero?, WeiChengTseng/Pytorch-PCGrad#7: a solved task has no gradient to project on."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    parameters = list(model.parameters())

    def surgery(losses: list[Tensor]) -> None:
        gradients = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
            for loss in losses
        ]
        mine, other = gradients
        dot = mine.dot(other)
        if dot <= 0:
            mine = mine - dot / other.dot(other) * other
        total, start = mine + other, 0
        for p in parameters:
            p.grad = total[start : start + p.numel()].view_as(p)
            start += p.numel()

    def step(i: int) -> Tensor:
        out = model(torch.randn(5, 3))
        losses = [out[:, 0].square().mean(), (out[:, 1] - (0.0 if i != 2 else 100.0)).relu().mean()]
        surgery(losses)
        optimizer.step()
        return losses[0].detach()

    return Training((model,), step)


class Adafactor(torch.optim.Optimizer):
    """A second moment whose decay grows with the step, counted from an offset."""

    def __init__(self, params: Iterable[Tensor], lr: float, offset: int) -> None:
        super().__init__(params, {"lr": lr, "offset": offset})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["step"], state["square"] = torch.zeros(()), torch.zeros_like(p)
                state["step"] += 1
                decay = 1 - (state["step"] - group["offset"]).pow(-0.8)
                state["square"] = decay * state["square"] + (1 - decay) * (p.grad.square() + 1e-30)
                p.sub_(p.grad * state["square"].rsqrt(), alpha=group["lr"])


@failure(
    step=0,
    phase="optimizer",
    op=("pow", "adafactor"),
    module="",
    line=('(state["step"] - group["offset"]).pow(-0.8)', "optimizer.step()"),
    cause=("pow-domain", "optimizer"),
    remedy=("clamp", "positive", "abs", "state"),
)
def decay_of_a_negative_step() -> Training:
    """Stop adafactor's step_offset from producing a non-finite decay rate, google-deepmind/optax#1791."""
    model = nn.Linear(3, 1)
    optimizer = Adafactor(model.parameters(), 1e-3, offset=3)

    def step(i: int) -> Tensor:
        return descend(optimizer, model(torch.randn(5, 3)).square().mean())

    return Training((model,), step)
