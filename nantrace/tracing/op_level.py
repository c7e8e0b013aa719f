"""level="op": every op is seen as it runs, for what cannot be replayed.

The same records as in a replay, made live: the operands of a bad result are kept as they were (in-place ops are copied
before), everything else leaves a range, a place and a line. Nothing here reaches the user's program: a fault of our
own is noted, and the observer goes blind for the rest of the step.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from ..recording.flatten import tensors_in
from ..recording.frames import RawStack, is_torch
from ..recording.names import ModuleNames
from ..recording.tape import EngineCall, EntryCall, GlueOp, TapeEvent
from ..torch_private import running_node, saved_by
from .backward import ENGINE_CODES
from .microscope import FailedOp, Kept, Microscope, Seen
from .place import place_of
from .playing import FUNCTION_CODE
from .run import Run
from .schema import OpFacts, facts_of, operands

log = logging.getLogger("nantrace")

MAX_OPS = 100_000  # of a step; past it the step is no longer observed
MAX_CAPTURED = 64  # forward ops whose operands are kept for a derivative that failed

# ops whose derivative can be singular where their result is finite: their operands are held until the step ends
_HELD = frozenset(
    {
        "sqrt", "pow", "acos", "asin", "acosh", "atanh", "hypot", "xlogy", "atan2", "std", "var", "norm", "erfinv",
        "linalg_vector_norm", "linalg_eigh", "linalg_svd", "logsumexp", "logit", "rsqrt",
    }
)  # fmt: skip


class LiveMicroscope(Microscope):
    """Observes the training run itself."""

    def __init__(self) -> None:
        super().__init__(ENGINE_CODES, FUNCTION_CODE, lambda module: None)
        self.events: list[TapeEvent] = []
        self.blind = ""  # why nothing more of the step is observed, in a sentence
        self._paused = 0
        self._waiting: list[tuple[Any, ...]] = []  # a loss op that has run, until it is known what it belongs to
        self._captured: dict[int, Seen] = {}
        self._held: dict[int, list[Kept]] = {}
        self._faults = 0
        self._names: ModuleNames | None = None

    def begin(self, names: ModuleNames) -> None:
        """The watch begins: know its modules."""
        self._module_path = lambda module: names.path(module, look_again=False)
        self._names = names
        self.listen_here()

    # What ran

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused or self.blind:
            return func(*args, **kwargs)
        facts = facts_of(func)
        before = self._copies(facts, args, kwargs)
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            self.failed = None
            self._note_failure(facts, args, kwargs, error)
            raise
        if self.event < 0:
            self._waiting.append((func, facts, args, kwargs, result, before))
        else:
            self._observe(func, facts, args, kwargs, result, before)
        return result

    def _copies(self, facts: OpFacts, args: Any, kwargs: Any) -> dict[int, torch.Tensor]:
        try:
            return self._before(facts, args, kwargs) if facts.written else {}
        except Exception as error:
            self._fault(error)
            return {}

    def _observe(
        self, func: Any, facts: OpFacts, args: Any, kwargs: Any, result: Any, before: dict[int, torch.Tensor]
    ) -> None:
        try:
            if facts.is_view:
                self._note_view(facts)
                return
            self._record(func, facts, args, kwargs, result, before)
            seen = self.ops[-1]
            if facts.name in _HELD and not seen.backward and torch.is_grad_enabled():
                self._hold(seen, args, kwargs)
            if seen.bad and seen.backward and not seen.bad_input:
                self._capture(seen)
            if len(self.ops) >= MAX_OPS:
                self._go_blind(f"the step has more than {MAX_OPS} ops")
        except Exception as error:
            self._fault(error)

    def _hold(self, seen: Seen, args: Any, kwargs: Any) -> None:
        kept = [Kept(name, tensor) for name, tensor in operands(seen.facts, args, kwargs)]
        self._held[seen.id] = kept
        for one in kept:
            self._holders[one.place.storage].append(one)

    def _capture(self, seen: Seen) -> None:
        """A derivative has just made a bad value: its node still has what the forward op saved."""
        forward = self.op(seen.forward_id) if seen.forward_id is not None else None
        if forward is None or forward.id in self._captured or len(self._captured) >= MAX_CAPTURED:
            return
        saved = saved_by(running_node()).tensors
        inputs = self._held.get(forward.id) or [
            Kept(name, saved[name]) for name in forward.facts.arguments if isinstance(saved.get(name), torch.Tensor)
        ]
        result = saved.get("result")
        outputs = [Kept("", result)] if isinstance(result, torch.Tensor) else []
        self._captured[forward.id] = replace(forward, kept_inputs=inputs, kept_outputs=outputs)

    def forward_operands(self, number: int) -> Seen | None:
        """The forward op of that number with its operands, where a derivative of it has made a bad value."""
        return self._captured.get(number)

    # Where it ran

    def _seen(self, number: int, facts: OpFacts) -> Seen:
        event = self.events[self.event]
        seen = super()._seen(number, facts)
        seen.glue = not isinstance(event, (EntryCall, EngineCall)) and not seen.backward
        if isinstance(event, EntryCall):
            seen.stack = _below(seen.stack, event.stack)
        elif isinstance(event, EngineCall):
            seen.stack = _inside_engine(seen.stack)
        return seen

    def pause(self) -> None:
        """What runs from here on is not the program's."""
        self._paused += 1

    def resume(self) -> None:
        """The program goes on."""
        self._paused -= 1

    def event_begins(self, event: TapeEvent) -> None:
        """The next ops belong to this event of the tape."""
        self.events.append(event)
        self.event = len(self.events) - 1

    def event_ends(self) -> None:
        """What comes now belongs to no event yet."""
        self.event = -1

    def glue_ran(self, event: TapeEvent | None) -> None:
        """The ops that wait belong to this event; those on data alone to none."""
        waiting, self._waiting = self._waiting[-1:], []  # what ran before it went past the glue mode: not the program's
        if event is None or not waiting or self._writes_parameter(event, waiting):
            return
        if not self.events or self.events[-1] is not event:
            self.events.append(event)
        self.event = len(self.events) - 1
        self.pause()  # what it takes to look at the op is not the program's
        for one in waiting:
            self._observe(*one)
        self.resume()
        self.event = -1

    def _writes_parameter(self, event: TapeEvent, waiting: list[tuple[Any, ...]]) -> bool:
        """Whether loss code writes into a watched parameter: what it then holds counts as the parameter's own."""
        if not isinstance(event, GlueOp) or not event.writes or self._names is None:
            return False
        places = {p.untyped_storage().data_ptr() for p, _ in self._names.parameters.values()}
        written = (t for _, facts, args, *_ in waiting for i in facts.written for t in tensors_in(args[i : i + 1]))
        return any(place_of(tensor).storage in places for tensor in written)

    def module_begins(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        """Know which module the next ops belong to; one outside every watched module's call is nobody's."""
        path = self._module_path(module)
        if path is None:
            self._modules.append(self._modules[-1] if self._modules else _NOBODY)
        else:
            self._modules.append((path, type(module).__name__))

    def clear(self) -> None:
        """The step has ended: forget it."""
        for content in (
            self.ops, self.views, self.events, self._writers, self._holders, self._bad_storages, self._checked,
            self._by_sequence, self._waiting, self._captured, self._held,
        ):  # fmt: skip
            content.clear()
        self.failed = None
        self.blind = ""
        self.event = -1

    def optimizer_begins(self, optimizer: Any, closure: bool) -> None:
        """Nothing: in the run itself optimizers step."""

    def _note_failure(self, facts: OpFacts, args: Any, kwargs: Any, error: BaseException) -> None:
        super()._note_failure(facts, args, kwargs, error)
        failed: FailedOp | None = self.failed
        event = self.events[self.event] if self.event >= 0 else None
        if failed is None:
            return
        failed.glue = event is None
        if isinstance(event, EntryCall):
            failed.entry = event
            failed.stack = _below(failed.stack, event.stack)

    def _go_blind(self, reason: str) -> None:
        self.clear()
        self.blind = reason

    def _fault(self, error: Exception) -> None:
        self._faults += 1
        if self._faults == 1:
            log.warning("nantrace: a fault of its own while observing an op: %r", error, exc_info=error)
        self._go_blind(f"a fault of nantrace's own: {type(error).__name__}: {error}")

    # What it makes of it

    def run(self, needed: list[TapeEvent]) -> Run:
        """What was seen, as a replay would have left it. `needed` is what the symptom depends on."""
        run = Run(self, self.events, {}, {}, [])
        chosen = {id(event) for event in needed if isinstance(event, EngineCall) and event.accumulate}
        run.first_accumulation = next((i for i, event in enumerate(self.events) if id(event) in chosen), None)
        return run


_NOBODY: Any = (None, None)


def _below(stack: RawStack, entry: RawStack) -> RawStack:
    """The frames below an entry call: those outside of it stand still while it runs."""
    outside = next((i for i, (code, _) in enumerate(entry) if not is_torch(code)), None)
    if outside is None:
        return stack
    outer = entry[outside:]
    for start in range(len(stack) - 1, -1, -1):
        if stack[start] == outer[0]:
            rest = stack[start:]
            if rest == outer[: len(rest)] or rest[: len(outer)] == outer:
                return stack[:start]
    return stack


def _inside_engine(stack: RawStack) -> RawStack:
    for position, (code, _) in enumerate(stack):
        if code in ENGINE_CODES:
            return stack[: position + 1]
    return stack
