"""A parameter or buffer with its non-finite elements filled in, for the time of a trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...model import Change
from ...recording.names import ModuleNames, clean
from ...torch_private import own_buffers, own_parameters
from ..run import Run, unobserved
from .operands import CannotTry


@contextmanager
def with_parameter_mended(change: Change, names: ModuleNames, run: Run) -> Iterator[None]:
    """A copy stands in its place wherever a watched module holds it: tied weights have several places."""
    places = [
        (table, name, tensor)
        for root in names.roots
        for path, module in root.named_modules()
        for table in (own_parameters(module), own_buffers(module))
        for name, tensor in table.items()
        if tensor is not None and clean(f"{path}.{name}" if path else name) == change.name
    ]
    if not places:
        raise CannotTry(f"{change.name} was not found in the watched modules")
    tensor = places[0][2]
    with unobserved(run.microscope), torch.no_grad():
        values = torch.where(torch.isfinite(tensor), tensor, change.values[0])
        copy = torch.nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else values
    tied = [(table, name) for table, name in _places_of(tensor, names)]
    for table, name in tied:
        table[name] = copy
    try:
        yield
    finally:
        for table, name in tied:
            table[name] = tensor


def _places_of(tensor: torch.Tensor, names: ModuleNames) -> list[tuple[dict[str, torch.Tensor | None], str]]:
    return [
        (table, name)
        for root in names.roots
        for module in root.modules()
        for table in (own_parameters(module), own_buffers(module))
        for name, held in table.items()
        if held is tensor
    ]
