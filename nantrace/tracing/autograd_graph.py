"""The live autograd graph: its nodes in the order of the forward, and the values that they have saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..torch_private import SavedValues, node_sequence_number, outputs_of_node, saved_by

MAX_NODES = 200_000


@dataclass(slots=True, eq=False)
class GraphNode:
    """One node of the graph. `edges` leads upstream: for each operand with a gradient the node and its output."""

    id: int  # in the order of the forward
    node: Any
    name: str  # "LogBackward0"
    sequence: int | None
    edges: list[tuple[GraphNode | None, int]] = field(default_factory=list)
    saved: SavedValues = field(default_factory=lambda: SavedValues({}, {}, {}))
    leaf: torch.Tensor | None = None  # what an AccumulateGrad node accumulates for

    @property
    def outputs(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each result of the op."""
        return outputs_of_node(self.node)


@dataclass(slots=True)
class AutogradGraph:
    """Everything upstream of some tensors."""

    nodes: list[GraphNode]  # in the order of the forward
    roots: list[tuple[GraphNode, int, torch.Tensor]]
    by_node: dict[Any, GraphNode] = field(default_factory=dict)
    cut: bool = False  # the graph is larger than what was read

    @property
    def freed(self) -> bool:
        """Whether a backward has let go of the saved tensors."""
        return any("freed" in node.saved.missing.values() for node in self.nodes)

    @property
    def packed(self) -> bool:
        """Whether saved-tensor hooks (checkpointing, offloading) hold some of the values."""
        return any("packed" in node.saved.missing.values() for node in self.nodes)


def read_graph(tensors: list[torch.Tensor]) -> AutogradGraph:
    """Read the graph upstream of these tensors. Changes nothing, and runs nothing of the program's."""
    graph = read_nodes([tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None])
    graph.roots = [(graph.by_node[one.grad_fn], one.output_nr, one) for one in tensors if one.grad_fn is not None]
    return graph


def read_nodes(roots: list[Any]) -> AutogradGraph:
    """Read the graph upstream of these nodes."""
    found: dict[Any, GraphNode] = {}
    starts = [_node(found, root) for root in roots]
    waiting = list(found.values())
    cut = False
    while waiting:
        one = waiting.pop()
        for upstream, output in one.node.next_functions:
            if upstream is None:
                one.edges.append((None, 0))
                continue
            known = found.get(upstream)
            if known is None:
                if len(found) >= MAX_NODES:
                    cut = True
                    one.edges.append((None, 0))
                    continue
                known = _node(found, upstream)
                waiting.append(known)
            one.edges.append((known, output))
    nodes = _in_order(starts)
    for number, one in enumerate(nodes):
        one.id = number
    return AutogradGraph(nodes, [], found, cut)


def _node(found: dict[Any, GraphNode], node: Any) -> GraphNode:
    known = found.get(node)
    if known is None:
        leaf = getattr(node, "variable", None)
        known = found[node] = GraphNode(-1, node, node.name().rpartition("::")[2], node_sequence_number(node))
        if isinstance(leaf, torch.Tensor):
            known.leaf = leaf
        else:
            known.saved = saved_by(node)
    return known


def _in_order(roots: list[GraphNode]) -> list[GraphNode]:
    """Every node after all those upstream of it, without recursion."""
    ordered: list[GraphNode] = []
    done: set[int] = set()
    for root in roots:
        stack: list[tuple[GraphNode, int]] = [(root, 0)]
        entered = {id(root)}
        while stack:
            node, position = stack.pop()
            if id(node) in done:
                continue
            if position < len(node.edges):
                stack.append((node, position + 1))
                upstream = node.edges[position][0]
                if upstream is not None and id(upstream) not in done and id(upstream) not in entered:
                    entered.add(id(upstream))
                    stack.append((upstream, 0))
                continue
            done.add(id(node))
            ordered.append(node)
    leaves = [node for node in ordered if node.leaf is not None]
    made = [node for node in ordered if node.leaf is None]
    numbered = sorted(made, key=lambda node: node.sequence or 0)  # as they ran, where one thread made them all
    return leaves + (numbered if _is_topological(numbered) else made)


def _is_topological(nodes: list[GraphNode]) -> bool:
    place = {id(node): number for number, node in enumerate(nodes)}
    return all(
        place[id(upstream)] < place[id(node)]
        for node in nodes
        for upstream, _ in node.edges
        if upstream is not None and upstream.leaf is None
    )
