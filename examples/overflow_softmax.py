"""A softmax written by hand: the scores grow while the model trains, and exp overflows to infinity.

What you see: exp in `softmax` is named, not the division that turned inf / inf into the NaN, with the score that
was too large and the remedy: subtract the maximum, or use torch.softmax.
"""

import torch
from torch import Tensor, nn

import nantrace


def softmax(scores: Tensor) -> Tensor:
    weights = torch.exp(scores)
    return weights / weights.sum(dim=1, keepdim=True)


class Matcher(nn.Module):
    """Which of the captions belongs to the picture?"""

    def __init__(self) -> None:
        super().__init__()
        self.pictures, self.captions = nn.Linear(12, 32), nn.Linear(12, 32)

    def forward(self, pictures: Tensor, captions: Tensor) -> Tensor:
        return softmax(self.pictures(pictures) @ self.captions(captions).T)


torch.manual_seed(0)
model = Matcher()
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
with nantrace.watch(model):
    for _ in range(300):
        pictures = torch.randn(32, 12)
        matches = model(pictures, pictures + 0.3 * torch.randn(32, 12))
        loss = -torch.log(matches.diagonal() + 1e-9).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
