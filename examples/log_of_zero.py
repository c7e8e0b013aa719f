"""A cross-entropy written by hand: the model becomes so sure that a sigmoid rounds to 1, and log(1 - p) is log(0).

What you see: log in the loss, the element where p is exactly 1, and the remedy: binary_cross_entropy_with_logits.
"""

import torch
from torch import Tensor, nn

import nantrace


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    p = torch.sigmoid(logits)
    return -(labels * torch.log(p) + (1 - labels) * torch.log(1 - p)).mean()


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
with nantrace.watch(model):
    for _ in range(500):
        labels = torch.randint(2, (32, 1)).float()
        signals = torch.randn(32, 8) + 4 * (labels - 0.5)
        loss = cross_entropy(model(signals), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
