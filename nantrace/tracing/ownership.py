"""Which module an autograd node belongs to, as far as parameters tell.

An op that reads a parameter belongs to the parameter's module. What lies between two such ops is placed under the
modules that both have in common: a best guess, and marked as one.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch

from ..model import Source
from ..recording.names import clean
from .autograd_graph import AutogradGraph, GraphNode

_MOVES = frozenset(
    {"TBackward0", "TransposeBackward0", "ExpandBackward0", "ViewBackward0", "ToCopyBackward0", "UnsqueezeBackward0",
     "PermuteBackward0", "CloneBackward0", "SliceBackward0", "SelectBackward0", "ReshapeAliasBackward0"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Home:
    """Where an op ran. `certain` is False for a best guess."""

    phase: str  # "forward" | "loss"
    module: str | None = None
    module_type: str | None = None
    source: Source | None = None
    certain: bool = True
    expected: bool = False  # inside `expect_nonfinite`


class Nowhere:
    """No model is known: every op is outside of it."""

    def home(self, node: GraphNode) -> Home:
        """A forward op of nobody's."""
        return Home("forward", certain=False)

    def owner(self, leaf: torch.Tensor) -> str | None:
        """Nobody."""
        return None

    def types(self) -> dict[str, str]:
        """No modules."""
        return {}


class ByParameters:
    """Places the ops of a graph in a model by the parameters that they read."""

    def __init__(self, model: torch.nn.Module, graph: AutogradGraph) -> None:
        self._modules = {clean(path): module for path, module in model.named_modules()}
        self._names = {id(p): clean(name) for name, p in model.named_parameters()}
        self._paths: dict[int, set[str]] = defaultdict(set)  # tied weights have several
        for own, module in self._modules.items():
            for parameter in module.parameters(recurse=False):
                self._paths[id(parameter)].add(own)
        found = ((node.id, self._by_parameters(node)) for node in graph.nodes)
        self._certain = {number: path for number, path in found if path is not None}
        self._ordered = sorted(self._certain)
        self._scalar = all(tensor.dim() == 0 for _, _, tensor in graph.roots)

    def types(self) -> dict[str, str]:
        """The type name of every module."""
        return {path: type(module).__name__ for path, module in self._modules.items()}

    def owner(self, leaf: torch.Tensor) -> str | None:
        """The name of a parameter of the model."""
        return self._names.get(id(leaf))

    def home(self, node: GraphNode) -> Home:
        """The module of a node."""
        own = self._certain.get(node.id)
        if own is not None:
            return Home("forward", own, self._type(own))
        before = next((self._certain[i] for i in reversed(self._ordered) if i < node.id), None)
        after = next((self._certain[i] for i in self._ordered if i > node.id), None)
        if after is None and self._scalar and before is not None:
            return Home("loss", certain=False)
        path = self._between(before, after, node)
        return Home("forward", path, self._type(path), certain=False)

    def _type(self, path: str) -> str | None:
        return type(self._modules[path]).__name__ if path in self._modules else None

    def _by_parameters(self, node: GraphNode) -> str | None:
        """The one module whose parameters this op reads."""
        if node.leaf is not None or node.name in _MOVES:
            return None
        found: set[str] | None = None
        for upstream, _ in node.edges:
            while upstream is not None and upstream.leaf is None and upstream.name in _MOVES:
                upstream = upstream.edges[0][0] if upstream.edges else None
            if upstream is not None and upstream.leaf is not None and id(upstream.leaf) in self._paths:
                paths = self._paths[id(upstream.leaf)]
                found = paths if found is None else found & paths
        return next(iter(found)) if found is not None and len(found) == 1 else None

    def _between(self, before: str | None, after: str | None, node: GraphNode) -> str:
        """A module without parameters that is named after the op, where there is just one; else what both share."""
        ends = [path.split(".")[:-1] for path in (before, after) if path is not None]
        shared = _common(ends) if ends else []
        op = node.name.partition("Backward")[0].lower()
        alike = [
            path
            for path, module in self._modules.items()
            if path.split(".")[: len(shared)] == shared and type(module).__name__.lower() == op
            if next(module.parameters(), None) is None
        ]
        return alike[0] if len(alike) == 1 else ".".join(shared)


def _common(paths: list[list[str]]) -> list[str]:
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) != 1:
            break
        shared.append(parts[0])
    return shared
