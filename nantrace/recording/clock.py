"""Counting steps: when one update of the model ends and the next begins."""

from __future__ import annotations

import gc
import weakref

import torch

from .names import ModuleNames

# optimizers found by an earlier watch in this process: a watch around every single step must not search again
_found: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
_searched: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


class StepClock:
    """A step ends when every optimizer in use has stepped, or when one steps again.

    Where nothing is ever updated, each outermost entry call under no_grad is a step.
    """

    def __init__(self, names: ModuleNames) -> None:
        self.updates = 0
        self.calls = 0
        self.graded = False  # a backward was seen: from now on steps are updates
        self._names = names
        self._in_use: set[int] = set()
        self._stepped: set[int] = set()

    @property
    def step(self) -> int:
        """The number of the running step."""
        return self.updates if self.graded else self.calls

    def stepped_already(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether this optimizer has stepped in the running step: then that step ended before."""
        return id(optimizer) in self._stepped

    @property
    def has_optimizers(self) -> bool:
        """Whether an optimizer has stepped since the watch began."""
        return bool(self._in_use)

    @property
    def stepped(self) -> bool:
        """Whether any optimizer has stepped in the running step."""
        return bool(self._stepped)

    @property
    def stepped_now(self) -> frozenset[int]:
        """The identities of the optimizers that have stepped in the running step."""
        return frozenset(self._stepped)

    def awaits_others(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether other optimizers in use have yet to step before the running step ends."""
        self._know_those_in_use(optimizer)
        return bool(self._in_use - self._stepped - {id(optimizer)})

    def note_step(self, optimizer: torch.optim.Optimizer) -> bool:
        """An optimizer has stepped (or a scaler skipped it); returns whether that was the last one in use."""
        self._know_those_in_use(optimizer)
        self._in_use.add(id(optimizer))
        self._stepped.add(id(optimizer))
        _found.add(optimizer)
        return self._stepped >= self._in_use

    def advance(self) -> int:
        """End the running step and return its number."""
        ended = self.step
        if self._stepped:
            self._in_use = set(self._stepped)  # what did not step is not in use
        self._stepped.clear()
        if self.graded:
            self.updates += 1
        else:
            self.calls += 1
        return ended

    def _know_those_in_use(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._in_use:
            self._in_use = {id(found) for found in self._search()} | {id(optimizer)}

    def _search(self) -> list[torch.optim.Optimizer]:
        """The optimizers in the process that hold a watched parameter: 60 ms, once."""
        if not all(root in _searched for root in self._names.roots):
            kinds = _kinds_of(torch.optim.Optimizer)
            # type(), not isinstance(): dead weak proxies among the objects would raise
            _found.update(thing for thing in gc.get_objects() if type(thing) in kinds)
            _searched.update(self._names.roots)
        return [optimizer for optimizer in _found if self._holds_watched(optimizer)]

    def _holds_watched(self, optimizer: torch.optim.Optimizer) -> bool:
        return any(self._names.parameter(p) is not None for group in optimizer.param_groups for p in group["params"])


def _kinds_of(kind: type) -> set[type]:
    """A class and everything derived from it."""
    derived: list[type] = kind.__subclasses__()
    return {kind}.union(*(_kinds_of(one) for one in derived))
