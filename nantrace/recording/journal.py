"""What hand-written updates and steps with a closure write, as it was before the first write of the step.

They run under the glue mode, which sees every op before it writes: a copy is taken then, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

MAX_BYTES = 1 << 28


class Journal:
    """The first-write copies of a step."""

    def __init__(self) -> None:
        self.incomplete = ""  # what could not be kept, in half a sentence
        self._copies: dict[tuple[object, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self._held = 0

    def before_write(self, targets: Iterable[torch.Tensor]) -> None:
        """Keep what is about to be overwritten for the first time in this step."""
        for target in targets:
            if target.layout is not torch.strided or target.is_inference():
                continue
            place = (target.data_ptr(), target.shape, target.stride(), target.dtype, target.device)
            if place in self._copies:
                continue
            self._held += target.numel() * target.element_size()
            if self._held > MAX_BYTES:
                self.incomplete = f"it wrote more than {MAX_BYTES >> 20} MiB, and copies are kept of that much at most"
                continue
            alias = target.detach()
            self._copies[place] = (alias, alias.clone())

    def put_back(self) -> None:
        """Undo every write, the last one first: what overlaps ends as it began."""
        with torch.no_grad():
            for target, copy in reversed(self._copies.values()):
                target.copy_(copy)

    def end_step(self) -> None:
        """What was written stands."""
        self._copies.clear()
        self._held = 0
        self.incomplete = ""
