"""The dispatch mode of the replay: sees every op, forward and backward, and keeps what the walk will need.

Tensors are kept only where a result is not finite: that result and the op's operands. Of everything else there
remain a range, a place in memory and a line, so that a replay needs little more memory than the step itself.
"""

from __future__ import annotations

import math
import os
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, NamedTuple

import torch

from ..model import TensorSummary
from ..recording.expecting import expecting
from ..recording.flatten import tensors_in
from ..recording.frames import RawStack, raw_stack_here
from ..recording.patches import ModuleListener
from ..recording.statistics import stored
from ..recording.tape import EntryCall
from ..torch_private import TorchDispatchMode, node_sequence_number, running_node, sequence_number
from .place import Place, place_of
from .schema import OpFacts, facts_of, operands, scalars, written_in
from .summaries import brief, value_at


class Enough(BaseException):
    """The op that was wanted has been seen: the rest of the replay is not needed."""


class Kept:
    """A tensor as it was when an op read or made it; copied only if something is about to write into it."""

    __slots__ = ("name", "place", "tensor")

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name = name
        self.tensor = tensor.detach() if tensor.layout is torch.strided else tensor
        self.place = place_of(tensor)


class Recomputation(NamedTuple):
    """Which part of the forward a checkpoint runs again, by the op of the node that asked for it."""

    op: int | None
    first: bool  # whether that op is the first of its part (a reentrant checkpoint); else it is one of the last


@dataclass(slots=True)
class Seen:
    """One executed op."""

    id: int
    facts: OpFacts
    event: int  # which event of the tape was running
    glue: bool
    backward: bool
    recomputed: Recomputation | None  # for a checkpoint's forward op, run again in the backward
    module: str | None
    module_type: str | None
    node: str | None
    forward_id: int | None
    stack: RawStack
    arguments: dict[str, Any] = field(default_factory=dict)
    places: list[tuple[str, Place]] = field(default_factory=list)  # of the operands
    outputs: list[Place] = field(default_factory=list)
    summaries: list[TensorSummary] = field(default_factory=list)
    upstream: list[tuple[int, int, int]] = field(default_factory=list)  # (op id, its output, operand)
    bad: list[int] = field(default_factory=list)  # outputs that are not finite
    kept_inputs: list[Kept] = field(default_factory=list)
    kept_outputs: list[Kept] = field(default_factory=list)
    bad_input: bool = False
    expected: bool = False  # the program has declared the non-finite values of this op
    sparse: bool = False  # an operand or a result is sparse: it is known by its stored values alone
    result: torch.Tensor | None = None  # the first bad op's result as the program got it: its grad_fn is attached later
    made_inside: tuple[str, ...] = ()  # operands that an earlier op of the same autograd node made
    gradient_operands: tuple[int, ...] = ()  # of a backward op: operands that an earlier node of the backward made
    func: Any = None
    args: Any = None  # held only while a result is bad: the walk asks movers where an element came from
    kwargs: Any = None


@dataclass(slots=True)
class FailedOp:
    """The op that raised: what an exception's explanation is made from."""

    facts: OpFacts
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    module: str | None
    module_type: str | None
    glue: bool
    stack: RawStack
    error: BaseException
    entry: EntryCall | None = None  # the entry call it was in, where it was not glue


class Microscope(TorchDispatchMode, ModuleListener):
    """Observes the replay. `event`, `glue` and `stack` are set by the replay before each event of the tape."""

    def __init__(
        self,
        engine_codes: frozenset[CodeType],
        function_code: CodeType,
        module_path: Callable[[torch.nn.Module], str | None],
        wanted: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Seen] = []
        self.views: list[Seen] = []  # ops that only alias, kept for the names of their derivatives
        self._ops_before_view: list[int] = []
        self._wanted = wanted  # the one op to keep the operands of, after which the replay may stop
        self.failed: FailedOp | None = None
        self.event = -1
        self.expected = False  # the running event was inside `expect_nonfinite`
        self.glue_stack: RawStack | None = None  # the live stack of the glue op that runs now
        self.thread = 0
        self._modules: list[tuple[str, str]] = []  # (path, type name) of the calls that run
        self._writers: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._holders: dict[int, list[Kept]] = defaultdict(list)
        self._bad_storages: set[int] = set()
        self._checked: dict[int, bool] = {}  # sources (tensors that no op of the replay wrote): are they bad?
        self._by_sequence: dict[int, int] = {}
        self._last_sequence = -1
        self._engine_codes = engine_codes
        self._function_code = function_code
        self._module_path = module_path

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled code is run eagerly in a replay; nothing of it needs to be recompiled."""
        return True

    # What ran

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        facts = facts_of(func)
        before = self._before(facts, args, kwargs)
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            self._note_failure(facts, args, kwargs, error)
            raise
        if facts.is_view:
            self._note_view(facts)
        else:
            self._record(func, facts, args, kwargs, result, before)
        return result

    def _before(self, facts: OpFacts, args: Any, kwargs: Any) -> dict[int, torch.Tensor]:
        """Copies of the tensors that the op is about to write, by identity; whoever keeps them gets a copy too."""
        copies: dict[int, torch.Tensor] = {}
        for tensor in written_in(facts, args, kwargs):
            if tensor.layout is not torch.strided:
                continue
            place = place_of(tensor)
            for holder in self._holders.pop(place.storage, ()):
                holder.tensor = holder.tensor.clone()
            copies[id(tensor)] = tensor.detach().clone()
        return copies

    def _record(
        self, func: Any, facts: OpFacts, args: Any, kwargs: Any, result: Any, before: dict[int, torch.Tensor]
    ) -> None:
        number = len(self.ops)
        given = list(operands(facts, args, kwargs))
        made = list(tensors_in(result))
        returned = {id(tensor) for tensor in made}
        made += [tensor for tensor in written_in(facts, args, kwargs) if id(tensor) not in returned]
        inputs = [(name, stored(tensor)) for name, tensor in given]
        results = [stored(tensor) for tensor in made]
        seen = self._seen(number, facts)
        seen.sparse = any(tensor.layout is not torch.strided for tensor in (*made, *(t for _, t in given)))
        self._name_sequence(number)
        if self._wanted is not None and number != self._wanted:
            self.ops.append(seen)
            return
        seen.arguments = scalars(facts, args, kwargs)
        seen.places = [(name, place_of(tensor)) for name, tensor in inputs]
        seen.outputs = [place_of(tensor) for tensor in results]
        seen.summaries = [brief(tensor) for tensor in results]
        seen.upstream = [
            (*self._writers[place.storage][-1], position)
            for position, (_, place) in enumerate(seen.places)
            if place.storage and self._writers.get(place.storage)
        ]
        seen.bad = [] if facts.uninitialised else [i for i, s in enumerate(seen.summaries) if s.nonfinite]
        seen.bad_input = any(
            self._is_bad(tensor, place) for (_, tensor), (_, place) in zip(inputs, seen.places, strict=True)
        )
        if seen.bad:
            seen.made_inside = tuple(
                seen.places[operand][0]
                for writer, _, operand in seen.upstream
                if seen.backward and self.ops[writer].backward and self.ops[writer].forward_id == seen.forward_id
            )
            if seen.backward:
                written = {operand: self.ops[writer] for writer, _, operand in seen.upstream}
                seen.gradient_operands = tuple(
                    i
                    for i, (name, place) in enumerate(seen.places)
                    if name not in seen.made_inside
                    and (written[i].backward if i in written else place.storage not in self._checked)
                )
        if seen.bad or number == self._wanted:
            self._keep(seen, inputs, results, before)
            seen.func, seen.args, seen.kwargs = func, args, kwargs
            seen.result = made[0] if made and not seen.backward else None
        self.ops.append(seen)
        for output, place in enumerate(seen.outputs):
            if place.storage:
                self._writers[place.storage].append((number, output))
                if output in seen.bad:
                    self._bad_storages.add(place.storage)
        if number == self._wanted:
            raise Enough

    def _keep(self, seen: Seen, inputs: Any, results: Any, before: dict[int, torch.Tensor]) -> None:
        for name, tensor in inputs:
            copied = before.get(id(tensor))
            kept = Kept(name, tensor if copied is None else copied)
            kept.place = place_of(tensor)
            seen.kept_inputs.append(kept)
            if copied is None:
                self._holders[kept.place.storage].append(kept)
        for tensor in results:
            kept = Kept("", tensor)
            seen.kept_outputs.append(kept)
            self._holders[kept.place.storage].append(kept)

    def _is_bad(self, tensor: torch.Tensor, place: Place) -> bool:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return False
        if place.storage in self._bad_storages:
            return bool(brief(tensor).nonfinite)
        if place.storage in self._writers:
            return False
        known = self._checked.get(place.storage)
        if known is None:
            known = self._checked[place.storage] = bool(brief(tensor).nonfinite)
        return known

    def _seen(self, number: int, facts: OpFacts) -> Seen:
        """A record with what the surroundings say: module, autograd node, forward op, stack."""
        stack = raw_stack_here(3)
        node = running_node()
        backward = node is not None and _in_backward(stack, self._engine_codes)
        sequence = node_sequence_number(node) if backward else None
        glue = self.glue_stack is not None and not backward
        return Seen(
            id=number,
            facts=facts,
            event=self.event,
            glue=glue,
            backward=backward,
            recomputed=self._recomputation(node) if node is not None and not backward else None,
            module=self._modules[-1][0] if self._modules else None,
            module_type=self._modules[-1][1] if self._modules else None,
            node=node.name() if backward else None,
            forward_id=self._by_sequence.get(sequence) if sequence is not None else None,
            stack=self._live_stack(stack) if glue else stack,
            expected=self.expected or expecting(),
        )

    def _recomputation(self, node: Any) -> Recomputation:
        sequence = node_sequence_number(node)
        op = self._by_sequence.get(sequence) if sequence is not None else None
        first = node.name() == "CheckpointFunctionBackward"
        if op is not None and op < 0:  # a view: the op that came next, or the one before
            op = self._ops_before_view[-op - 1] - (not first)
        return Recomputation(op, first)

    def _live_stack(self, stack: RawStack) -> RawStack:
        """The stack of a glue op as it was in the live run; inside a custom Function its own frames come on top."""
        for i, (code, _) in enumerate(stack):
            if code is self._function_code:
                return stack[:i] + (self.glue_stack or ())
        return self.glue_stack or stack

    def _name_sequence(self, number: int) -> None:
        """torch numbers an autograd node just before its op is dispatched: the first op after that is its op."""
        current = sequence_number()
        if current != self._last_sequence:
            self._last_sequence = current
            self._by_sequence[current - 1] = number

    def _note_view(self, facts: OpFacts) -> None:
        if sequence_number() != self._last_sequence:
            self._ops_before_view.append(len(self.ops))
            self.views.append(self._seen(-len(self.views) - 1, facts))
            self._name_sequence(-len(self.views))

    def op(self, number: int) -> Seen:
        """The op of that number; views have negative ones."""
        return self.ops[number] if number >= 0 else self.views[-number - 1]

    def _note_failure(self, facts: OpFacts, args: Any, kwargs: Any, error: BaseException) -> None:
        if self.failed is None:
            path, kind = self._modules[-1] if self._modules else (None, None)
            stack = self.glue_stack if self.glue_stack is not None else raw_stack_here(2)
            self.failed = FailedOp(facts, args, kwargs, path, kind, self.glue_stack is not None, stack, error)

    # Asked by the walk

    def writer(self, place: Place, address: int, before: int) -> tuple[Seen, int, tuple[int, ...]] | None:
        """The newest op before `before` that left a bad value at this address: (op, its output, the index there)."""
        for number, output in reversed(self._writers.get(place.storage, ())):
            if number >= before:
                continue
            index = self.ops[number].outputs[output].index_of(address)
            if index is None:
                continue
            seen = self.ops[number]
            if seen.facts.uninitialised or (output in seen.bad and not math.isfinite(_value(seen, output, index))):
                return seen, output, index
        return None

    def covers(self, place: Place, address: int, before: int) -> bool:
        """Whether any op of the replay wrote this address before that one."""
        return any(
            number < before and self.ops[number].outputs[output].index_of(address) is not None
            for number, output in self._writers.get(place.storage, ())
        )

    # A listener of module calls, in the replay's thread

    def module_begins(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """Know which module the next ops belong to."""
        if threading.get_ident() != self.thread:
            return
        path = self._module_path(module)
        if path is None:  # a module nobody watches belongs to the one that calls it
            self._modules.append(self._modules[-1] if self._modules else ("", type(module).__name__))
        else:
            self._modules.append((path, type(module).__name__))

    def module_ends(self, module: torch.nn.Module, args: Any, *rest: Any) -> None:
        """The module's call is over."""
        if self._modules and threading.get_ident() == self.thread:
            self._modules.pop()

    def optimizer_begins(self, optimizer: Any, closure: bool) -> None:
        """A replay must never update anything: an optimizer that steps inside the model's own code stops it."""
        raise RuntimeError(f"the model's own code stepped {type(optimizer).__name__}: a replay does not update weights")

    def listen_here(self) -> None:
        """Take this thread as the replay's."""
        self.thread = threading.get_ident()


def _value(seen: Seen, output: int, index: tuple[int, ...]) -> float:
    return value_at(seen.kept_outputs[output].tensor, index)


def _in_backward(stack: RawStack, engine_codes: frozenset[CodeType]) -> bool:
    """Going outward, the engine comes before checkpoint's recomputation: an op of the backward itself."""
    for code, _ in stack:
        if code in engine_codes:
            return True
        if is_checkpoint(code):
            return False
    return True  # a device thread of the engine: no Python frames of the caller


def is_checkpoint(code: CodeType) -> bool:
    """Whether a frame belongs to torch's activation checkpointing."""
    return code.co_filename.endswith(_CHECKPOINT)


_CHECKPOINT = os.path.join("torch", "utils", "checkpoint.py")
