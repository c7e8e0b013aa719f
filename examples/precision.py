"""Adam in half precision: its eps of 1e-8 is 0 in float16, and a parameter without a gradient divides 0 by 0.

What you see: phase "optimizer", the line of optimizer.step(), the first parameter that went bad, and the remedy.
"""

import torch
from torch import nn
from torch.nn import functional as F

import nantrace

torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(40, 16), nn.Flatten(), nn.Linear(64, 4)).half()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
with nantrace.watch(model):
    for _ in range(50):
        ids = torch.randint(1, 40, (8, 4))
        loss = F.cross_entropy(model(ids).float(), ids[:, 0] % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
