"""A colour curve x ** (1 / 2.2) on the output of a network: a pixel below 0 has no fractional power.

What you see: pow in `curve`, its negative operand, and the remedy: clamp to 0 before the power.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace


class Curve(nn.Module):
    def forward(self, light: Tensor) -> Tensor:
        return light ** (1 / 2.2)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 1, 3, padding=1))
        self.curve = Curve()

    def forward(self, noisy: Tensor) -> Tensor:
        return self.curve(noisy + 0.1 * self.body(noisy))


torch.manual_seed(0)
model = Denoiser()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
with nantrace.watch(model):
    for batch in range(20):
        clean = 0.5 + 0.4 * torch.rand(4, 1, 12, 12)
        noisy = clean + (0.05 if batch < 12 else 0.3) * torch.randn_like(clean)
        optimizer.zero_grad()
        F.mse_loss(model(noisy), clean ** (1 / 2.2)).backward()
        optimizer.step()
