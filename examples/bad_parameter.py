"""A parameter made with torch.empty and never initialised: whatever was in that memory is now a weight.

What you see: phase "parameters", the parameter's path, the element, and the layer that used it first.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace


class Gate(nn.Module):
    """A learned scale per feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.scale)


torch.manual_seed(0)
torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN, as unlucky memory does
model = nn.Sequential(nn.Linear(4, 8), Gate(8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
with nantrace.watch(model):
    for _ in range(10):
        x = torch.randn(16, 4)
        optimizer.zero_grad()
        F.cross_entropy(model(x), (x.sum(1) > 0).long()).backward()
        optimizer.step()
