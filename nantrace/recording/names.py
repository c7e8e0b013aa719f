"""Which module is which: module paths of everything watched, found by identity."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..torch_private import own_buffers, own_parameters, wrapped_by_compile
from .assigned import Slots, plain_tensors_of, slots_of

# names that torch's own wrappers put into a path (torch.compile, FSDP, activation checkpointing)
_WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))


@dataclass(frozen=True, slots=True)
class ModuleTree:
    """What one module consists of, read once."""

    modules: list[torch.nn.Module]  # in `modules()` order
    buffer_owners: list[tuple[str, torch.nn.Module]]  # path and module of those that own buffers
    parameters: list[tuple[torch.nn.Module, str, torch.Tensor]]  # owner, name in the owner, parameter
    changing: Slots  # attributes that a forward of the user's may change
    tensors: Slots  # tensors that are no buffers

    def swapped(self) -> list[tuple[torch.nn.Module, str, torch.Tensor]]:
        """The tensors that stand in a parameter's place just now (`functional_call`, weights of an inner loop)."""
        return [
            (owner, name, now)
            for owner, name, parameter in self.parameters
            if (now := own_parameters(owner).get(name)) is not parameter and now is not None
        ]


class ModuleNames:
    """The paths of the watched modules and the names of their parameters.

    The paths are those of each root's own `named_modules()`.
    """

    def __init__(self, roots: tuple[torch.nn.Module, ...]) -> None:
        self.roots = roots
        self.paths: dict[int, tuple[torch.nn.Module, str]] = {}
        self.parameters: dict[int, tuple[torch.nn.Parameter, str]] = {}
        self._strangers: dict[int, weakref.ref[torch.nn.Module]] = {}
        self._trees: dict[int, ModuleTree] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the module tree again: modules may have been added or replaced."""
        self._trees.clear()
        for root in self.roots:
            for path, module in root.named_modules():
                self.paths.setdefault(id(module), (module, clean(path)))
            for path, parameter in root.named_parameters():
                self.parameters.setdefault(id(parameter), (parameter, clean(path)))

    def path(self, module: torch.nn.Module, look_again: bool) -> str | None:
        """The path of a watched module, or None. A module never seen before is looked for once, if `look_again`."""
        found = self.paths.get(id(module))
        if found is not None and found[0] is module:
            return found[1]
        wrapped = wrapped_by_compile(module)
        if wrapped is not None and (path := self.path(wrapped, look_again)) is not None:
            self.paths[id(module)] = (module, path)  # the compiled model is called, the model itself is watched
            return path
        if not look_again:
            return None
        stranger = self._strangers.get(id(module))
        if stranger is not None and stranger() is module:
            return None
        self.refresh()
        found = self.paths.get(id(module))
        if found is not None and found[0] is module:
            return found[1]
        self._strangers[id(module)] = weakref.ref(module)
        return None

    def tree(self, module: torch.nn.Module) -> ModuleTree:
        """The submodules of a watched module, read once until the tree is refreshed."""
        tree = self._trees.get(id(module))
        if tree is None:
            children = [(clean(path), child) for path, child in module.named_modules()]
            tree = ModuleTree(
                [child for _, child in children],
                [(path, child) for path, child in children if own_buffers(child)],
                [
                    (child, name, parameter)
                    for _, child in children
                    for name, parameter in own_parameters(child).items()
                    if parameter is not None
                    and id(parameter) in self.parameters
                    and not isinstance(child, torch.jit.ScriptModule)  # keeps them in a wrapper, cannot be swapped
                ],
                slots_of(children, self.roots),
                plain_tensors_of(children),
            )
            self._trees[id(module)] = tree
        return tree

    def parameter(self, tensor: torch.Tensor) -> str | None:
        """The name of a watched parameter, or None."""
        found = self.parameters.get(id(tensor))
        return found[1] if found is not None and found[0] is tensor else None

    def watched(self, tensors: Iterable[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
        """Those of the tensors that are watched parameters, with their names."""
        named = ((self.parameter(tensor), tensor) for tensor in tensors)
        return [(name, tensor) for name, tensor in named if name is not None]

    def types(self) -> dict[str, str]:
        """Module path -> type name."""
        return {path: type(module).__name__ for module, path in self.paths.values()}


def clean(path: str) -> str:
    """A path without the wrappers' own names: "_orig_mod.fc" is "fc"."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)
