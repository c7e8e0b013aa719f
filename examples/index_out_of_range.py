"""A tokenizer with more words than the embedding has rows: one sentence holds an id that is too large.

What you see: the IndexError of torch as ever, and below it a note: embedding in `words`, index 1000, allowed 0 to 999.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

VOCABULARY = ["<pad>", *(f"word{i}" for i in range(999)), "<new>"]


class Tagger(nn.Module):
    """The mean of the word vectors, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(1000, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids).mean(1))


torch.manual_seed(0)
model = Tagger()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
with nantrace.watch(model):
    for batch in range(20):
        ids = torch.randint(1, 1000, (8, 12))
        if batch == 13:
            ids[5, 3] = VOCABULARY.index("<new>")
        optimizer.zero_grad()
        F.cross_entropy(model(ids), torch.randint(3, (8,))).backward()
        optimizer.step()
