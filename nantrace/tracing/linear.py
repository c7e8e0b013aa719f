"""Take a loss apart into its additive terms: walk its autograd graph as long as that is a linear combination.

A linear node, given a gradient, returns those of its inputs: run by hand, the nodes themselves say with which weight
each term enters the sum, be it a number, a mean over a stack, or a product with a vector of weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..model import Source

MAX_NODES = 2000  # of a sum; what has more is not taken apart
MAX_ELEMENTS = 4096  # of a vector of losses (one per sample) that is still taken apart

_SUMS = frozenset({"Add", "Sub", "Rsub", "Stack", "Cat"})
_LINEAR = _SUMS | {
    *("Neg", "Sum", "Mean", "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Expand", "Alias"),
    *("Clone", "ToCopy", "T", "Transpose", "Permute"),
}
_LINEAR_IN_ONE = frozenset({"Mul", "Div", "Dot", "Mv"})  # where no more than one operand carries a gradient
_ACCUMULATES = "torch::autograd::AccumulateGrad"


@dataclass(frozen=True, slots=True)
class Part:
    """One additive term: the node that made it, and the gradient with which the loss depends on it."""

    node: Any
    output: int
    weight: torch.Tensor
    parent: Any = None  # the node that added it
    position: int = 0  # which operand of that one

    @property
    def parameter(self) -> torch.Tensor | None:
        """The parameter, where the term is nothing else."""
        return self.node.variable if self.node.name() == _ACCUMULATES else None


class Unsplittable(Exception):
    """The sum is too large to be taken apart."""


def parts_of(root: torch.Tensor, line_of: Callable[[Any], Source | None]) -> list[Part]:
    """The additive terms of a loss; one alone where it is no sum. Factors of the whole sum are left out.

    `line_of(node)` is the user's line that made a node. Lines say how far to go: what another line computed and what is
    no sum is one term, factors and all. One loss per sample is taken apart too, `(recon + kl).mean()`: where the sum is
    no other, in the function that reduces it, and no further than to the next reduction.
    """
    weight = torch.ones_like(root, memory_format=torch.preserve_format).detach()
    splitting = _Splitting(line_of)
    with torch.no_grad():
        return splitting.split(Part(root.grad_fn, root.output_nr, weight), trunk=True)


def may_be_sum(root: torch.Tensor) -> bool:
    """Whether a loss can be a sum, by the names of its nodes alone (they outlive what the backward has freed)."""
    node = root.grad_fn
    for _ in range(MAX_NODES):
        if node is None:
            return False
        inputs = [child for child, _ in node.next_functions if child is not None]
        if _kind(node) in _SUMS and len(inputs) > 1:
            return True
        if not _is_linear(node) or len(inputs) != 1:
            return False
        node = inputs[0]
    return False


class _Splitting:
    def __init__(self, line_of: Callable[[Any], Source | None]) -> None:
        self._line_of = line_of
        self._visits = 0

    def split(self, part: Part, *, trunk: bool) -> list[Part]:
        self._visits += 1
        if self._visits > MAX_NODES:
            raise Unsplittable
        children = self._children(part, trunk)
        trunk = trunk and len(children) == 1
        found: list[Part] = []
        for child in children:
            if trunk and child.weight.numel() == 1:
                child = Part(child.node, child.output, torch.ones_like(child.weight), child.parent, child.position)
            below = self.split(child, trunk=trunk)
            found += [child] if len(below) == 1 and not self._same_line(child.node, part.node) else below
        if not children or (len(found) == 1 and part.weight.numel() == 1 and children[0].weight.numel() > 1):
            return [part]  # a vector that is no sum: the term is what it was reduced to
        return found

    def _children(self, part: Part, trunk: bool) -> list[Part]:
        """What the node adds up, where that may be taken apart."""
        if not _is_linear(part.node) or part.weight.numel() > MAX_ELEMENTS:
            return []
        if part.weight.numel() > 1:
            return [] if _kind(part.node) in ("Sum", "Mean") else list(_inputs(part))
        return [child for child in _inputs(part) if child.weight.numel() == 1 or self._belongs(child, part, trunk)]

    def _belongs(self, vector: Part, scalar: Part, trunk: bool) -> bool:
        """Whether the vector that a scalar was reduced from is part of the sum."""
        if _kind(vector.node) in ("Stack", "Cat"):
            return True
        return trunk and self._place(vector.node)[:2] == self._place(scalar.node)[:2]

    def _same_line(self, node: Any, other: Any) -> bool:
        return self._place(node) == self._place(other)

    def _place(self, node: Any) -> tuple[str, str, int]:
        line = self._line_of(node)
        return (line.file, line.function, line.line) if line is not None else ("", "", 0)


def _inputs(part: Part) -> Iterator[Part]:
    """The operands of a linear node, each with the gradient that the node gives it."""
    given = part.node(part.weight)
    given = given if isinstance(given, tuple) else (given,)
    for position, ((child, output), weight) in enumerate(zip(part.node.next_functions, given, strict=False)):
        if child is not None and weight is not None:
            yield Part(child, output, weight, part.node, position)


def _is_linear(node: Any) -> bool:
    kind = _kind(node)
    inputs = sum(child is not None for child, _ in node.next_functions)
    if kind == "Div" and (not node.next_functions or node.next_functions[0][0] is None):
        return False
    return kind in _LINEAR or (kind in _LINEAR_IN_ONE and inputs == 1)


def _kind(node: Any) -> str:
    """ "Add" of "AddBackward0"; a custom Function's node, which ends in no digit, is of no kind."""
    found = re.fullmatch(r"(\w+)Backward\d+", node.name())
    return found.group(1) if found else ""
