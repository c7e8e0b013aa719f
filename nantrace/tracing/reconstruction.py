"""The values of a forward pass, as far as its autograd graph still knows them.

A value is known where a node saved it, or where it can be computed again from known operands. Computing is lazy:
only what the walk asks for. A value that stays unknown is None.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..recording.statistics import is_finite
from .autograd_graph import AutogradGraph, GraphNode
from .microscope import Kept, Seen
from .place import Place
from .recipes import Operand, Recipe, arguments_of, recipe_of

_FILL = "masked_fill"


class Reconstruction:
    """The ops of a graph as the walk reads them: `ops[node.id]`, made when they are asked for."""

    def __init__(self, graph: AutogradGraph) -> None:
        self.graph = graph
        self.assumptions: list[str] = []  # what was taken for granted, in sentences
        self._values: dict[tuple[int, int], torch.Tensor] = {}
        self._tried: set[int] = set()
        self._recipes: dict[int, Recipe] = {}
        self._seen: dict[int, Seen] = {}
        self._leaves = {id(node.leaf): node for node in graph.nodes if node.leaf is not None}
        for node in graph.nodes:
            if node.leaf is not None:
                self._values[node.id, 0] = node.leaf.detach()
            for value in node.saved.tensors.values():
                for tensor in value if isinstance(value, (list, tuple)) else (value,):
                    self._note(tensor)
        for node, output, tensor in graph.roots:
            self._values[node.id, output] = tensor.detach()

    def recipe(self, node: GraphNode) -> Recipe:
        """The op of a node."""
        found = self._recipes.get(node.id)
        if found is None:
            found = self._recipes[node.id] = recipe_of(node)
        return found

    def value(self, node: GraphNode, output: int) -> torch.Tensor | None:
        """The value of one result of a node, or None."""
        if (node.id, output) not in self._values:
            self._compute(node)
        return self._values.get((node.id, output))

    def operand(self, operand: Operand) -> torch.Tensor | None:
        """The value of an operand, or None."""
        if operand.saved is not None:
            return operand.saved.detach()
        return self.value(*operand.producer) if operand.producer is not None else None

    def seen(self, number: int) -> Seen:
        """The op of that node as a record with its known operands and results."""
        found = self._seen.get(number)
        if found is None:
            found = self._seen[number] = self._record(self.graph.nodes[number])
        return found

    def unknown(self, number: int) -> list[Operand]:
        """The operands of a node whose values are not known."""
        recipe = self.recipe(self.graph.nodes[number])
        return [one for one in recipe.operands if self.operand(one) is None]

    def _note(self, tensor: Any) -> None:
        """A saved tensor that another node of the graph made is that node's result."""
        while isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:
            node = self.graph.by_node.get(tensor.grad_fn)
            if node is not None:
                self._values.setdefault((node.id, tensor.output_nr), tensor.detach())
            tensor = tensor._base  # of a view: what it is a view of

    def _compute(self, wanted: GraphNode) -> None:
        """Compute a node's results, and whatever upstream of it must be computed first; without recursion."""
        stack = [wanted]
        entered: set[int] = set()
        while stack:
            node = stack[-1]
            if node.id in self._tried or node.leaf is not None:
                stack.pop()
                continue
            if node.id not in entered:
                entered.add(node.id)
                upstream = [one.producer for one in self.recipe(node).operands if one.saved is None and one.producer]
                missing = [p[0] for p in upstream if (p[0].id, p[1]) not in self._values and p[0].id not in self._tried]
                if missing:
                    stack.extend(missing)
                    continue
            stack.pop()
            self._tried.add(node.id)
            self._run(node)

    def _run(self, node: GraphNode) -> None:
        recipe = self.recipe(node)
        values: dict[str, torch.Tensor] = {}
        for one in recipe.operands:
            value = self.operand(one) if one.saved is not None else self._values.get(_key(one))
            if value is None:
                return
            values[one.name] = value
        if recipe.facts.name == _FILL and "value" not in recipe.numbers and "value" not in values:
            self._assume_fill(recipe, values)
        found = arguments_of(recipe, node, values)
        if found is None:
            return
        try:
            result = recipe.func(*found[0], **found[1])
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            return  # not enough memory, or a shape that the saved values do not give: it stays unknown
        results = result if isinstance(result, (tuple, list)) else (result,)
        for output, (tensor, (shape, dtype)) in enumerate(zip(results, node.outputs, strict=False)):
            if isinstance(tensor, torch.Tensor) and tuple(tensor.shape) == shape and tensor.dtype == dtype:
                self._values.setdefault((node.id, output), tensor)

    def _assume_fill(self, recipe: Recipe, values: dict[str, torch.Tensor]) -> None:
        """A node does not keep what was filled in: -inf, where what it was filled into is finite."""
        clean = all(is_finite(value) for value in values.values())
        recipe.numbers["value"] = -math.inf if clean else 0.0
        if clean:
            self.assumptions.append("what masked_fill wrote is not saved in the graph: it is taken for -inf")

    def _record(self, node: GraphNode) -> Seen:
        recipe = self.recipe(node)
        known = [(one.name, value) for one in recipe.operands if (value := self.operand(one)) is not None]
        arguments = dict(recipe.numbers)
        seen = Seen(
            id=node.id,
            facts=recipe.facts,
            event=0,
            glue=False,
            backward=False,
            module=None,
            module_type=None,
            node=node.name,
            forward_id=None,
            recomputed=None,
            stack=(),
            arguments={key: value for key, value in arguments.items() if not isinstance(value, torch.Tensor)},
            kept_inputs=[Kept(name, value) for name, value in known],
            func=recipe.func,
        )
        outputs = node.outputs or [((), torch.float32)]
        seen.kept_outputs = [self._result(node, output, shape) for output, (shape, _) in enumerate(outputs)]
        found = arguments_of(recipe, node, dict(known))
        seen.args, seen.kwargs = (tuple(found[0]), found[1]) if found is not None else ((), {})
        return seen

    def _result(self, node: GraphNode, output: int, shape: tuple[int, ...]) -> Kept:
        value = self.value(node, output)
        if value is not None:
            return Kept("", value)
        kept = Kept("", torch.empty(0))
        kept.place = Place(0, 0, shape, tuple(0 for _ in shape), 0)
        return kept


def _key(operand: Operand) -> tuple[int, int]:
    assert operand.producer is not None
    return operand.producer[0].id, operand.producer[1]
