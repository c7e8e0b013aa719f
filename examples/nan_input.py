"""A table with a gap: one sensor did not answer, and its NaN went into the batch.

What you see: the field `readings` of the batch, the row and the column of the NaN, and the layer that read it first.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import nantrace


class Regressor(nn.Module):
    """Normalised readings and a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(inplace=True), nn.Linear(16, 1))

    def forward(self, readings: Tensor) -> Tensor:
        return self.net(self.norm(readings)).squeeze(-1)


torch.manual_seed(0)
table = torch.randn(640, 6)
target = table.sum(1)
table[417, 4] = float("nan")
loader = DataLoader(TensorDataset(table, target), batch_size=32, shuffle=True)
model = Regressor()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
with nantrace.watch(model):
    for readings, wanted in loader:
        optimizer.zero_grad()
        F.mse_loss(model(readings), wanted).backward()
        optimizer.step()
