"""The walk over a live autograd graph: like the walk over a replay, but some values are not known.

What is known decides; what is not is followed upstream, and where nothing upstream explains a bad value, the op
between the known ends stays open: it is named as a guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from .autograd_graph import GraphNode
from .microscope import Kept, Seen
from .place import place_of
from .reach import Index, Region, broadcast, everything, regions
from .recipes import Operand
from .reconstruction import Reconstruction
from .schema import PLUMBING, is_written
from .summaries import first_bad_element, value_at
from .walk import DECLARED, EXTERNAL, GENERATED, Source, State, Verdict, Walk

OPEN, CLEAN = "open", "clean"  # cannot be told; nothing bad upstream
WHOLE: Index = (-1,)  # in place of an index: any element of a result whose value is not known

# ops that make no NaN or infinity of moderate finite numbers
_CARRIERS = PLUMBING | {
    "add", "sub", "rsub", "neg", "sum", "mean", "cat", "stack", "index", "index_select", "gather", "where", "mul",
    "flip", "roll", "repeat", "unfold", "relu", "max", "min", "amax", "amin", "abs", "sigmoid", "tanh", "dropout",
    "embedding", "threshold", "CopySlices", "copy_slices", "tril", "triu", "diagonal", "scatter", "maximum", "minimum",
}  # fmt: skip
_OVER_ROWS = frozenset({"softmax", "log_softmax", "logsumexp", "scaled_dot_product_flash_attention"})
_MASKING = frozenset({"add", "where", "masked_fill", "baddbmm", "addmm"})
_WRITERS_OF_LITERALS = frozenset({"where", "masked_fill", "index_put", "fill", "constant_pad_nd"})


class GraphWalk(Walk):
    """The judged elements of one graph."""

    def __init__(self, values: Reconstruction) -> None:
        super().__init__(microscope=None, declares=declared)  # type: ignore[arg-type]
        self.values = values
        self.doubts: list[str] = []

    def from_root(self, node: GraphNode, output: int, index: Index) -> tuple[State, Verdict]:
        """The verdict on one bad element of a root of the graph."""
        state = State(node.id, output, index)
        return state, self.judge(state)

    def _candidates(self, state: State) -> list[Verdict | State]:
        seen = self.values.seen(state.op)
        nans: list[tuple[Kept, Index, float]] = []
        infinities: list[tuple[Kept, Index, float]] = []
        for kept, region in self._reaching(seen, state):
            bad = first_bad_element(kept.tensor, region)
            if bad is not None:
                (nans if math.isnan(bad[1]) else infinities).append((kept, *bad))
        chosen = nans or infinities if self._is_nan(state) else infinities or nans
        if chosen:
            return [self._found(state, kept, index, value) for kept, index, value in chosen]
        unknown = self.values.unknown(state.op)
        return [State(one.producer[0].id, one.producer[1], WHOLE) for one in unknown if one.producer is not None]

    def _reaching(self, seen: Seen, state: State) -> Iterator[tuple[Kept, Region]]:
        """The known operands that can have reached the element, each with the region that can."""
        exact = state.index != WHOLE and self._known(state)
        if exact and seen.facts.is_view and seen.kept_inputs:
            at = _through_view(seen.kept_inputs[0], seen.kept_outputs[state.output], state.index)
            if at is not None:
                yield seen.kept_inputs[0], at
                return
        local = seen.facts.is_pointwise or seen.facts.name in ("where", "masked_fill")
        rule = regions if exact and (local or not self.values.unknown(state.op)) else everything
        for position, region in rule(seen, state.output, state.index):
            yield seen.kept_inputs[position], region

    def _found(self, state: State, kept: Kept, index: Index, value: float) -> Verdict | State:
        recipe = self.values.recipe(self.values.graph.nodes[state.op])
        operand = next((one for one in recipe.operands if one.name == kept.name), Operand(kept.name))
        if operand.producer is not None and operand.producer[0].leaf is None:
            return State(operand.producer[0].id, operand.producer[1], index)
        tensor = operand.producer[0].leaf if operand.producer is not None else None
        place = place_of(kept.tensor)
        source = Source(kept.tensor if tensor is None else tensor, place, index, value, state.op, kept.name)
        return Verdict(DECLARED if declared(source) else EXTERNAL, None, source)

    def _decide(self, state: State, candidates: list[Verdict | State]) -> Verdict:
        judged: list[tuple[Verdict, State | None]] = []
        for candidate in candidates:
            if isinstance(candidate, Verdict):
                judged.append((candidate, None))
            elif candidate in self.verdicts:
                judged.append((self.verdicts[candidate], candidate))
        by_kind = {kind: [p for p in judged if p[0].kind == kind] for kind in (GENERATED, EXTERNAL, OPEN, DECLARED)}
        harmful = by_kind[GENERATED] + by_kind[EXTERNAL]
        if harmful:
            return _passed_on(harmful)
        seen = self.values.seen(state.op)
        if by_kind[OPEN]:
            return self._after_open(seen, state, by_kind[OPEN])
        if by_kind[DECLARED]:
            if self._is_nan(state) and seen.facts.name not in _CARRIERS - {"add", "sub", "mul", "sum", "mean"}:
                return Verdict(GENERATED, state)  # inf - inf, 0 * inf, a fully masked row
            return _passed_on(by_kind[DECLARED])
        return self._without_bad_operands(seen, state)

    def _after_open(self, seen: Seen, state: State, found: list[tuple[Verdict, State | None]]) -> Verdict:
        """An operand is not known, and nor is what went into it."""
        if self._divides_by_zero(seen, state):
            self._doubt("what was divided by zero is not saved in the graph: it is taken for finite")
            return Verdict(GENERATED, state)
        if seen.facts.name in _OVER_ROWS and self._is_nan(state):
            writers = {self.values.seen(v.state.op).facts.name for v, _ in found if v.state is not None}
            if writers <= _MASKING:
                self._doubt(f"what was added to the operand of {seen.facts.name} is not saved: it is taken for a mask")
                return Verdict(GENERATED, state)
        carried = not self._bad_operands(seen) and all(
            v.state is not None and self.values.seen(v.state.op).facts.name in _CARRIERS for v, _ in found
        )
        if carried and seen.facts.name not in _CARRIERS and self._known(state):
            self._doubt(f"the operand of {seen.facts.name} is not saved in the graph: it is taken for finite")
            return Verdict(GENERATED, state)
        return _passed_on(found)

    def _divides_by_zero(self, seen: Seen, state: State) -> bool:
        """Whether a known denominator is zero where the result is bad: it is, whatever was divided by it."""
        if seen.facts.name not in ("div", "true_divide") or state.index == WHOLE or not self._known(state):
            return False
        below = next((kept for kept in seen.kept_inputs if kept.name == "other"), None)
        return below is not None and value_at(below.tensor, _element(below, state.index)) == 0

    def _bad_operands(self, seen: Seen) -> bool:
        return any(first_bad_element(kept.tensor) is not None for kept in seen.kept_inputs)

    def _without_bad_operands(self, seen: Seen, state: State) -> Verdict:
        """Nothing upstream is known to be bad: the op made the value, or an operand that was not saved brought it."""
        name = seen.facts.name
        hidden = self.values.recipe(self.values.graph.nodes[state.op]).hidden
        known = self._known(state)
        if hidden and name in _CARRIERS:
            if name in _WRITERS_OF_LITERALS:
                return Verdict(DECLARED, state)
            if not known:
                return Verdict(OPEN, state)
            return self._brought_by(state, hidden[0])
        if not known:
            return Verdict(CLEAN if name in _CARRIERS and not hidden else OPEN, state)
        if is_written(seen.arguments, math.nan if self._is_nan(state) else math.inf):
            return Verdict(DECLARED, state)
        if self.values.unknown(state.op) or not seen.kept_inputs:
            self._doubt(f"not every operand of {name} is saved in the graph")
        return Verdict(GENERATED, state)

    def _brought_by(self, state: State, operand: str) -> Verdict:
        """An op that only carries values along, of a known finite operand and one that was not saved."""
        kept = self.values.seen(state.op).kept_outputs[state.output]
        index = state.index
        if index == WHOLE:
            index = (first_bad_element(kept.tensor) or ((), 0.0))[0]
        value = value_at(kept.tensor, index)
        source = Source(kept.tensor, kept.place, index, value, state.op, operand)
        if declared(source):
            return Verdict(DECLARED, state)
        name = self.values.seen(state.op).facts.name
        self._doubt(f"the operand {operand} of {name} is not saved in the graph; that it was bad follows from the rest")
        return Verdict(EXTERNAL, None, source)

    def _doubt(self, sentence: str) -> None:
        if sentence not in self.doubts:
            self.doubts.append(sentence)

    def _known(self, state: State) -> bool:
        return self.values.value(self.values.graph.nodes[state.op], state.output) is not None

    def _is_nan(self, state: State) -> bool:
        value = self.values.value(self.values.graph.nodes[state.op], state.output)
        if value is None:
            return True
        if state.index != WHOLE:
            return math.isnan(value_at(value, state.index))
        return bool(torch.isnan(value).any())


def _element(kept: Kept, index: Index) -> Index:
    return tuple(i for i in broadcast(index, kept.place.shape) if isinstance(i, int))


def declared(source: Source) -> bool:
    """Whether the program means a bad value that came from outside: a mask of -inf."""
    return source.value == -math.inf and not isinstance(source.tensor, torch.nn.Parameter)


def _passed_on(found: list[tuple[Verdict, State | None]]) -> Verdict:
    verdict, via = min(found, key=lambda pair: pair[0].order)
    return Verdict(verdict.kind, verdict.state, verdict.source, via)


def _through_view(operand: Kept, result: Kept, index: Index) -> Region | None:
    """The element of a view's base: by its address where they share memory, else by its place in flat order."""
    if operand.place.storage and operand.place.storage == result.place.storage:
        return operand.place.index_of(result.place.address(index))
    if operand.tensor.numel() == result.tensor.numel() and operand.tensor.is_contiguous() and result.tensor.dim():
        flat = int(torch.arange(result.tensor.numel()).reshape(result.tensor.shape)[index])
        return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), operand.tensor.shape))
    return None
