"""Whose tensor is it: parameters, buffers, arguments of entry calls, and constants of the loss code."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass

import torch

from ..model import BadSource, Frame, Origin
from ..recording.flatten import named_leaves, tensors_in
from ..recording.names import ModuleNames, clean
from ..recording.tape import EXTERNAL, DataOp, EntryCall, FunctionCall, GlueOp, TapeEvent, Token
from .definitions import definition_of, owner_in
from .microscope import Microscope
from .place import place_of
from .preparation import origin_in_data
from .run import Run
from .summaries import describe
from .walk import Source


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose memory a storage is."""

    kind: str  # "parameter" | "buffer" | "input" | "label" | "constant" | "computed" (by what the tape did not see)
    name: str
    entry: str | None = None  # for "input": the module path that was called with it
    tensor: torch.Tensor | None = None  # the owner's own tensor: what was read may be a view of it

    @property
    def label(self) -> str:
        """As operands are labelled: "parameter fc.weight"; nothing for a constant."""
        return "" if self.kind == "constant" else f"{self.kind} {self.name}".strip()


_CONSTANT = Owner("constant", "")


class Owners:
    """The owners of the storages that the replay read without writing them first."""

    def __init__(self, run: Run, names: ModuleNames, data_ops: list[DataOp]) -> None:
        self._run = run
        self._data_ops = data_ops
        self._roots = names.roots
        self._by_storage: dict[int, Owner] = {}
        self._trained: set[str] = set()
        for root in names.roots:
            for path, buffer in root.named_buffers():
                self._note(buffer, Owner("buffer", clean(path), tensor=buffer))
            for path, parameter in root.named_parameters():
                self._note(parameter, Owner("parameter", clean(path), tensor=parameter))
                if parameter.requires_grad:
                    self._trained.add(clean(path))
        self._label_entries(run.events)
        for name, value in run.carried:
            for tensor in tensors_in(value):
                self._note(tensor, Owner("buffer", name, tensor=tensor), keep_first=True)

    def note_symptoms(self, tokens: list[Token]) -> None:
        """Know the symptom's own tensors too, which no event need have read."""
        for token in tokens:
            self._note_token(token, _CONSTANT)

    def of(self, storage: int) -> Owner:
        """The owner of a storage; a constant where nobody owns it."""
        return self._by_storage.get(storage, _CONSTANT)

    def own(self, tensor: torch.Tensor, kind: str, name: str) -> None:
        """Name a tensor that belongs to no module: an optimizer's state, a gradient."""
        self._note(tensor, Owner(kind, name), keep_first=True)

    def declares(self, source: Source) -> bool:
        """Whether the program means a bad value from outside: a mask of -inf, or a literal in a module's code."""
        owner = self.of(source.place.storage)
        if self.made_by_data(source) is not None:
            return False
        if source.value == -math.inf and owner.name not in self._trained:
            return True
        if owner.kind in ("label", "constant") and _is_literal(source):
            return True
        if owner.kind == "constant":
            ops = self._run.microscope.ops
            reader = ops[source.reader] if 0 <= source.reader < len(ops) else None
            # made in a module's code, or in the backward of a custom Function: no label comes in there
            return reader is not None and (reader.backward or isinstance(self._run.events[reader.event], EntryCall))
        return False

    def is_number(self, source: Source) -> bool:
        """Whether a NaN came as a single value that is no parameter, buffer or input: as a Python number does."""
        owned = self.of(source.place.storage).kind in ("parameter", "buffer", "input")
        return math.isnan(source.value) and source.tensor.dim() == 0 and not owned

    def made_by_data(self, source: Source) -> Origin | None:
        """The op of the loop's data code that generated a value, where that can still be shown."""
        if self.of(source.place.storage).kind in ("parameter", "buffer"):
            return None
        tensor, index = source.tensor, source.index
        batch = self._run.sources.get(source.place.storage)
        copied = self._run.twins.get(id(batch)) if batch is not None else None
        if batch is not None and batch.held is not None and copied is not None:  # the replay read a copy of it
            own = place_of(copied).index_of(source.place.address(index))
            tensor, index = (batch.held, own) if own is not None else (tensor, index)
        return origin_in_data(tensor, index, self._data_ops)

    def unseen_node(self, source: Source) -> str | None:
        """The autograd node of a value that was computed in this step by something the tape did not see."""
        owner = self.of(source.place.storage)
        return owner.name if owner.kind == "computed" else None

    def bad_source(self, source: Source) -> BadSource:
        """The plain record of a bad value that came from outside."""
        owner = self.of(source.place.storage)
        kind = "label" if owner.kind == "constant" else owner.kind
        name = owner.name or source.operand
        tensor, index = source.tensor, source.index
        if owner.tensor is not None:
            own = place_of(owner.tensor).index_of(source.place.address(index))
            tensor, index = (owner.tensor.detach(), own) if own is not None else (tensor, index)
        made = self._definition(owner) if kind in ("parameter", "buffer") else None
        return BadSource(kind, name, describe(tensor, name), index, source.value, owner.entry, made=made)

    def _definition(self, owner: Owner) -> Frame | None:
        """The user's line that gave a module this parameter or buffer."""
        found = owner_in(self._roots, owner.tensor) if owner.tensor is not None else None
        return definition_of(*found) if found is not None else None

    def _label_entries(self, events: list[TapeEvent]) -> None:
        for event in events:
            if isinstance(event, EntryCall):
                for name, token in _arguments(event):
                    self._note_token(token, Owner("input", name, event.path))
            elif isinstance(event, GlueOp):
                for argument, value in zip(event.func._schema.arguments, event.args, strict=False):
                    for _, token in named_leaves(value, Token):
                        self._note_token(token, Owner("label", argument.name))
            elif isinstance(event, FunctionCall):
                for _, token in named_leaves(event.args, Token):
                    self._note_token(token, Owner("label", event.function.__name__))

    def _note_token(self, token: Token, owner: Owner) -> None:
        if token.kind == EXTERNAL and token.held is not None and token.held.grad_fn is not None:
            owner = Owner("computed", token.held.grad_fn.name())
        if token.held is not None and token.held.layout is torch.strided and not token.held.is_meta:
            known = self.of(token.held.untyped_storage().data_ptr())
            owner = known if known.kind in ("parameter", "buffer") else owner  # of its copies too
        for tensor in (token.held, token.saved, self._run.twins.get(id(token)) if token.held is not None else None):
            if tensor is not None:
                self._note(tensor, owner, keep_first=True)

    def _note(self, tensor: torch.Tensor, owner: Owner, *, keep_first: bool = False) -> None:
        if tensor.layout is torch.strided and not tensor.is_meta and tensor.numel():
            storage = tensor.untyped_storage().data_ptr()
            if not (keep_first and storage in self._by_storage):
                self._by_storage[storage] = owner


def _is_literal(source: Source) -> bool:
    """Whether an infinity is a constant of the loss code: torch.tensor(inf), torch.full(shape, inf)."""
    tensor, value = source.tensor, source.value
    return math.isinf(value) and (tensor.dim() == 0 or (tensor.numel() > 1 and bool((tensor == value).all())))


def _arguments(event: EntryCall) -> list[tuple[str, Token]]:
    """The tokens of an entry call, under the names of `forward`'s parameters."""
    try:
        bound = inspect.signature(event.module.forward).bind(*event.args, **(event.kwargs or {})).arguments
    except (TypeError, ValueError):
        bound = {f"args[{i}]": value for i, value in enumerate(event.args)} | dict(event.kwargs or {})
    return [pair for name, value in bound.items() for pair in named_leaves(value, Token, name)]


def labels_for(microscope: Microscope, owners: Owners, number: int) -> dict[str, str]:
    """For the operands of one op that no op wrote: whose they are, by operand name."""
    seen = microscope.ops[number]
    written = {operand for _, _, operand in seen.upstream}
    return {
        name: label
        for position, (name, place) in enumerate(seen.places)
        if position not in written and (label := owners.of(place.storage).label)
    }
