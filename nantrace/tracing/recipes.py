"""From an autograd node to the op that made it: its overload, its operands by name, and how to run it once more.

A node's name says the op, its saved values and its edges say which overload and which operand is which. What is not
saved stays unknown; no operand is made up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch

from ..torch_private import operators_by_squashed_name
from .autograd_graph import GraphNode
from .schema import OpFacts, facts_of, plain_name

# operands that never have a gradient, so that no edge of the node stands for them
_WITHOUT_EDGE = frozenset(
    {"index", "indices", "condition", "mask", "target", "running_mean", "running_var", "offsets", "attn_mask"}
)
_SHAPES = frozenset({"size", "shape", "sizes"})
_BOOKKEEPING = re.compile(r"^(result\d*|output\d*|logsumexp|.*_sym_.*|.*_argsize_.*|saved)$")


@dataclass(slots=True)
class Operand:
    """One tensor that the op read: who made it (a node and its output), or itself where the node saved it."""

    name: str
    producer: tuple[GraphNode, int] | None = None
    saved: torch.Tensor | None = None


@dataclass(slots=True)
class Recipe:
    """The op of a node. `func` is None where no overload of ATen fits (a custom Function, an in-place write)."""

    func: Any
    facts: OpFacts
    operands: list[Operand] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)  # operands without a gradient that the node did not save


def recipe_of(node: GraphNode) -> Recipe:
    """The recipe of a node."""
    func = _overload(node)
    if func is None:
        name = function_name(node.name)
        facts = OpFacts(name, "", (), (), False, False, False, False)
        recipe = Recipe(None, facts, numbers=dict(node.saved.numbers))
        recipe.operands = [Operand(f"args[{i}]", edge) for i, edge in _edges(node)]
        return recipe
    recipe = Recipe(func, facts_of(func))
    names = [argument.name for argument in func._schema.arguments]
    recipe.numbers = {name: value for name, value in node.saved.numbers.items() if name in names}
    by_edge = _names_of_edges(node, func)
    producers = dict(zip(by_edge, node.edges, strict=False)) if by_edge else {}
    for argument in func._schema.arguments:
        idle = node.saved.numbers.get("training") and argument.name.startswith("running_")  # written, not read
        if "Tensor" in str(argument.type) and not idle:
            _note_operand(recipe, node, argument, producers)
    if not by_edge:  # which edge is which operand is not known: all of them, without names
        recipe.operands += [Operand(f"operand[{i}]", edge) for i, edge in _edges(node)]
    return recipe


def arguments_of(
    recipe: Recipe, node: GraphNode, values: dict[str, torch.Tensor]
) -> tuple[list[Any], dict[str, Any]] | None:
    """The arguments to run the op again with these operands, or None where one of them is not known."""
    if recipe.func is None or not _repeatable(recipe.func):
        return None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    shape, dtype = node.outputs[0] if node.outputs else (None, None)
    for argument in recipe.func._schema.arguments:
        found, value = _argument(recipe, argument, values, shape, dtype)
        if not found:
            return None
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return args, kwargs


def function_name(node_name: str) -> str:
    """The name of an op, or of the user's own Function, from its node's name."""
    if node_name.endswith("Backward"):
        return node_name.removesuffix("Backward") or node_name
    spelled = re.sub(r"Backward\d+$", "", node_name)
    return plain_name(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", spelled).lower())


def _argument(
    recipe: Recipe, argument: Any, values: dict[str, torch.Tensor], shape: Any, dtype: Any
) -> tuple[bool, Any]:
    name, kind = argument.name, str(argument.type)
    if "Tensor" in kind:
        if "List" in kind:
            items = [values[key] for key in sorted(values, key=_position) if key.startswith(f"{name}[")]
            return bool(items) and f"{name}[?]" not in recipe.hidden, items
        if name in values:
            return True, values[name]
        return "Optional" in kind and name not in recipe.hidden, None
    if name in recipe.numbers:
        return True, recipe.numbers[name]
    reshapes = recipe.facts.is_view or recipe.facts.name in ("unsafe_view", "reshape")
    if name in _SHAPES and shape is not None and reshapes:
        return True, list(shape)
    if name == "dtype" and recipe.facts.name == "to_copy":
        return True, dtype
    if name == "half_to_float":
        return True, False
    return argument.has_default_value(), argument.default_value if argument.has_default_value() else None


def _position(key: str) -> int:
    digits = re.search(r"\[(\d+)\]$", key)
    return int(digits.group(1)) if digits else 0


def _repeatable(func: Any) -> bool:
    """Whether running the op again changes nothing: no random stream, no operand, no running statistic."""
    names = {argument.name for argument in func._schema.arguments}
    draws = torch.Tag.nondeterministic_seeded in func.tags
    return not draws and not func._schema.is_mutable and not names & {"running_mean", "running_var", "generator"}


def _note_operand(recipe: Recipe, node: GraphNode, argument: Any, producers: dict[str, Any]) -> None:
    name = argument.name
    if "List" in str(argument.type):
        saved = node.saved.tensors.get(name)
        items = list(saved) if isinstance(saved, (list, tuple)) else []
        tensors = [(i, item) for i, item in enumerate(items) if isinstance(item, torch.Tensor)]
        recipe.operands += [Operand(f"{name}[{i}]", None, tensor) for i, tensor in tensors]
        edges = [(key, edge) for key, edge in producers.items() if key.startswith(f"{name}[")]
        recipe.operands += [Operand(key, edge) for key, edge in edges if edge[0] is not None]
        if any(edge[0] is None for _, edge in edges):
            recipe.hidden.append(f"{name}[?]")
        return
    edge, saved = producers.get(name), node.saved.tensors.get(name)
    if edge is not None and edge[0] is not None:
        recipe.operands.append(Operand(name, edge, saved if isinstance(saved, torch.Tensor) else None))
    elif isinstance(saved, torch.Tensor):
        recipe.operands.append(Operand(name, None, saved))
    elif "Optional" not in str(argument.type) or name in node.saved.missing:
        recipe.hidden.append(name)


def _edges(node: GraphNode) -> list[tuple[int, tuple[GraphNode, int]]]:
    return [(i, (upstream, output)) for i, (upstream, output) in enumerate(node.edges) if upstream is not None]


def _names_of_edges(node: GraphNode, func: Any) -> list[str]:
    """The operand that each edge stands for, or nothing where that is not certain."""
    tensors = [a for a in func._schema.arguments if "Tensor" in str(a.type)]
    differentiable = [a for a in tensors if a.name not in _WITHOUT_EDGE]
    for chosen in (differentiable, tensors, [a for a in differentiable if "Optional" not in str(a.type)]):
        lists = [a for a in chosen if "List" in str(a.type)]
        if not lists and len(chosen) == len(node.edges):
            return [a.name for a in chosen]
        if len(lists) == 1 and len(node.edges) >= len(chosen) - 1:
            length = len(node.edges) - (len(chosen) - 1)
            spread = ([f"{a.name}[{i}]" for i in range(length)] if a is lists[0] else [a.name] for a in chosen)
            return [name for names in spread for name in names]
    return []


def _overload(node: GraphNode) -> Any:
    """The overload whose arguments fit what the node has saved and how many edges it has."""
    squashed = re.sub(r"Backward\d+$", "", node.name).lower()
    if squashed == node.name.lower():
        return None  # a custom Function ends in "Backward" without a number
    candidates = [f for f in operators_by_squashed_name().get(squashed, ()) if "Dimname" not in str(f._schema)]
    return min(candidates, key=lambda func: _misfit(node, func), default=None)


def _misfit(node: GraphNode, func: Any) -> tuple[int, int, int]:
    """How badly an overload fits: saved names that it lacks, edges without an operand, needed arguments not saved."""
    kinds = {argument.name: str(argument.type) for argument in func._schema.arguments}
    tensors = [name for name in node.saved.tensors if not _BOOKKEEPING.match(name)]
    numbers = [name for name in node.saved.numbers if not _BOOKKEEPING.match(name)]
    strange = sum("Tensor" not in kinds.get(name, "") for name in tensors)
    strange += sum(name not in kinds or "Tensor" in kinds[name] for name in numbers)
    needed = [
        argument.name
        for argument in func._schema.arguments
        if not argument.has_default_value() and "Tensor" not in str(argument.type) and argument.name not in numbers
    ]
    return strange, int(not _names_of_edges(node, func)), len(needed)
