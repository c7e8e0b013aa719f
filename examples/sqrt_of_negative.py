"""A standard deviation as sqrt(E[x²] - E[x]²): for a loud signal the difference cancels and comes out negative.

What you see: sqrt in `pool`, its negative operand, and the remedy: clamp it, or compute the variance directly.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace


class StatisticsPooling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mean, square = x.mean(-1), (x * x).mean(-1)
        return torch.cat([mean, torch.sqrt(square - mean * mean)], -1)


class Speaker(nn.Module):
    """A convolution over time, pooled, and classified."""

    def __init__(self) -> None:
        super().__init__()
        self.frames, self.pool, self.head = nn.Conv1d(4, 8, 3), StatisticsPooling(), nn.Linear(16, 5)

    def forward(self, sound: Tensor) -> Tensor:
        return self.head(self.pool(self.frames(sound)))


torch.manual_seed(0)
model = Speaker()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
with nantrace.watch(model):
    for batch in range(20):
        sound = torch.randn(6, 4, 100)
        if batch == 12:
            sound[2] = 900.0 + 1e-3 * torch.randn(4, 100)  # a microphone with an offset
        optimizer.zero_grad()
        F.cross_entropy(model(sound), torch.randint(5, (6,))).backward()
        optimizer.step()
