"""A learning rate that is too high: the loss grows step by step until a square overflows.

What you see: the op that overflowed, and why: the history shows the growth since the first steps, and by how much
the learning rate has to come down.
"""

import torch
from torch import nn
from torch.nn import functional as F

import nantrace

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
true_weights = torch.randn(8, 1)
with nantrace.watch(model):
    for _ in range(500):
        x = 3 * torch.randn(64, 8)
        loss = F.mse_loss(model(x), x @ true_weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
