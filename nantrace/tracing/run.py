"""A replay in progress, and the tensors that stand in it for those of the live run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ..recording.glue import lift, put_back
from ..recording.tape import EXTERNAL, GRADIENT, GlueOp, TapeEvent, Token
from .microscope import Microscope


def call_as_recorded(event: GlueOp, args: Any, kwargs: Any) -> Any:
    """Run a glue op."""
    return event.func(*args, **kwargs)


@dataclass(slots=True)
class Run:
    """A finished replay: what the microscope saw, and the twins of the symptom's tensors."""

    microscope: Microscope
    events: list[TapeEvent]
    twins: dict[int, torch.Tensor]  # id(token) -> tensor
    gradients: dict[int, torch.Tensor]  # the replayed `.grad` by the identity of its parameter
    doubts: list[str]  # why it may differ from the live run
    error: BaseException | None = None
    seconds: float = 0.0
    first_accumulation: int | None = None  # position of the first accumulating engine call
    parameters: list[torch.nn.Parameter] = field(default_factory=list)  # of the watched modules
    carried: list[tuple[str, Any]] = field(default_factory=list)  # attributes that the modules were given, by name
    sources: dict[int, Token] = field(default_factory=dict)  # storage of a batch's copy -> its token
    glue_call: Callable[[GlueOp, Any, Any], Any] = call_as_recorded  # a trial changes some

    def twin(self, token: Token) -> torch.Tensor | None:
        """The replayed tensor of a token."""
        if token.kind == GRADIENT:
            return self.gradients.get(token.owner)
        return self.twins.get(id(token), token.held)


def operand(run: Run, token: Token, *, copied: bool) -> Any:
    """The tensor that stands for a token in the replay. With `copied`, a batch is copied: modules may write into it."""
    twin = run.twins.get(id(token))
    if twin is not None:
        return twin
    if token.kind == GRADIENT:
        gradient = run.gradients.get(token.owner)
        if gradient is None:
            raise RuntimeError(f"the gradient of {token.name} was not replayed")
        return gradient
    held = token.saved if token.saved is not None else token.held
    if held is None:
        raise RuntimeError("a tensor of the step was made by something that the tape did not see")
    batch = copied and token.kind == EXTERNAL and held.is_floating_point() and not held.requires_grad and held.is_leaf
    if batch or token.saved is not None:  # what glue is about to write has a copy on the tape, which must outlast us
        with unobserved(run.microscope):
            held = held.detach().clone()
    if batch:
        run.sources[held.untyped_storage().data_ptr() if held.layout is torch.strided else 0] = token
    run.twins[id(token)] = held
    return held


@contextmanager
def unobserved(microscope: Microscope) -> Iterator[None]:
    """Run without the microscope: what happens here is ours, not the program's."""
    above = lift(microscope)
    try:
        yield
    finally:
        put_back(microscope, above)
