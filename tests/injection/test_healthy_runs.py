"""The same architectures with nothing planted: silence, and the same bits with and without a watch."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="the architectures are those of transformers (the `libraries` extra)")

import nantrace

from .architectures import ARCHITECTURES
from .places import loss_of

STEPS = 10


def train(name: str, *, watched: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Losses of ten steps of AdamW (every second one computed by the model itself), and the state after them."""
    torch.manual_seed(1)
    architecture = ARCHITECTURES[name]
    model = architecture.build().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    batches = torch.Generator().manual_seed(1)
    losses: list[Tensor] = []
    with nantrace.watch(model) if watched else nullcontext() as tracer:
        for step in range(STEPS):
            optimizer.zero_grad()
            loss, _ = loss_of(architecture, model, architecture.batch(batches), in_model=step % 2 == 0)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.detach())
    if tracer is not None:
        assert (tracer.step, tracer.reports, tracer.contained) == (STEPS, [], 0)
    return losses, model.state_dict()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_healthy_run_is_silent_and_bit_identical(name: str) -> None:
    """Nothing is raised, counted or changed: losses, parameters and buffers are the same, bit for bit."""
    plain_losses, plain = train(name, watched=False)
    losses, state = train(name, watched=True)

    assert all(torch.equal(one, other) for one, other in zip(plain_losses, losses, strict=True))
    assert plain.keys() == state.keys()
    assert all(torch.equal(plain[key], state[key]) for key in plain)
