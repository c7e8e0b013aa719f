"""Data loading in other processes: what they do is not recorded, and costs them nothing."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, Dataset

import nantrace

from ..builders import Mlp
from ..traces_left import traces_left


class Report(Dataset[torch.Tensor]):
    """Items that say how much of ours is left in the process that makes them."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(len(traces_left()))


def test_a_forked_worker_is_not_watched() -> None:
    """In a DataLoader worker that was forked inside the block nothing of ours is left; the parent is still watched."""
    model = Mlp()
    with nantrace.watch(model) as tracer:
        loader = DataLoader(Report(), batch_size=2, num_workers=1, multiprocessing_context="fork")
        left = torch.cat(list(loader))
        watching = len(traces_left())
        model(torch.randn(5, 4)).sum().backward()

    assert left.tolist() == [0, 0, 0, 0]
    assert watching > 0
    assert len(tracer.reports) == 0
