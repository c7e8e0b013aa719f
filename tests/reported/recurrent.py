"""What grows from step to step: gradients through time, a loss under too large a learning rate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .cases import Training, descend, failure


class Cell(nn.Module):
    """One step of a recurrent net with a bounded state and a steep slope."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.Linear(4, 4, bias=False)
        nn.init.orthogonal_(self.recurrent.weight)

    def forward(self, state: Tensor, x: Tensor) -> Tensor:
        return torch.sin(30.0 * self.recurrent(state) + x)


class Unrolled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = Cell(), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            state = self.cell(state, x[:, t])
        return self.head(state)


@failure(
    step=1,
    phase="backward",
    op=("sin", "mul", "linear", "addmm", "mm", "matmul", "add"),
    module=("cell", "cell.recurrent"),
    line="torch.sin(30.0 * self.recurrent(state) + x)",
    cause=("exploding-gradient", "overflow"),
    remedy=("clip_grad_norm_", "clip"),
)
def gradient_through_sixty_steps() -> Training:
    """train_lm.py using LSTM results nan/inf, asappresearch/sru#2: the gradient explodes through time, unclipped."""
    model = Unrolled()
    optimizer = torch.optim.SGD(model.parameters(), 1e-9)

    def step(i: int) -> Tensor:
        return descend(optimizer, model(torch.randn(3, 60 if i == 1 else 4, 4)).square().mean())

    return Training((model,), step)


@failure(
    step=1,
    phase="loss",
    op=("exp", "square", "pow", "mul"),
    module=None,
    line="torch.cumsum(torch.exp(risk), 0)",
    cause=("learning-rate", "overflow"),
    remedy=("learning rate", "lr", "logcumsumexp", "logsumexp", "max"),
)
def survival_of_unscaled_features() -> Training:
    """loss goes to nan, jaredleekatzman/DeepSurv#14: features of size 100 and a large step, then exp of the risk."""
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 5e-2)
    nn.init.zeros_(model.weight)

    def cox(risk: Tensor, events: Tensor) -> Tensor:
        hazards = torch.cumsum(torch.exp(risk), 0)
        return -((risk - torch.log(hazards)) * events).mean()

    def step(i: int) -> Tensor:
        risk = model(torch.randn(8, 3) * 100 + 50).squeeze(1)
        return descend(optimizer, cox(risk, (torch.rand(8) > 0.3).float()))

    return Training((model,), step)
