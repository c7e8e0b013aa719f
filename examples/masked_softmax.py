"""Attention over padded sentences: an empty sentence masks every position, and the softmax has nothing to share out.

What you see: softmax in `attention`, the row that is all -inf, and the remedy: guard fully masked rows. The other
-inf of the mask are listed as expected.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace


class Attention(nn.Module):
    """One query per sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Parameter(torch.randn(8)), nn.Linear(8, 8)

    def forward(self, words: Tensor, padding: Tensor) -> Tensor:
        scores = (self.key(words) @ self.query).masked_fill(padding, float("-inf"))
        return (torch.softmax(scores, dim=-1).unsqueeze(-1) * words).sum(1)


torch.manual_seed(0)
model = nn.ModuleDict({"attention": Attention(), "head": nn.Linear(8, 2)})
model.forward = lambda words, padding: model["head"](model["attention"](words, padding))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
with nantrace.watch(model):
    for batch in range(30):
        lengths = torch.randint(0 if batch > 20 else 1, 7, (16, 1))
        padding = torch.arange(6) >= lengths
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(16, 6, 8), padding), torch.randint(2, (16,))).backward()
        optimizer.step()
