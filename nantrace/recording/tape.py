"""The step tape: what ran in this step, in time order, so that it can be run again.

A tensor on the tape is a `Token`. Only what a replay cannot recompute is held strongly: batches, labels,
constants. Everything that an entry call or a glue op made is known by identity alone, through a weak reference, so
that recording does not lengthen the life of a single activation.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..torch_private import node_sequence_number, view_base
from .flatten import named_leaves, replace_leaves, replace_tensors
from .frames import RawStack

MAX_DATA_OPS = 512
MAX_DATA_BYTES = 1 << 23  # of temporaries of data code, kept for the explanation of a bad batch
EXTERNAL, MADE, PARAMETER, GRADIENT = "external", "made", "parameter", "gradient"


class Token:
    """One tensor of the step, by identity.

    `held` is the tensor itself for kinds "external" and "parameter"; `saved` is a copy taken before glue
    first wrote into an external tensor, with the `version` that the copy stands for.
    """

    __slots__ = ("call", "held", "kind", "name", "owner", "ref", "saved", "version")

    def __init__(self, tensor: torch.Tensor, kind: str, name: str = "") -> None:
        self.ref = weakref.ref(tensor)
        self.held = tensor if kind in (EXTERNAL, PARAMETER) else None
        self.kind = kind
        self.name = name
        self.version = version_of(tensor)
        self.saved: torch.Tensor | None = None
        self.owner = 0  # for kind "gradient": the identity of its parameter
        self.call: FunctionCall | None = None  # the custom Function whose forward made the tensor, in glue

    def become_external(self) -> None:
        """Nothing on the tape makes this tensor any more: hold it, if it still lives."""
        self.held = self.ref()
        self.kind = EXTERNAL
        self.call = None

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>" if self.name else f"<{self.kind} {id(self):x}>"


def bytes_of(tensor: torch.Tensor) -> int:
    """The size of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


def version_of(tensor: torch.Tensor) -> int:
    """The in-place version counter, or -1 where there is none (inference tensors)."""
    return -1 if tensor.is_inference() else tensor._version


def shows_plainly(view: torch.Tensor, base: torch.Tensor) -> bool:
    """Whether a view is a stride over its base's own elements: not its real part, its conjugate or its bytes."""
    return (
        view.layout is torch.strided
        and view.dtype is base.dtype
        and view.is_conj() == base.is_conj()
        and view.is_neg() == base.is_neg()
    )


@dataclass(slots=True)
class ModeState:
    """The thread-wide switches an event ran under."""

    grad: bool
    inference: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    autocast_cache: bool


@dataclass(slots=True)
class RandomState:
    """The random streams as they stood: torch's on the CPU and on each device in use, Python's, numpy's."""

    torch_cpu: torch.Tensor
    torch_devices: tuple[tuple[int, torch.Tensor], ...]
    python: Any
    numpy: Any


@dataclass(slots=True)
class EntryCall:
    """One outermost call of a watched module."""

    module: torch.nn.Module
    path: str
    args: Any  # containers with tokens in place of tensors
    kwargs: Any
    modes: ModeState
    random: RandomState
    training: tuple[bool, ...]  # of the called module and its submodules, in `modules()` order
    buffers: dict[str, tuple[torch.Tensor, torch.Tensor]]  # name -> (the buffer, its values before the call)
    stack: RawStack
    swapped: list[tuple[torch.nn.Module, str, Token]] = field(default_factory=list)  # tensors in a parameter's place
    outputs: list[Token] = field(default_factory=list)
    events: dict[int, int] = field(default_factory=dict)  # output number -> event number in the ring's running step
    failed: bool = False  # an exception left the call
    attributes: list[Any] = field(default_factory=list)  # what its modules carried: see attributes.py
    carried: list[Token] = field(default_factory=list)  # the tensors of this step among them
    nodes: tuple[int, int] = (0, 0)  # the autograd nodes that were made in it, by sequence number
    inner: dict[tuple[int, int], Token] = field(default_factory=dict)  # (node, output of it) -> what was taken out
    expected: bool = False  # called inside `expect_nonfinite`


@dataclass(slots=True)
class GlueOp:
    """One op outside every watched module's call."""

    func: Any
    args: Any
    kwargs: Any
    outputs: list[Token]
    grad: bool
    stack: RawStack
    random: RandomState | None = None
    writes: bool = False  # the op writes into one of its arguments
    through: list[tuple[Token, Token]] = field(default_factory=list)  # written through a view: token before, and after
    sequence: int = -1  # of its autograd node: ties a node of the live graph to its line
    expected: bool = False


@dataclass(slots=True)
class FunctionCall:
    """A custom autograd Function applied in glue: run again through `apply`, as its inner ops run without gradients."""

    function: Any
    args: Any
    stack: RawStack
    grad: bool
    random: RandomState
    outputs: list[Token] = field(default_factory=list)  # everything that its forward made
    results: dict[int, Token] = field(default_factory=dict)  # output number -> its token, once something reads it
    expected: bool = False


@dataclass(slots=True)
class DataOp:
    """A glue op on data alone (no entry call, no parameter upstream): not run again, kept to name its line."""

    func: Any
    args: Any  # weak references in place of tensors
    outputs: list[weakref.ref[torch.Tensor]]
    storages: list[int]  # the outputs' storages: what wrote into a living tensor is known by them
    stack: RawStack
    versions: list[int] = field(default_factory=list)  # of the operands, then of the outputs, after the op
    held: list[torch.Tensor] = field(default_factory=list)  # those of them that are small enough to outlive the code


@dataclass(slots=True)
class EngineCall:
    """One run of the autograd engine: `backward` (accumulating) or `autograd.grad`."""

    roots: list[Token]
    grads: list[Token | None]
    keep_graph: bool
    create_graph: bool
    inputs: list[Token]
    accumulate: bool
    grad: bool
    stack: RawStack
    outputs: list[Token | None] = field(default_factory=list)  # for `autograd.grad`
    expected: bool = False


@dataclass(slots=True)
class Update:
    """An optimizer stepped (or a hand-written update wrote parameters): what ran before saw other weights."""

    parameters: frozenset[int]  # the identities of the parameters it wrote
    optimizer: str


TapeEvent = EntryCall | GlueOp | FunctionCall | EngineCall | Update


class Tape:
    """The events of the current step and the identity of their tensors, bounded in events and held bytes."""

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self.max_events = max_events
        self.max_bytes = max_bytes
        self.events: list[TapeEvent] = []
        self.data_ops: list[DataOp] = []
        self.data_bytes = 0  # held by them
        self.held_bytes = 0
        self.overflowed = ""  # why the tape stopped recording in this step, in a sentence
        self.wrote_gradients = False  # glue has written into a parameter's gradient (clipping)
        self._tokens: dict[int, Token] = {}
        self._sweep_at = 256

    def known(self, tensor: torch.Tensor) -> Token | None:
        """The token of a tensor that is on the tape, or None."""
        token = self._tokens.get(id(tensor))
        return token if token is not None and token.ref() is tensor else None

    def made(self, tensor: torch.Tensor) -> Token:
        """A token for a tensor that an event has just made (or written)."""
        token = self.known(tensor)
        if token is None or token.kind != MADE:
            token = self._tokens[id(tensor)] = Token(tensor, MADE)
        elif view_base(tensor) is not None:
            token.version = version_of(tensor)
        return token

    def token(self, tensor: torch.Tensor) -> Token:
        """The token of a tensor that an event reads; one that nothing on the tape made is external."""
        token = self.known(tensor)
        if token is None or (token.kind == MADE and token.version != version_of(tensor)):
            token = self._viewed_again(tensor) or token
        token = token or self._inner(tensor) or self._alias(tensor)
        if token is None:
            return self._external(tensor)
        if token.call is not None and tensor.grad_fn is not None:
            token.call.results[tensor.output_nr] = token
        return token

    def made_here(self, tensor: torch.Tensor) -> Token | None:
        """The token of a tensor that the running step has made, or None."""
        token = self.known(tensor) or self._inner(tensor)
        return token if token is not None and token.kind == MADE else None

    def view(self, tensor: torch.Tensor, base: Token, stack: RawStack) -> Token:
        """Put a view on the tape that no event has made: what the tensor shows of its base now."""
        place = (list(tensor.shape), list(tensor.stride()), tensor.storage_offset())
        grad = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        token = self._tokens[id(tensor)] = Token(tensor, MADE)
        self.add(GlueOp(torch.ops.aten.as_strided.default, (base, *place), {}, [token], grad, stack))
        return token

    def _viewed_again(self, tensor: torch.Tensor) -> Token | None:
        """A view is read after its memory was written through another one: the writes must come before it."""
        base = view_base(tensor)
        token = self.known(base) if base is not None else None
        if base is None or token is None or token.kind != MADE or not shows_plainly(tensor, base):
            return None
        return self.view(tensor, token, ())

    def parameter(self, tensor: torch.Tensor, name: str) -> Token:
        """A token for a watched parameter."""
        return self._named(tensor, PARAMETER, name)

    def gradient(self, tensor: torch.Tensor, parameter: torch.Tensor, name: str) -> Token:
        """A token for a parameter's gradient."""
        token = self._named(tensor, GRADIENT, name)
        token.owner = id(parameter)
        return token

    def _named(self, tensor: torch.Tensor, kind: str, name: str) -> Token:
        token = self.known(tensor)
        if token is None or token.kind != kind:
            token = self._tokens[id(tensor)] = Token(tensor, kind, name)
        return token

    def tokens_for(self, value: Any) -> Any:
        """The value with a token in place of each tensor."""
        return replace_tensors(value, self.token)

    def add(self, event: TapeEvent) -> None:
        """Put an event on the tape. Past the bounds the tape stops, and says why."""
        if self.overflowed:
            return
        if len(self.events) >= self._sweep_at:
            self.sweep()
            self._sweep_at = max(256, 2 * len(self.events))
        if len(self.events) >= self.max_events:
            self._stop(f"the step has more than {self.max_events} calls and loss ops (max_tape_events)")
        elif self.held_bytes > self.max_bytes:
            self.sweep()
            if self.held_bytes > self.max_bytes:
                self._stop(f"the step's inputs hold more than {self.max_bytes >> 20} MiB (max_tape_bytes)")
        if not self.overflowed:
            self.events.append(event)

    def save_before_write(self, token: Token, limit: int = 1 << 24) -> None:
        """Copy an external tensor before glue writes into it: the ops before the write must see the old values."""
        tensor = token.held
        if token.kind == EXTERNAL and token.saved is None and tensor is not None:
            if tensor.numel() * tensor.element_size() <= limit:
                token.saved = tensor.detach().clone()
                self.held_bytes += tensor.numel() * tensor.element_size()

    def note(self, op: DataOp) -> None:
        """Note an op on data alone; the oldest ones are forgotten."""
        if len(self.data_ops) >= MAX_DATA_OPS:
            forgotten = self.data_ops[: MAX_DATA_OPS // 2]
            del self.data_ops[: MAX_DATA_OPS // 2]
            self.data_bytes -= sum(bytes_of(tensor) for op in forgotten for tensor in op.held)
        self.data_bytes += sum(bytes_of(tensor) for tensor in op.held)
        self.data_ops.append(op)

    def cut(self, position: int) -> None:
        """Forget the events before `position`, and every token that only they used.

        What they made and a later event reads comes from outside now.
        """
        del self.events[:position]
        made = {id(token) for event in self.events for token in tokens_made_by(event)}
        for event in self.events:
            for token in tokens_read_by(event):
                if token.kind == MADE and id(token) not in made:
                    token.become_external()
        self._forget_unused()

    def clear(self) -> None:
        """Forget everything: a step has ended."""
        self.events.clear()
        self.data_ops.clear()
        self.data_bytes = 0
        self._tokens.clear()
        self.held_bytes = 0
        self.overflowed = ""
        self.wrote_gradients = False

    def serves_another_leaf(self) -> bool:
        """Whether a backward of the step gave a gradient to a tensor that is no parameter (an adversarial input)."""
        others = (token.ref() for token in self._tokens.values() if token.kind in (EXTERNAL, MADE))
        return any(t is not None and t.requires_grad and t.is_leaf and t.grad is not None for t in others)

    def sweep(self) -> None:
        """Forget the events whose results nobody can use any more: all dead, and read by no event that stays.

        A call under no_grad whose outputs have died cannot matter. An engine call, an update and a write always stay.
        """
        needed: set[int] = set()
        kept: list[TapeEvent] = []
        for event in reversed(self.events):
            if _matters(event, needed):
                kept.append(event)
                needed.update(id(token) for token in tokens_read_by(event))
        kept.reverse()
        self.events = kept
        self._forget_unused()

    def _forget_unused(self) -> None:
        used = {id(token) for event in self.events for token in (*tokens_read_by(event), *tokens_made_by(event))}
        self._tokens = {
            key: token
            for key, token in self._tokens.items()
            if id(token) in used or (token.kind == MADE and token.ref() is not None)
        }
        self.held_bytes = sum(_bytes_of(token) for token in self._tokens.values())

    def _inner(self, tensor: torch.Tensor) -> Token | None:
        """A token for a tensor that a module's call made and that left it otherwise than as its output.

        An auxiliary loss in an attribute, a feature that a hook has put aside: known by its autograd node.
        """
        number = node_sequence_number(tensor.grad_fn) if tensor.grad_fn is not None else None
        if number is None:
            return None
        for event in reversed(self.events):
            if isinstance(event, EntryCall) and event.nodes[0] <= number < event.nodes[1]:
                token = self._tokens[id(tensor)] = Token(tensor, MADE)
                event.inner[number - event.nodes[0], tensor.output_nr] = token
                return token
        return None

    def _alias(self, tensor: torch.Tensor) -> Token | None:
        """A token for a whole view of a tensor on the tape: what a tensor subclass wraps every result in."""
        base = view_base(tensor)
        of = self.known(base) if base is not None and base.shape == tensor.shape else None
        if base is None or of is None or of.kind != MADE or base.stride() != tensor.stride():
            return None
        token = self._tokens[id(tensor)] = Token(tensor, MADE)
        self.add(GlueOp(torch.ops.aten.alias.default, (of,), {}, [token], tensor.requires_grad, ()))
        return token

    def _external(self, tensor: torch.Tensor) -> Token:
        token = self._tokens[id(tensor)] = Token(tensor, EXTERNAL)
        self.held_bytes += tensor.numel() * tensor.element_size()
        return token

    def _stop(self, reason: str) -> None:
        """Past a bound: start anew where nothing so far can reach a gradient (a long validation), else stop."""
        graded = any(_records_gradient(event) for event in self.events)
        self.clear()
        if graded:
            self.overflowed = reason


def _records_gradient(event: TapeEvent) -> bool:
    if isinstance(event, EntryCall):
        return event.modes.grad
    return isinstance(event, EngineCall) or (isinstance(event, (GlueOp, FunctionCall)) and event.grad)


def _bytes_of(token: Token) -> int:
    tensor = token.held
    if token.kind != EXTERNAL or tensor is None:
        return 0
    return tensor.numel() * tensor.element_size() * (2 if token.saved is not None else 1)


def _matters(event: TapeEvent, needed: set[int]) -> bool:
    if isinstance(event, (EngineCall, Update)) or (isinstance(event, GlueOp) and event.writes):
        return True
    return any(id(token) in needed or token.ref() is not None for token in tokens_made_by(event))


def tokens_made_by(event: TapeEvent) -> list[Token]:
    """The tokens of an event's results."""
    if isinstance(event, Update):
        return []
    if isinstance(event, EntryCall) and event.inner:
        return [*event.outputs, *event.inner.values()]
    return [token for token in event.outputs if token is not None]


def tokens_read_by(event: TapeEvent) -> Iterator[Token]:
    """The tokens of everything an event reads."""
    if isinstance(event, (EntryCall, GlueOp)):
        yield from tokens_in(event.args)
        yield from tokens_in(event.kwargs)
        if isinstance(event, EntryCall):
            yield from (token for _, _, token in event.swapped)
            yield from event.carried
        else:
            yield from (before for before, _ in event.through)
    elif isinstance(event, FunctionCall):
        yield from tokens_in(event.args)
    elif isinstance(event, EngineCall):
        yield from event.roots
        yield from (token for token in event.grads if token is not None)
        yield from event.inputs


def tokens_in(value: Any) -> Iterator[Token]:
    """The tokens in a value made by `Tape.tokens_for`."""
    for _, token in named_leaves(value, Token):
        yield token


def replace_tokens(value: Any, replace: Callable[[Token], Any]) -> Any:
    """The value with every token replaced."""
    return replace_leaves(value, Token, replace)
