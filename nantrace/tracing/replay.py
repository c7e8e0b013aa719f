"""Run the step's tape again, sliced to what the symptom depends on, with every op observed and no lasting effect.

The replay runs in a thread of its own: a clean mode stack, no autocast, no inference mode, no functorch level.
Tensors are substituted by identity: what an event made in the live run is what its second run makes here.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ..recording import patches
from ..recording.flatten import tensors_in
from ..recording.glue import lift, put_back
from ..recording.names import ModuleNames
from ..recording.state import in_modes, random_now, restore_random
from ..recording.tape import (
    EXTERNAL,
    GRADIENT,
    EngineCall,
    EntryCall,
    GlueOp,
    Tape,
    TapeEvent,
    Token,
    Update,
    replace_tokens,
    tokens_in,
    tokens_made_by,
    tokens_read_by,
    version_of,
)
from ..torch_private import engine_function, has_post_accumulate_hooks, run_backward
from .microscope import Enough, Microscope, Seen


@dataclass(slots=True)
class Run:
    """A finished replay: what the microscope saw, and the twins of the symptom's tensors."""

    microscope: Microscope
    events: list[TapeEvent]
    twins: dict[int, torch.Tensor]  # id(token) -> tensor
    gradients: dict[str, torch.Tensor]  # the replayed `.grad` by parameter name
    doubts: list[str]  # why it may differ from the live run
    error: BaseException | None = None
    seconds: float = 0.0
    first_accumulation: int | None = None  # position of the first accumulating engine call
    parameters: list[torch.nn.Parameter] = field(default_factory=list)  # of the watched modules
    parameter_names: dict[int, str] = field(default_factory=dict)  # id(parameter) -> name
    module_types: dict[str, str] = field(default_factory=dict)  # module path -> type name
    sources: dict[int, Token] = field(default_factory=dict)  # storage of a batch's copy -> its token

    def twin(self, token: Token) -> torch.Tensor | None:
        """The replayed tensor of a token."""
        if token.kind == GRADIENT:
            return self.gradients.get(token.name)
        return self.twins.get(id(token), token.held)


def replay(tape: Tape, names: ModuleNames, symptoms: list[Token], gradients: bool) -> Run:
    """Replay what these tokens (and, if `gradients`, all parameter gradients) depend on."""
    return _replay(tape, names, slice_for(tape.events, symptoms, gradients), None)


def look_again(tape: Tape, names: ModuleNames, run: Run, number: int) -> Seen | None:
    """Replay the same events up to one op and return it with its operands; None where that op did not come again."""
    second = _replay(tape, names, run.events, number)
    ops = second.microscope.ops
    same = len(ops) > number and ops[number].facts is run.microscope.ops[number].facts
    return ops[number] if same and ops[number].kept_inputs else None


def _replay(tape: Tape, names: ModuleNames, events: list[TapeEvent], wanted: int | None) -> Run:
    microscope = Microscope(_ENGINE_CODES, lambda module: names.path(module, look_again=False), wanted)
    run = Run(microscope, events, {}, {}, _doubts(tape, events, names))
    run.module_types = names.types()
    run.parameters = [parameter for parameter, _ in names.parameters.values()]
    run.parameter_names = {key: name for key, (_, name) in names.parameters.items()}
    return _in_thread(run, names)


def slice_for(events: list[TapeEvent], symptoms: list[Token], gradients: bool) -> list[TapeEvent]:
    """The events that the symptom depends on, by tensor identity, in time order."""
    needed = {id(token) for token in symptoms}
    gradients = gradients or any(token.kind == GRADIENT for token in symptoms)
    kept: list[TapeEvent] = []
    for event in reversed(events):
        if isinstance(event, Update):
            continue
        wanted = any(id(token) in needed for token in tokens_made_by(event))
        if isinstance(event, EngineCall) and event.accumulate:
            wanted = gradients
        if isinstance(event, EntryCall) and event.failed:
            wanted = event is events[-1]
        if wanted:
            kept.append(event)
            read = list(tokens_read_by(event))
            needed.update(id(token) for token in read)
            gradients = gradients or any(token.kind == GRADIENT for token in read)
    kept.reverse()
    return kept


def _doubts(tape: Tape, events: list[TapeEvent], names: ModuleNames) -> list[str]:
    """What has changed since the live run, in sentences."""
    doubts: list[str] = [f"the tape is incomplete: {tape.overflowed}"] if tape.overflowed else []
    chosen = {id(event) for event in events}
    earlier: list[EntryCall] = []
    for event in tape.events:
        if isinstance(event, EntryCall) and id(event) in chosen:
            earlier.append(event)
        elif isinstance(event, Update):
            for call in earlier:
                own = {names.parameter(parameter) for parameter in call.module.parameters()}
                if own & event.parameters:
                    doubts.append(
                        f"{event.optimizer} changed the weights of {call.path or 'the model'} after it was called"
                    )
    for event in events:
        for token in tokens_read_by(event):
            held = token.held
            if (
                token.kind == EXTERNAL
                and held is not None
                and token.saved is None
                and version_of(held) != token.version
            ):
                doubts.append(f"a tensor of shape {tuple(held.shape)} was changed in place after the step had used it")
    return list(dict.fromkeys(doubts))


def _in_thread(run: Run, names: ModuleNames) -> Run:
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def work() -> None:
        if device is not None:
            torch.cuda.set_device(device)
        run.microscope.listen_here()
        started = time.perf_counter()
        try:
            with _nothing_lasts(run, names), _eager(), run.microscope:
                _play(run)
        except Enough:
            pass
        except BaseException as error:  # whatever user code raises here must not kill the thread silently
            run.error = error
        run.seconds = time.perf_counter() - started

    patches.listen(run.microscope)
    try:
        thread = threading.Thread(target=work, name="nantrace replay", daemon=True)
        thread.start()
        thread.join()
    finally:
        patches.stop_listening(run.microscope)
    return run


def _play(run: Run) -> None:
    for position, event in enumerate(run.events):
        run.microscope.event = position
        run.microscope.glue_stack = event.stack if isinstance(event, GlueOp) else None
        if isinstance(event, EntryCall):
            _play_entry(run, event)
        elif isinstance(event, GlueOp):
            _play_glue(run, event)
        elif isinstance(event, EngineCall):
            if event.accumulate and run.first_accumulation is None:
                run.first_accumulation = position
            _play_engine(run, event)


def _play_entry(run: Run, event: EntryCall) -> None:
    for module, training in zip(event.module.modules(), event.training, strict=False):
        if module.training != training:
            module.training = training
    with torch.no_grad(), _unobserved(run.microscope):
        for buffer, before in event.buffers.values():
            buffer.copy_(before)
    args = replace_tokens(event.args, lambda token: _operand(run, token, copied=True))
    kwargs = replace_tokens(event.kwargs or {}, lambda token: _operand(run, token, copied=True))
    restore_random(event.random)
    with in_modes(event.modes):
        output = _call_entry(event.module, args, kwargs)
    for token, tensor in zip(event.outputs, tensors_in(output), strict=False):
        run.twins[id(token)] = tensor


def _call_entry(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
    return module(*args, **kwargs)


def _play_glue(run: Run, event: GlueOp) -> None:
    if event.random is not None:
        restore_random(event.random)
    if event.writes:
        for token in _written(event):
            if token.kind == EXTERNAL and id(token) not in run.twins and token.held is not None:
                original = token.saved if token.saved is not None else token.held
                with _unobserved(run.microscope):  # the user's own tensor is not written a second time
                    run.twins[id(token)] = original.detach().clone()
    args = replace_tokens(event.args, lambda token: _operand(run, token, copied=False))
    kwargs = replace_tokens(event.kwargs, lambda token: _operand(run, token, copied=False))
    with torch.set_grad_enabled(event.grad):
        result = event.func(*args, **kwargs)
    made = [*tensors_in(result)]
    if event.writes:
        made += [
            tensor for position in _written_positions(event) for tensor in tensors_in(args[position : position + 1])
        ]
    for token, tensor in zip(event.outputs, made, strict=False):
        run.twins[id(token)] = tensor


def _play_engine(run: Run, event: EngineCall) -> None:
    roots = [twin for token in event.roots if (twin := _operand(run, token, copied=False)).requires_grad]
    grads = [None if token is None else _operand(run, token, copied=False) for token in event.grads]
    grads = grads[: len(roots)] if grads else [None] * len(roots)
    grads = [_ones(run, root) if grad is None else grad for root, grad in zip(roots, grads, strict=False)]
    if not roots:
        raise RuntimeError("the loss of the replay does not require a gradient")
    with torch.set_grad_enabled(event.grad):
        if event.inputs:
            inputs = tuple(_operand(run, token, copied=False) for token in event.inputs)
            results = _run_engine(roots, grads, event, inputs)
            if event.accumulate:
                _accumulate(run, list(zip(inputs, results, strict=False)))
            else:
                for token, tensor in zip(event.outputs, results, strict=False):
                    if token is not None and tensor is not None:
                        run.twins[id(token)] = tensor
            return
        leaves, reentrant = _leaves_of(roots)
        if reentrant:
            results = _run_engine_accumulating(run, roots, grads, event)
        else:
            results = list(zip(leaves, _run_engine(roots, grads, event, tuple(leaves)), strict=True))
        _accumulate(run, results)


def _run_engine(roots: Any, grads: Any, event: EngineCall, inputs: tuple[torch.Tensor, ...]) -> Any:
    """The engine with explicit inputs and no accumulation: no `.grad` changes and no post-accumulate hook fires."""
    if not inputs:
        return ()
    return run_backward(
        tuple(roots),
        tuple(grads),
        event.keep_graph or event.create_graph,
        event.create_graph,
        inputs,
        allow_unreachable=True,
        accumulate_grad=False,
    )


def _run_engine_accumulating(
    run: Run, roots: Any, grads: Any, event: EngineCall
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """The engine as `backward` runs it, for reentrant checkpoints, which refuse explicit inputs.

    Every parameter's `.grad` is put aside and back. Raises RuntimeError where a post-accumulate hook would fire: it
    may step an optimizer, and a replay must not.
    """
    parameters = run.parameters
    if any(has_post_accumulate_hooks(parameter) for parameter in parameters):
        raise RuntimeError("a reentrant checkpoint cannot be replayed without firing post-accumulate-grad hooks")
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        run_backward(
            tuple(roots),
            tuple(grads),
            event.keep_graph or event.create_graph,
            event.create_graph,
            (),
            allow_unreachable=True,
            accumulate_grad=True,
        )
        return [(parameter, parameter.grad) for parameter in parameters]
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def _accumulate(run: Run, results: list[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
    for leaf, gradient in results:
        if gradient is None:
            continue
        name = run.parameter_names.get(id(leaf))
        if name is None:
            continue
        known = run.gradients.get(name)
        run.gradients[name] = gradient if known is None else known + gradient


def _leaves_of(roots: list[torch.Tensor]) -> tuple[list[torch.Tensor], bool]:
    """Every leaf that the roots' graph reaches, and whether a reentrant checkpoint hides more of them."""
    found: dict[int, torch.Tensor] = {}
    stack = [root.grad_fn for root in roots if root.grad_fn is not None]
    visited: set[Any] = set(stack)
    reentrant = False
    while stack:
        node = stack.pop()
        reentrant |= node.name() == "CheckpointFunctionBackward"
        variable = getattr(node, "variable", None)
        if isinstance(variable, torch.Tensor):
            found[id(variable)] = variable
        for upstream, _ in node.next_functions:
            if upstream is not None and upstream not in visited:
                visited.add(upstream)
                stack.append(upstream)
    return list(found.values()), reentrant


def _ones(run: Run, root: torch.Tensor) -> torch.Tensor:
    with _unobserved(run.microscope):
        return torch.ones_like(root, memory_format=torch.preserve_format).detach()


def _operand(run: Run, token: Token, *, copied: bool) -> Any:
    """The tensor that stands for a token in the replay. With `copied`, a batch is copied: modules may write into it."""
    twin = run.twins.get(id(token))
    if twin is not None:
        return twin
    if token.kind == GRADIENT:
        gradient = run.gradients.get(token.name)
        if gradient is None:
            raise RuntimeError(f"the gradient of {token.name} was not replayed")
        return gradient
    held = token.saved if token.saved is not None else token.held
    if held is None:
        raise RuntimeError("a tensor of the step was made by something that the tape did not see")
    if copied and token.kind == EXTERNAL and held.is_floating_point() and not held.requires_grad and held.is_leaf:
        with _unobserved(run.microscope):
            held = held.detach().clone()
        run.sources[held.untyped_storage().data_ptr() if held.layout is torch.strided else 0] = token
    run.twins[id(token)] = held
    return held


def _written_positions(event: GlueOp) -> list[int]:
    return [i for i, a in enumerate(event.func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]


def _written(event: GlueOp) -> list[Token]:
    return [token for i in _written_positions(event) if i < len(event.args) for token in tokens_in(event.args[i])]


@contextmanager
def _unobserved(microscope: Microscope) -> Iterator[None]:
    above = lift(microscope)
    try:
        yield
    finally:
        put_back(microscope, above)


@contextmanager
def _nothing_lasts(run: Run, names: ModuleNames) -> Iterator[None]:
    """Put back everything that the replay touches: buffers, train/eval flags, random streams."""
    modules = {id(m): m for event in run.events if isinstance(event, EntryCall) for m in event.module.modules()}
    flags = [(module, module.training) for module in modules.values()]
    buffers = [(b, b.detach().clone(), version_of(b)) for m in modules.values() for b in m.buffers(recurse=False)]
    random = random_now()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for buffer, value, version in buffers:
                if version_of(buffer) != version:
                    buffer.copy_(value)
        restore_random(random)


@contextmanager
def _eager() -> Iterator[None]:
    """Run compiled modules eagerly, where a compiler has been loaded at all."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


_ENGINE_CODES = frozenset({_run_engine.__code__, engine_function().__code__})
ENTRY_CODE = _call_entry.__code__
