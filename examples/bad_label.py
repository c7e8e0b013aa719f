"""A missing target: the loss of that sample is NaN, and masking it after the loss does not help.

What you see: phase "input", the label that is NaN with its place, and the loss op that read it.
"""

import torch
from torch import nn
from torch.nn import functional as F

import nantrace

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
with nantrace.watch(model):
    for batch in range(40):
        features = torch.randn(16, 5)
        target = torch.stack([features.sum(1), features.prod(1), features.amax(1)], 1)
        if batch >= 25:
            target[3, 1] = float("nan")  # this laboratory does not measure the second value
        loss = F.mse_loss(model(features), target, reduction="none")
        loss = (loss * ~torch.isnan(target)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
