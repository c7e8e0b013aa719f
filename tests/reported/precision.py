"""Dtypes that are too coarse: an eps that rounds to 0, a sum that underflows, gradients that were never unscaled."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from .cases import Training, descend, failure


class Saturation(nn.Module):
    """The saturation of an RGB image."""

    def forward(self, image: Tensor) -> Tensor:
        largest, smallest = image.amax(1), image.amin(1)
        return (largest - smallest) / (largest + 1e-8)


class ColorNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.saturation, self.head = Saturation(), nn.Linear(4, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.saturation(image).flatten(1))


@failure(
    step=1,
    phase="forward",
    op="div",
    module="saturation",
    line="(largest - smallest) / (largest + 1e-8)",
    cause=("precision", "zero-division"),
    remedy=("float32", "eps", "larger"),
)
def black_pixel_in_half() -> Training:
    """rgb_to_hsv returns NaN saturation for black pixels in float16, kornia/kornia#4560: 1e-8 rounds to 0."""
    model = ColorNet().half()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        image = torch.rand(3, 3, 2, 2).half() * 0.5 + 0.2
        if i == 1:
            image[0, :, 1, 1] = 0.0
        return descend(optimizer, F.cross_entropy(model(image).float(), torch.tensor([0, 1, 0])))

    return Training((model,), step)


@failure(
    step=0,
    phase=("loss", "input"),
    op="div",
    module=None,
    line="first / (first + second)",
    cause=("zero-division", "precision"),
    remedy=("eps", "clamp", "float32"),
)
def noise_time_of_two_underflows() -> Training:
    """Risk of NaN loss in Pi0's sampling_beta implementation, huggingface/lerobot#1096: 0 / (0 + 0) in bfloat16."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def sample_time(n: int) -> Tensor:
        first = torch.empty(n, dtype=torch.bfloat16).uniform_(0, 1).pow(1 / 0.01)
        second = torch.empty(n, dtype=torch.bfloat16).uniform_(0, 1).pow(1 / 0.01)
        return first / (first + second)

    def step(i: int) -> Tensor:
        time, action, noise = sample_time(8).float()[:, None], torch.randn(8, 3), torch.randn(8, 3)
        moved = time * noise + (1 - time) * action
        velocity = model(torch.cat([moved, time], 1))
        return descend(optimizer, (velocity - (noise - action)).square().mean())

    return Training((model,), step, 6)


@failure(
    step=1,
    phase="backward",
    op=("_to_copy", "to_copy", "to", "float"),
    module=None,
    line="model(x.half()).float()",
    cause=("overflow", "precision"),
    remedy=("unscale", "scale", "scaler", "float32", "bfloat16"),
)
def scaled_gradients_given_to_the_optimizer() -> Training:
    """add scaler.unscale_(optimizer), pytorch/examples#1196: a loss scaled by hand, gradients in float16."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).half()
    optimizer = torch.optim.SGD(model.parameters(), 1e-8)

    def step(i: int) -> Tensor:
        x, scale = torch.randn(4, 3), 1.0 if i == 0 else 2.0**20
        loss = (model(x.half()).float() - 5.0).square().mean()
        optimizer.zero_grad()
        (loss * scale).backward()
        optimizer.step()
        return loss.detach()

    return Training((model,), step)


class StateDependentPolicy(nn.Module):
    """A Gaussian policy with a learned deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_std = nn.Linear(3, 2), nn.Parameter(torch.zeros(2))

    def forward(self, observation: Tensor) -> Normal:
        return Normal(self.mean(observation), self.log_std.exp(), validate_args=False)


@failure(
    step=2,
    phase="loss",
    op="div",
    module=None,
    line="policy.log_prob(action)",
    cause=("zero-division", "precision"),
    remedy=("eps", "clamp", "float64", "larger"),
)
def deviation_whose_square_underflows() -> Training:
    """log_std filled with NaNs when using PPO with use_sde=True, DLR-RM/stable-baselines3#1593: a tiny deviation."""
    model = StateDependentPolicy()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        if i == 2:
            with torch.no_grad():
                model.log_std[1] = -60.0
        policy = model(torch.randn(5, 3))
        action = torch.randn(5, 2)
        return descend(optimizer, -policy.log_prob(action).mean())

    return Training((model,), step)
