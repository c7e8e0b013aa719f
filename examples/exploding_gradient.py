"""A recurrent network of sines: its states stay between -1 and 1, but the longer the sequences become, the larger the
gradient that comes back through them.

What you see: a derivative inside `cell` overflowed, how fast the gradient grew per call, and the remedy: clip its norm.
"""

import torch
from torch import Tensor, nn

import nantrace


class Cell(nn.Module):
    """One step of time."""

    def __init__(self) -> None:
        super().__init__()
        self.hear, self.keep = nn.Linear(1, 16), nn.Linear(16, 16)

    def forward(self, heard: Tensor, state: Tensor) -> Tensor:
        return torch.sin(30 * (self.keep(state) + self.hear(heard)))


torch.manual_seed(0)
model = nn.ModuleDict({"cell": Cell(), "tell": nn.Linear(16, 1)})
optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
with nantrace.watch(model):
    for length in range(5, 100, 5):  # first short sequences, then longer ones
        sound, state = torch.rand(length, 8, 1), torch.zeros(8, 16)
        for heard in sound:
            state = model["cell"](heard, state)
        loss = (model["tell"](state) - sound.mean(0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
