"""The walk: from the symptom's failing element upstream to the op that generated the value.

At each op only the operands' elements that can have reached the element are looked at. A NaN made of an infinity that
an earlier op generated belongs to that earlier op; one made of declared infinities belongs to the op that mixed them.
The walk is iterative (a recurrent net is thousands of ops deep) and remembers every element it has judged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from .microscope import Kept, Microscope, Seen
from .place import Place, place_of
from .reach import Index, Region, regions
from .schema import is_written
from .summaries import first_bad_element, value_at

_ALL = slice(None)

GENERATED, DECLARED, EXTERNAL = "generated", "declared", "external"


@dataclass(frozen=True, slots=True)
class State:
    """One bad element of one op's result."""

    op: int
    output: int
    index: Index


@dataclass(slots=True)
class Source:
    """A bad value that no op of the replay wrote."""

    tensor: torch.Tensor
    place: Place
    index: Index
    value: float
    reader: int  # the op that read it
    operand: str


@dataclass(slots=True)
class Verdict:
    """Where a bad element comes from, and the next state on the way there."""

    kind: str
    state: State | None  # the generating or declaring op's element
    source: Source | None = None
    via: State | None = None  # the state one step upstream, or None at the end

    @property
    def order(self) -> int:
        """Time: the generating op, or the first op that read the source."""
        return self.state.op if self.state is not None else (self.source.reader if self.source else -1)


@dataclass(slots=True)
class Walk:
    """The judged elements of one replay."""

    microscope: Microscope
    declares: Any  # (Source) -> bool: an external value that the program means
    is_number: Any = lambda source: False  # (Source) -> bool: a NaN that was a Python number
    verdicts: dict[State, Verdict] = field(default_factory=dict)
    first_bad: dict[int, tuple[Index, float] | None] = field(default_factory=dict)  # by the identity of what is kept

    def from_tensor(self, tensor: torch.Tensor, index: Index, value: float) -> tuple[State | None, Verdict]:
        """The verdict on one bad element of a tensor of the replay, and the state that wrote it (None: no op did)."""
        found = self._upstream(Kept("", tensor), place_of(tensor), index, value, len(self.microscope.ops))
        if isinstance(found, Source):
            return None, Verdict(DECLARED if self.declares(found) else EXTERNAL, None, found)
        return found, self.judge(found)

    def judge(self, start: State) -> Verdict:
        """Judge a state and everything upstream of it, without recursion."""
        stack = [start]
        waiting: dict[State, list[Verdict | State]] = {}
        while stack:
            state = stack[-1]
            if state in self.verdicts:
                stack.pop()
                continue
            if state not in waiting:
                waiting[state] = self._candidates(state)
            unknown = [
                c for c in waiting[state] if isinstance(c, State) and c not in self.verdicts and c not in waiting
            ]
            if unknown:
                stack.extend(unknown)
                continue
            stack.pop()
            self.verdicts[state] = self._decide(state, waiting[state])
        return self.verdicts[start]

    def path(self, verdict: Verdict, start: State | None) -> list[State]:
        """The states from the origin to the symptom."""
        states: list[State] = []
        while start is not None and (not states or start != states[-1]):
            states.append(start)
            start = self.verdicts[start].via if start in self.verdicts else None
        states.reverse()
        return states

    def _candidates(self, state: State) -> list[Verdict | State]:
        """The bad elements upstream that decide about this one: NaNs before infinities."""
        seen = self.microscope.ops[state.op]
        if seen.facts.uninitialised:
            return [Verdict(DECLARED, state)]
        nans: list[tuple[Kept, Index, float]] = []
        infinities: list[tuple[Kept, Index, float]] = []
        for position, region in regions(seen, state.output, state.index):
            kept = seen.kept_inputs[position]
            bad = self._first_bad(kept, region)
            if bad is not None:
                (nans if math.isnan(bad[1]) else infinities).append((kept, *bad))
        chosen = nans or infinities if math.isnan(self._value(state)) else infinities or nans
        found: list[Verdict | State] = []
        for kept, index, value in chosen:
            upstream = self._upstream(kept, kept.place, index, value, state.op)
            if isinstance(upstream, Source):
                if seen.facts.name == "where" and self.is_number(upstream):
                    return [Verdict(DECLARED, state)]  # a NaN that stands in the program: this op chose it
                upstream.operand = kept.name
                found.append(Verdict(DECLARED if self.declares(upstream) else EXTERNAL, None, upstream))
            else:
                found.append(upstream)
        return found

    def _decide(self, state: State, candidates: list[Verdict | State]) -> Verdict:
        seen = self.microscope.ops[state.op]
        if not candidates:
            written = is_written(seen.arguments, self._value(state))
            return Verdict(DECLARED if written or seen.expected else GENERATED, state)
        judged: list[tuple[Verdict, State | None]] = []
        for candidate in candidates:
            if isinstance(candidate, Verdict):
                judged.append((candidate, None))
            elif candidate in self.verdicts:
                judged.append((self.verdicts[candidate], candidate))
        harmful = [(verdict, via) for verdict, via in judged if verdict.kind != DECLARED]
        if harmful:
            verdict, via = min(harmful, key=lambda pair: pair[0].order)
            return Verdict(verdict.kind, verdict.state, verdict.source, via)
        if math.isnan(self._value(state)) and self._made_of_infinities(seen, state):
            # inf - inf, 0 * inf, a fully masked row: declared infinities, a new NaN
            return Verdict(DECLARED if seen.expected else GENERATED, state)
        if not judged:
            return Verdict(DECLARED if seen.expected else GENERATED, state)
        verdict, via = min(judged, key=lambda pair: pair[0].order)
        return Verdict(DECLARED, verdict.state, verdict.source, via)

    def _made_of_infinities(self, seen: Seen, state: State) -> bool:
        for position, region in regions(seen, state.output, state.index):
            bad = self._first_bad(seen.kept_inputs[position], region)
            if bad is not None and math.isnan(bad[1]):
                return False
        return True

    def _first_bad(self, kept: Kept, region: Region) -> tuple[Index, float] | None:
        """The first bad element of a region; that of a whole operand is looked for once."""
        if any(item != _ALL for item in region):
            return first_bad_element(kept.tensor, region)
        if id(kept) not in self.first_bad:
            self.first_bad[id(kept)] = first_bad_element(kept.tensor)
        return self.first_bad[id(kept)]

    def _upstream(self, kept: Kept, place: Place, index: Index, value: float, before: int) -> State | Source:
        if place.storage:
            address = place.address(index)
            written = self.microscope.writer(place, address, before)
            if written is not None:
                seen, output, at = written
                return State(seen.id, output, at)
        return Source(kept.tensor, place, index, value, before, kept.name)

    def _value(self, state: State) -> float:
        return value_at(self.microscope.ops[state.op].kept_outputs[state.output].tensor, state.index)
