"""Play the events of a tape again: entry calls and glue ops, each under the switches it first ran under."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import GeneratorType
from typing import Any

import torch

from ..recording.attributes import put_attributes
from ..recording.flatten import tensors_in
from ..recording.state import in_modes, restore_random
from ..recording.tape import (
    EXTERNAL,
    EngineCall,
    EntryCall,
    FunctionCall,
    GlueOp,
    Token,
    Update,
    replace_tokens,
    tokens_in,
)
from ..torch_private import own_parameters
from .backward import play_engine
from .inner import inner_tensors
from .run import Run, operand, unobserved


def play(run: Run) -> None:
    for position, event in enumerate(run.events):
        run.microscope.event = position
        run.microscope.expected = not isinstance(event, Update) and event.expected
        run.microscope.glue_stack = event.stack if isinstance(event, (GlueOp, FunctionCall)) else None
        if isinstance(event, EntryCall):
            _play_entry(run, event)
        elif isinstance(event, GlueOp):
            _play_glue(run, event)
        elif isinstance(event, FunctionCall):
            _play_function(run, event)
        elif isinstance(event, EngineCall):
            if event.accumulate and run.first_accumulation is None:
                run.first_accumulation = position
            play_engine(run, event)


def _play_entry(run: Run, event: EntryCall) -> None:
    for module, training in zip(event.module.modules(), event.training, strict=False):
        if module.training != training:
            module.training = training
    with torch.no_grad(), unobserved(run.microscope):
        for buffer, before in event.buffers.values():
            buffer.copy_(before)
        given, left = put_attributes(event.attributes, partial(operand, run, copied=True))
    run.carried += given.items()
    run.doubts += [f"{name} was too large to be kept: the replay began with what it held afterwards" for name in left]
    args = replace_tokens(event.args, lambda token: operand(run, token, copied=True))
    kwargs = replace_tokens(event.kwargs or {}, lambda token: operand(run, token, copied=True))
    if any(isinstance(value, GeneratorType) for value in (*event.args, *(event.kwargs or {}).values())):
        raise RuntimeError("the call took its input from a generator, which runs only once; a list can be replayed")
    restore_random(event.random)
    with in_modes(event.modes), _in_place_of_parameters(run, event), inner_tensors(run, event):
        output = _call_entry(event.module, args, kwargs)
    for token, tensor in zip(event.outputs, tensors_in(output), strict=False):
        run.twins[id(token)] = tensor


@contextmanager
def _in_place_of_parameters(run: Run, event: EntryCall) -> Iterator[None]:
    """Put the twins of what stood in the parameters' places there, for the time of the call."""
    before = [(owner, name, own_parameters(owner)[name]) for owner, name, _ in event.swapped]
    for owner, name, token in event.swapped:
        own_parameters(owner)[name] = operand(run, token, copied=False)
    try:
        yield
    finally:
        for owner, name, parameter in before:
            own_parameters(owner)[name] = parameter


def _call_entry(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
    return module(*args, **kwargs)


def _play_function(run: Run, event: FunctionCall) -> None:
    args = replace_tokens(event.args, lambda token: operand(run, token, copied=False))
    restore_random(event.random)
    with torch.set_grad_enabled(event.grad):
        results = tensors_in(_apply(event.function, args))
    for number, token in event.results.items():
        if number < len(results):
            run.twins[id(token)] = results[number]


def _apply(function: Any, args: Any) -> Any:
    return function.apply(*args)


def _play_glue(run: Run, event: GlueOp) -> None:
    if event.random is not None:
        restore_random(event.random)
    if event.writes:
        for token in _written(event):
            if token.kind == EXTERNAL and id(token) not in run.twins and token.held is not None:
                original = token.saved if token.saved is not None else token.held
                with unobserved(run.microscope):  # the user's own tensor is not written a second time
                    run.twins[id(token)] = original.detach().clone()
    args = replace_tokens(event.args, lambda token: operand(run, token, copied=False))
    kwargs = replace_tokens(event.kwargs, lambda token: operand(run, token, copied=False))
    with torch.set_grad_enabled(event.grad):
        result = run.glue_call(event, args, kwargs)
    made = [*tensors_in(result)]
    if event.writes:
        made += [
            tensor for position in _written_positions(event) for tensor in tensors_in(args[position : position + 1])
        ]
    for token, tensor in zip(event.outputs, made, strict=False):
        run.twins[id(token)] = tensor
    for before, after in event.through:  # the same tensor: what it was written through is a view of it here too
        run.twins[id(after)] = operand(run, before, copied=False)


def _written_positions(event: GlueOp) -> list[int]:
    return [i for i, a in enumerate(event.func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]


def _written(event: GlueOp) -> list[Token]:
    return [token for i in _written_positions(event) if i < len(event.args) for token in tokens_in(event.args[i])]


# the frames above which a stack is the replay's own
ENTRY_CODE = _call_entry.__code__
FUNCTION_CODE = _apply.__code__
