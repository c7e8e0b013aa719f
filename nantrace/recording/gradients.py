"""The gradients that the last backward of the step left in the parameters."""

from __future__ import annotations

import weakref

import torch

from .alarm import was_zeroed
from .names import ModuleNames
from .tape import version_of

_SAMPLED = 8  # parameters that stand for all in telling whether a backward has reached any


class Gradients:
    """Knows whether there are gradients to be used, whose they are, and whether the user has dropped them."""

    def __init__(self, names: ModuleNames) -> None:
        self.present = False
        self._names = names
        self._first: tuple[torch.nn.Parameter, int, int] | None = (
            None  # parameter, identity and version of its gradient
        )
        self._owners: dict[int, tuple[torch.Tensor, torch.nn.Parameter, str]] | None = None
        self.served_others = False  # an optimizer of other parameters has stepped since the last backward
        self._used: list[tuple[torch.nn.Parameter, weakref.ref[torch.Tensor], int]] = []  # left by the last step

    def noted(self) -> None:
        """A backward has accumulated. One gradient stands for all: zero_grad drops them together."""
        self._owners = None
        self._first = None
        self.served_others = False
        if self._used and all(_untouched(p.grad, left(), version) for p, left, version in self._used):
            self.present = False  # another model's backward: what is here was used by the step that has ended
            return
        for parameter, _ in self._names.parameters.values():
            gradient = parameter.grad
            if gradient is not None:
                self._first = (parameter, id(gradient), version_of(gradient))
                break
        self.present = self._first is not None

    def forget(self) -> None:
        """The step has ended: what the parameters carry now is not waiting to be used."""
        self.present = False
        self._first = None
        self._owners = None
        self.served_others = False
        parameters = list(self._names.parameters.values())
        some = parameters[:: max(1, len(parameters) // _SAMPLED)]
        self._used = [(p, weakref.ref(g), version_of(g)) for p, _ in some if (g := p.grad) is not None]

    def dropped(self) -> bool:
        """Whether the gradients were set to None, replaced, or zeroed since."""
        if self._first is None:
            return False
        parameter, identity, version = self._first
        gradient = parameter.grad
        return gradient is None or id(gradient) != identity or was_zeroed(gradient, version)

    def owner(self, tensor: torch.Tensor) -> tuple[torch.nn.Parameter, str] | None:
        """The parameter whose gradient this tensor is and its name, or None."""
        if not self.present:
            return None
        if self._owners is None:
            parameters = self._names.parameters.values()
            self._owners = {id(g): (g, p, name) for p, name in parameters if (g := p.grad) is not None}
        found = self._owners.get(id(tensor))
        return found[1:] if found is not None and found[0] is tensor else None

    def identities(self) -> dict[int, tuple[int, int]]:
        """Every gradient's identity and version, by the identity of its parameter."""
        return {
            identity: (id(gradient), version_of(gradient))
            for identity, (parameter, _) in self._names.parameters.items()
            if (gradient := parameter.grad) is not None
        }


def _untouched(gradient: torch.Tensor | None, before: torch.Tensor | None, version: int) -> bool:
    """Whether this is still the gradient from before, and nothing has been added to it."""
    return gradient is not None and gradient is before and version_of(gradient) == version
