"""torch.where hides log(0) in the forward pass; in the backward pass 0 * inf brings it back as NaN.

What you see: a finite loss, log named in the backward pass, and the remedy: fill the operand before the log.
"""

import torch
from torch import Tensor, nn

import nantrace


def evenness(p: Tensor, padding: Tensor) -> Tensor:
    return torch.where(padding, torch.zeros(()), torch.log(p)).sum(-1)


class Attention(nn.Module):
    """How much each word of a padded sentence counts."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(8, 1)

    def forward(self, words: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.score(words).squeeze(-1).masked_fill(padding, -1e9)
        p = torch.softmax(scores, -1)
        return (p.unsqueeze(-1) * words).sum(1), evenness(p, padding)


torch.manual_seed(0)
model = Attention()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with nantrace.watch(model):
    for batch in range(40):
        lengths = torch.full((16, 1), 6) if batch < 20 else torch.randint(1, 7, (16, 1))
        padding = torch.arange(6) >= lengths
        sentence, even = model(torch.randn(16, 6, 8), padding)
        optimizer.zero_grad()
        (sentence.square().mean() - 0.1 * even.mean()).backward()
        optimizer.step()
