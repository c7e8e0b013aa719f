"""A mean over the tokens of each class: a batch without any token of one class divides 0 by 0.

What you see: div in `ClassMeans`, the class whose count is 0, and the remedy: an eps, or leave empty classes out.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace


class ClassMeans(nn.Module):
    def forward(self, tokens: Tensor, classes: Tensor) -> Tensor:
        member = F.one_hot(classes, 4).float()
        return (member.T @ tokens) / member.sum(0).unsqueeze(1)


class Prototypes(nn.Module):
    """Tokens are scored by their distance to the mean of each class."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.means = nn.Linear(6, 8), ClassMeans()

    def forward(self, tokens: Tensor, classes: Tensor) -> Tensor:
        tokens = self.embed(tokens)
        return -torch.cdist(tokens, self.means(tokens, classes))


torch.manual_seed(0)
model = Prototypes()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
with nantrace.watch(model):
    for _ in range(300):
        classes = torch.randint(4, (16,))
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(16, 6) + classes[:, None], classes), classes).backward()
        optimizer.step()
