"""Explain a non-finite tensor from its live autograd graph: no replay, nothing run but single ops on saved values.

Nothing is changed: no backward, no gradient, nothing freed, no random stream moved.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ..model import BadSource, Edge, Example, Frame, Op, Origin, Source, Status
from ..recording.frames import is_library_file, is_torch_file, source_of_lines
from .autograd_graph import AutogradGraph, GraphNode
from .examples import example_of
from .graph_walk import OPEN, WHOLE, GraphWalk
from .ownership import Home
from .reconstruction import Reconstruction
from .schema import PLUMBING, has_literal
from .summaries import brief, describe, first_bad_element, spread_bad_elements
from .walk import DECLARED, EXTERNAL, State, Verdict

MAX_ELEMENTS = 16
# ops that make a NaN or an infinity of finite numbers of usual size
_ABLE = frozenset(
    {
        "log", "log2", "log10", "log1p", "div", "reciprocal", "sqrt", "rsqrt", "pow", "exp", "exp2", "expm1", "xlogy",
        "acos", "asin", "atanh", "acosh", "erfinv", "lgamma", "digamma", "tan", "cosh", "sinh", "softmax",
        "log_softmax", "logsumexp", "std", "var", "norm", "linalg_inv_ex", "linalg_cholesky_ex", "layer_norm",
        "batch_norm", "group_norm", "logit", "fmod", "remainder", "prod", "cumprod",
    }
)  # fmt: skip
_LINE = re.compile(r'\s*File "(.*)", line (\d+), in (.*)\n?(.*)')


class Places(Protocol):
    """Knows where the ops of a graph ran."""

    def home(self, node: GraphNode) -> Home:
        """The place of a node."""

    def owner(self, leaf: torch.Tensor) -> str | None:
        """The name of a parameter."""


@dataclass(slots=True)
class Explanation:
    """What a graph says about a bad value: plain data, as the snapshot takes it."""

    phase: str
    origin: Origin | None
    path: tuple[int, ...] = ()
    ops: tuple[Op, ...] = ()
    edges: tuple[Edge, ...] = ()
    source: BadSource | None = None
    declared: bool = False
    meant: bool = False  # declared with `expect_nonfinite`
    guessed: bool = False  # the module is a guess from the parameters around the op
    definite: bool = False  # the op and its operands are known, nothing was guessed
    reasons: list[str] = field(default_factory=list)  # what the graph could not say, in sentences
    doubts: list[str] = field(default_factory=list)  # what was taken for granted


def explain_graph(graph: AutogradGraph, places: Places) -> Explanation | None:
    """Where the bad values of the graph's roots come from, or None where no root is bad."""
    values = Reconstruction(graph)
    walk = GraphWalk(values)
    found: list[tuple[State, Verdict]] = []
    for node, output, tensor in graph.roots:
        for index, _ in spread_bad_elements(tensor.detach(), MAX_ELEMENTS):
            found.append(walk.from_root(node, output, index))
    if not found:
        return None
    start, verdict = min(found, key=lambda pair: (pair[1].kind == DECLARED, pair[1].kind == OPEN, pair[1].order))
    return _Telling(graph, values, walk, places).tell(start, verdict)


@dataclass(slots=True)
class _Telling:
    """Turns a verdict into plain data."""

    graph: AutogradGraph
    values: Reconstruction
    walk: GraphWalk
    places: Places

    def tell(self, start: State, verdict: Verdict) -> Explanation:
        states = self.walk.path(verdict, start)
        if verdict.kind == OPEN:
            return self._tell_open(start, states)
        blamed = self._blamed(states, verdict)
        home = self.places.home(self.graph.nodes[blamed.op])
        told = Explanation(home.phase, self._origin(blamed, home), meant=home.expected)
        told.declared = verdict.kind == DECLARED or home.expected
        path = [state.op for state in states]
        path = list(dict.fromkeys(path[path.index(blamed.op) :] if blamed.op in path else path))
        if verdict.kind == EXTERNAL and verdict.source is not None:
            told.source = self._bad_source(verdict)
            told.phase = "parameters" if told.source.kind == "parameter" else "input"
        told.path, told.edges = tuple(path), _edges(self.graph, path)
        told.ops = self._ops(path, blamed.op, told.source is None)
        told.doubts = [*self.values.assumptions, *self.walk.doubts]
        told.reasons = self._reasons() + self._guessed(blamed, home)
        told.guessed = not home.certain
        told.definite = not told.doubts
        return told

    def _tell_open(self, start: State, states: list[State]) -> Explanation:
        """What went into the ops is not known. Where just one of them can make a NaN of finite numbers, it is named."""
        numbers = [node.id for node in self.graph.nodes if State(node.id, 0, WHOLE) in self.walk.verdicts]
        numbers = sorted({*numbers, *(state.op for state in states)})
        able = [number for number in numbers if self._name(number) in _ABLE] or numbers[-1:] * (len(numbers) == 1)
        reasons = self._reasons()
        if len(able) != 1:
            home = self.places.home(self.graph.nodes[start.op])
            listed = ", ".join(dict.fromkeys(self._name(number) for number in (able or numbers)[:8]))
            reasons.append(f"which of the ops upstream made the value is not known; those that could: {listed}")
            return Explanation(home.phase, None, meant=home.expected, reasons=reasons)
        blamed = next((state for state in states if state.op == able[0]), State(able[0], 0, WHOLE))
        home = self.places.home(self.graph.nodes[blamed.op])
        told = Explanation(home.phase, self._origin(blamed, home), reasons=reasons)
        path = sorted({blamed.op, *(state.op for state in states if state.op > blamed.op)})
        told.path, told.edges = tuple(path), _edges(self.graph, path)
        told.ops = self._ops(path, blamed.op, True)
        why = "it alone can make such a value of finite ones: its operands are not known"
        told.doubts = [f"{self._name(blamed.op)} is named because {why}"]
        told.reasons += self._guessed(blamed, home)
        told.guessed = not home.certain
        return told

    def _name(self, number: int) -> str:
        return self.values.recipe(self.graph.nodes[number]).facts.name

    def _blamed(self, states: list[State], verdict: Verdict) -> State:
        """The generating op; for a value from outside the first op that is no plumbing; for a mask what let it out."""
        if verdict.kind == EXTERNAL:
            return next((s for s in states if self.values.seen(s.op).facts.name not in PLUMBING), states[0])
        if verdict.kind == DECLARED:
            shrinking = (s for s in states[1:] if math.prod(_shape(self.graph.nodes[s.op])) < self._widest(s))
            return next(shrinking, states[-1])
        return verdict.state or states[0]

    def _widest(self, state: State) -> int:
        return max((kept.tensor.numel() for kept in self.values.seen(state.op).kept_inputs), default=0)

    def _origin(self, state: State, home: Home) -> Origin:
        node = self.graph.nodes[state.op]
        seen = self.values.seen(state.op)
        known = self.values.value(node, state.output) is not None
        recipe = self.values.recipe(node)
        leaves = {one.name: one.producer[0].leaf for one in recipe.operands if one.producer is not None}
        inputs = [describe(kept.tensor, kept.name, self._label(leaves.get(kept.name))) for kept in seen.kept_inputs]
        return Origin(
            op=seen.facts.name,
            module=home.module,
            module_type=home.module_type,
            autograd_node=node.name,
            source=home.source or traceback_of(node),
            inputs=tuple(inputs),
            outputs=(describe(seen.kept_outputs[state.output].tensor),) if known else (),
            example=self._example(state) if known else None,
            arguments=seen.arguments,
            id=state.op,
            aten=seen.facts.aten,
        )

    def _label(self, leaf: torch.Tensor | None) -> str:
        name = self.places.owner(leaf) if leaf is not None else None
        return f"parameter {name}" if name else ""

    def _example(self, state: State) -> Example | None:
        seen = self.values.seen(state.op)
        index = state.index
        if index == WHOLE:
            bad = first_bad_element(seen.kept_outputs[state.output].tensor)
            if bad is None:
                return None
            index = bad[0]
        try:
            return example_of(seen, State(state.op, state.output, index))
        except (RuntimeError, IndexError, ValueError, TypeError, KeyError):
            return None  # an operand that is not known

    def _bad_source(self, verdict: Verdict) -> BadSource:
        source = verdict.source
        assert source is not None
        name = self.places.owner(source.tensor)
        kind = "parameter" if name is not None or isinstance(source.tensor, torch.nn.Parameter) else "input"
        summary = describe(source.tensor.detach(), name or source.operand)
        return BadSource(kind, name or source.operand, summary, source.index, source.value)

    def _reasons(self) -> list[str]:
        """Why something is not known."""
        found: list[str] = []
        if self.graph.freed:
            found.append("a backward has freed saved tensors of the graph: what they held is not known any more")
        if self.graph.packed:
            found.append("saved-tensor hooks (checkpointing, offloading) hold tensors of the graph: not unpacked")
        if self.graph.cut:
            found.append("the graph is larger than what was read of it")
        if any("overwritten" in node.saved.missing.values() for node in self.graph.nodes):
            found.append("tensors that the graph saved were overwritten in place since")
        return found

    def _guessed(self, blamed: State, home: Home) -> list[str]:
        if home.certain or home.module is None:
            return []
        path = home.module or "the root module"
        return [f"that {self._name(blamed.op)} ran in {path} is a guess from the parameters around it"]

    def _ops(self, path: list[int], origin: int, generated: bool) -> tuple[Op, ...]:
        return tuple(self._op(number, number == origin and generated) for number in path)

    def _op(self, number: int, is_origin: bool) -> Op:
        node, seen = self.graph.nodes[number], self.values.seen(number)
        home = self.places.home(node)
        results = [self.values.value(node, i) for i in range(len(node.outputs))]
        outputs = tuple(brief(result) for result in results if result is not None)
        inputs = tuple(brief(kept.tensor, kept.name) for kept in seen.kept_inputs)
        bad_in, bad_out = (any(one.nonfinite for one in side) for side in (inputs, outputs))
        if is_origin:
            status = Status.GENERATED
        elif bad_out and not bad_in and has_literal(seen.arguments):  # a NaN that the op made is the origin
            status = Status.DECLARED
        else:
            status = Status.PROPAGATED if bad_out else Status.CLEAN
        source = home.source or traceback_of(node)
        return Op(
            id=number,
            name=seen.facts.name,
            aten=seen.facts.aten,
            phase=home.phase,
            status=status,
            module=home.module,
            module_type=home.module_type,
            autograd_node=node.name,
            source=source,
            inputs=inputs,
            outputs=outputs,
            arguments=seen.arguments,
        )


def traceback_of(node: GraphNode) -> Source | None:
    """The line that made a node, where anomaly mode was on in the forward and has kept it."""
    lines: list[str] = node.node.metadata.get("traceback_") or []
    frames: list[Frame] = []
    for line in reversed(lines):
        match = _LINE.match(line)
        if match:
            file, number, function, code = match.groups()
            frames.append(Frame(file, int(number), function.strip(), code.strip().split("\n")[0]))
    outside = [i for i, frame in enumerate(frames) if not is_torch_file(frame.file)]
    own = [i for i in outside if not is_library_file(frames[i].file)]
    chosen = next(iter(own or outside), None)
    return source_of_lines(frames, chosen) if chosen is not None else None


def _edges(graph: AutogradGraph, path: list[int]) -> tuple[Edge, ...]:
    known = set(path)
    return tuple(
        Edge(upstream.id, number, operand, output)
        for number in path
        for operand, (upstream, output) in enumerate(graph.nodes[number].edges)
        if upstream is not None and upstream.id in known
    )


def _shape(node: GraphNode) -> tuple[int, ...]:
    return node.outputs[0][0] if node.outputs else ()
