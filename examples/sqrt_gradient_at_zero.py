"""A distance as sqrt of a sum of squares: two equal points are at distance 0, where the derivative is infinite.

What you see: the loss is finite; sqrt is named in the backward pass, with its operand 0 and the remedy: an eps inside.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace


def distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.sqrt((a - b).square().sum(-1))


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
with nantrace.watch(model):
    for batch in range(30):
        anchor, negative = torch.randn(16, 6), torch.randn(16, 6)
        positive = anchor + 0.1 * torch.randn(16, 6)
        if batch == 17:
            positive[5] = anchor[5]  # the same photograph twice
        anchor, positive, negative = model(anchor), model(positive), model(negative)
        loss = F.relu(distance(anchor, positive) - distance(anchor, negative) + 1.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
