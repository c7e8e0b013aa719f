"""A language model on short documents: a batch in which every label is ignored has a mean over nothing.

What you see: nll_loss in the loss, that all labels are -100, and the remedy: skip such a batch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

WORDS = 50


class LanguageModel(nn.Module):
    """An embedding, a GRU, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.gru = nn.Embedding(WORDS, 16), nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.gru(self.words(ids))[0])


torch.manual_seed(0)
model = LanguageModel()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
with nantrace.watch(model):
    for _ in range(60):
        ids = torch.randint(WORDS, (2, 8))
        labels = ids.roll(-1, dims=1)
        prompt = torch.randint(1, 9, (2, 1))
        labels[torch.arange(8) < prompt] = -100  # no loss on the prompt
        optimizer.zero_grad()
        F.cross_entropy(model(ids).flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
