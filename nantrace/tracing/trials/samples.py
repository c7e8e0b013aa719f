"""Bad samples leave the batch: for a trial, a good sample of the same batch takes the place of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...recording.tape import EXTERNAL, Token, tokens_read_by
from ..run import Run, unobserved
from .operands import CannotTry


@contextmanager
def with_samples_replaced(run: Run) -> Iterator[None]:
    """In everything that came in with the batch, the rows of bad samples are those of a good one."""
    given = {id(token): token for event in run.events for token in tokens_read_by(event) if _is_data(token)}
    tensors = {key: token.saved if token.saved is not None else token.held for key, token in given.items()}
    batch = {key: tensor for key, tensor in tensors.items() if tensor is not None and tensor.dim() > 0}
    with unobserved(run.microscope), torch.no_grad():
        sizes = {len(tensor) for tensor in batch.values() if _bad_rows(tensor).any()}
        if len(sizes) != 1:
            raise CannotTry("the bad values have no sample of their own")
        size = sizes.pop()
        rows = [key for key, tensor in batch.items() if len(tensor) == size]
        bad = torch.stack([_bad_rows(batch[key]).cpu() for key in rows]).any(dim=0)
        if bool(bad.all()):
            raise CannotTry("every sample of the batch is bad")
        order = torch.arange(size)
        order[bad] = int((~bad).nonzero()[0])
        for key in rows:
            tensor = batch[key]
            if bool(_bad_rows(tensor).any()) or len(rows) > 1:
                run.twins[key] = tensor.detach()[order.to(tensor.device)].requires_grad_(tensor.requires_grad)
    yield


def _is_data(token: Token) -> bool:
    held = token.held
    return token.kind == EXTERNAL and held is not None and held.layout is torch.strided and held.is_leaf


def _bad_rows(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return torch.zeros(len(tensor), dtype=torch.bool, device=tensor.device)
    return ~torch.isfinite(tensor.detach()).reshape(len(tensor), -1).all(dim=1)
