"""Every private name of torch that nantrace uses, each with what it is for and what happens when it is gone.

Nothing else in nantrace may touch an underscored name of torch; the rest imports from here.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
import torch.autograd
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode


def take_off_mode() -> Any:
    """Take the innermost dispatch mode off this thread's stack. Without it glue could not be told from module code."""
    return _python_dispatch._pop_mode()


def put_on_mode(mode: Any) -> None:
    """Put a dispatch mode back on this thread's stack; the twin of `take_off_mode`."""
    _python_dispatch._push_mode(mode)


def innermost_mode() -> Any:
    """The innermost dispatch mode of this thread, or None: in a microsecond, where the list of all takes twenty."""
    depth = torch._C._len_torch_dispatch_stack()
    return torch._C._get_dispatch_stack_at(depth - 1) if depth else None


def modes_on_stack() -> list[Any]:
    """The dispatch modes of this thread, outermost first."""
    return list(_python_dispatch._get_current_dispatch_mode_stack())


def sequence_number() -> int:
    """The number of this thread's next autograd node: ties an op to its node. Gone: backward ops keep their names."""
    return int(torch._C._autograd._get_sequence_nr())


def running_node() -> Any:
    """The autograd node whose backward is running, or None. Gone: backward ops keep their own names."""
    return torch._C._current_autograd_node()


def node_sequence_number(node: Any) -> int | None:
    """The sequence number a node was made with, or None where it has none (AccumulateGrad)."""
    try:
        return int(node._sequence_nr())
    except (AttributeError, RuntimeError):
        return None


def inside_functorch() -> bool:
    """Whether a functorch transform (vmap, grad, jvp) is running: its wrapped tensors have no values to read."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def inside_jit_trace() -> bool:
    """Whether `torch.jit.trace` is running: our reductions would end up in its graph."""
    return torch._C._get_tracing_state() is not None


def run_backward(*args: Any, **kwargs: Any) -> Any:
    """The engine itself, below every patch: the replay's way into a backward."""
    return torch.autograd.Variable._execution_engine.run_backward(*args, **kwargs)


def gradient_edge(node: Any, output: int) -> Any:
    """A node's output as a root for the engine, where the tensor itself is gone. Gone: loss terms are not told."""
    return torch.autograd.graph.GradientEdge(node, output)


def foreach_norm(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The 2-norm of each tensor in one call. Gone: one `vector_norm` per tensor."""
    try:
        return list(torch._foreach_norm(tensors))
    except (AttributeError, RuntimeError):
        return [torch.linalg.vector_norm(tensor) for tensor in tensors]


def patch_engine(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[], None]:
    """Put `wrap(original)` where `Tensor.backward`, `autograd.backward` and `autograd.grad` all enter the engine.

    Returns the function that takes it off again. Gone: AttributeError from `watch`, since no alarm could be raised.
    """
    return _patch(torch.autograd, "_engine_run_backward", wrap)


def patch_method(
    owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[[], None]:
    """Put `wrap(original)` in place of a method of a class; returns the function that takes it off again."""
    return _patch(owner, name, wrap)


def _patch(home: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[], None]:
    original = getattr(home, name)
    replacement = functools.wraps(original)(wrap(original))
    setattr(home, name, replacement)

    def undo() -> None:
        if getattr(home, name) is replacement:  # somebody patched on top of us: leave theirs alone
            setattr(home, name, original)

    return undo


@dataclass(frozen=True, slots=True)
class EngineArguments:
    """The arguments of one engine call, as `torch.autograd` passes them."""

    roots: tuple[Any, ...]
    grads: tuple[Any, ...]
    keep_graph: bool
    create_graph: bool
    inputs: tuple[Any, ...]
    accumulate: bool


def engine_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> EngineArguments:
    """Read the positional arguments of `_engine_run_backward`: roots, grads, keep_graph, create_graph, inputs, ..."""
    roots, grads, keep_graph, create_graph, inputs = (*args, None, None, None, None, None)[:5]
    return EngineArguments(
        tuple(roots or ()),
        tuple(grads or ()),
        bool(keep_graph),
        bool(create_graph),
        tuple(inputs or ()),
        bool(kwargs.get("accumulate_grad", False)),
    )


def step_supports_scaler(optimizer: Any) -> bool:
    """Whether GradScaler calls this optimizer's step even for infinite gradients (it then skips inside)."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def sparse_values(tensor: torch.Tensor) -> torch.Tensor:
    """The stored values of a sparse COO tensor without coalescing it (which would sum and allocate)."""
    return tensor.detach()._values()


def own_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    """A module's own buffers as the dict itself: `named_buffers` costs a generator per module and call."""
    return module._buffers


def engine_function() -> Any:
    """The function that every backward runs through, as torch has it: its frame tells backward from recomputation."""
    return torch.autograd.graph._engine_run_backward


def forget_kwargs_flag(handle: Any) -> None:
    """Remove what torch's own handle of a global forward hook leaves behind: its mark in the with_kwargs table."""
    getattr(torch.nn.modules.module, "_global_forward_hooks_with_kwargs", {}).pop(handle.id, None)


GradientHook = Callable[[torch.Tensor], torch.Tensor | None]
HookTable = OrderedDict[int, GradientHook]


def observe_gradient(tensor: torch.Tensor, hooks: HookTable) -> None:
    """Call the hooks of this table with the gradient that arrives at a tensor that an op has made.

    Lending the tensor our table does what `register_hook` does at a quarter of its cost: no handle, no new table, and
    the tensor keeps none. Gone, or where the user has hooks there: `register_hook` itself.
    """
    node: Any = tensor.grad_fn
    try:
        if tensor._backward_hooks is None and node is not None:
            tensor._backward_hooks = hooks
            try:
                node._register_hook_dict(tensor)
            finally:
                tensor._backward_hooks = None
            return
    except AttributeError:
        pass
    for hook in hooks.values():
        tensor.register_hook(hook)


def has_post_accumulate_hooks(tensor: torch.Tensor) -> bool:
    """Whether hooks run after a gradient is accumulated into this tensor: they may step an optimizer."""
    return bool(getattr(tensor, "_post_accumulate_grad_hooks", None))


def optimizer_file() -> str:
    """The file whose `wrapper` runs every optimizer's step: its frame tells whether a step still runs."""
    return torch.optim.Optimizer.profile_hook_step.__code__.co_filename


def is_zero_tensor(tensor: torch.Tensor) -> bool:
    """Whether a tangent of forward-mode differentiation stands for zeros without having memory that could be read."""
    return bool(torch._is_zerotensor(tensor))


def view_base(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor that this one is a view of, or None.

    What is written through one view shows in every other one, and `as_subclass` makes views that no dispatch mode is
    shown. Gone: such values would come from outside in a replay.
    """
    return tensor._base


def as_plain(tensor: torch.Tensor) -> torch.Tensor | None:
    """A tensor of a subclass as the plain tensor that it is; None where the subclass stores its values otherwise."""
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return None
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach().as_subclass(torch.Tensor)


def compiled_call(module: torch.nn.Module) -> Any:
    """What a module's call runs in place of `_call_impl`: `module.compile()` puts it there. None where nothing does.

    Gone: the calls of modules compiled in place are not entry calls.
    """
    return getattr(module, "_compiled_call_impl", None)


def set_compiled_call(module: torch.nn.Module, call: Any) -> None:
    """Exchange what a module's call runs (None: `_call_impl` again). torch leaves it out of pickles and copies.

    Written past `__setattr__`, which the wrapper that torch.compile returns hands on to the module inside.
    """
    if call is None:
        module.__dict__.pop("_compiled_call_impl", None)
    else:
        module.__dict__["_compiled_call_impl"] = call


def calls_can_be_wrapped() -> bool:
    """Whether a module's call runs what `set_compiled_call` puts there, and pickles and copies are made without it.

    Not so (another torch): global module hooks tell of the calls, at a microsecond or two each.
    """
    probe = torch.nn.Identity()
    set_compiled_call(probe, lambda value: -value)
    try:
        return bool(probe(1) == -1) and "_compiled_call_impl" not in probe.__getstate__()
    except (AttributeError, TypeError):
        return False


def keep_compiler_out(code: CodeType, *, callees: bool) -> bool:
    """Have torch.compile run this code, and with `callees` what it calls, as it is; whether that could be said.

    A module that is called inside a compiled region may be called through code of ours. Gone: global module hooks
    are used, which torch.compile traces away.
    """
    try:
        from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
    except ImportError:
        return False
    inner = _FrameAction.SKIP if callees else _FrameAction.DEFAULT
    set_code_exec_strategy(code, _FrameExecStrategy(_FrameAction.SKIP, inner))
    return True


def wrapped_by_compile(module: torch.nn.Module) -> torch.nn.Module | None:
    """The module that `torch.compile(module)` has wrapped, or None for any other module."""
    return module._modules.get("_orig_mod")


def own_parameters(module: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    """A module's own parameters as the dict itself: `functional_call` puts other tensors into it."""
    return module._parameters  # type: ignore[return-value]


def foreach_copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy each source into its target in one call. Gone: one `copy_` per tensor."""
    if all(tensor.layout is torch.strided for tensor in targets):
        try:
            if targets:
                torch._foreach_copy_(targets, sources)
            return
        except (AttributeError, RuntimeError):
            pass
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def is_torch_optimizer(kind: type) -> bool:
    """Whether a class of an optimizer is torch's own (or Python's, as `Generic` is)."""
    return kind.__module__.partition(".")[0] in ("torch", "typing", "abc")


def replace_running_step(
    optimizer: torch.optim.Optimizer, replacement: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[[], None] | None:
    """From a hook before an optimizer's step: have torch call `replacement(step)` instead, in this one call.

    torch wraps each optimizer class's `step` in a function that runs the hooks and then calls the cell variable `func`.
    No exception can stop that call without reaching the user, so the cell is exchanged; the first call through it, and
    the function that is returned, put it back. None where that wrapper is not the one that runs: the step cannot be
    refused then, and the anomaly is raised instead.
    """
    frame = _running_wrapper(optimizer)
    if frame is None:
        return None
    running = frame.f_locals.get("func")
    for step in _step_functions(optimizer):
        if step.__code__ is frame.f_code and step.__closure__ is not None:
            cell = step.__closure__[frame.f_code.co_freevars.index("func")]
            if cell.cell_contents is running:
                return _exchange(cell, optimizer, replacement)
    return None


def _running_wrapper(optimizer: torch.optim.Optimizer) -> FrameType | None:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "wrapper" and code.co_filename == optimizer_file() and "func" in code.co_freevars:
            return frame if frame.f_locals.get("self") is optimizer else None
        frame = frame.f_back
    return None


def _step_functions(optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    own = vars(optimizer).get("step")
    for step in (own, *(vars(kind).get("step") for kind in type(optimizer).__mro__)):
        while step is not None and hasattr(step, "__code__"):
            yield step
            step = getattr(step, "__wrapped__", None)


def _exchange(
    cell: Any, optimizer: Any, replacement: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[[], None]:
    original, thread = cell.cell_contents, threading.get_ident()

    def put_back() -> None:
        if cell.cell_contents is once:
            cell.cell_contents = original

    def once(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread or not args or args[0] is not optimizer:
            return original(*args, **kwargs)  # another optimizer of the class, in another thread
        put_back()
        return replacement(original)(*args, **kwargs)

    cell.cell_contents = once
    return put_back


def forget_scaler_checks(scaler: Any) -> None:
    """Make a GradScaler forget what it found in this step, as its `update` does, and leave the scale as it is.

    Gone: the scale of a skipped step backs off as after any overflow.
    """
    states = getattr(scaler, "_per_optimizer_states", None)
    if states is not None:
        states.clear()


@dataclass(slots=True)
class SavedValues:
    """What an autograd node keeps of its op: tensors and numbers by name, and why a tensor is not to be had."""

    tensors: dict[str, Any]  # a tensor, or a list of tensors
    numbers: dict[str, Any]
    missing: dict[str, str]  # name -> "freed" | "overwritten" | "packed"


def saved_by(node: Any) -> SavedValues:
    """Read the `_saved_*` attributes of a node without running any hook of the user's.

    What a saved-tensor hook has packed (checkpointing, offloading) stays packed: unpacking would run the program again.
    Gone: a node shows no values, and an origin in the graph becomes a guess.
    """
    found = SavedValues({}, {}, {})
    kind: Any = type(node)
    for name in _saved_names(kind):
        try:
            raw = getattr(node, "_raw_saved_" + name, None)
            if name == "tensors":  # a custom Function's own list
                _note_saved(found, "saved", raw, lambda: list(node.saved_tensors))
            elif raw is None:
                _note_number(found, name, getattr(node, "_saved_" + name, None))
            else:
                _note_saved(found, name, raw, lambda name=name: getattr(node, "_saved_" + name))  # type: ignore[misc]
        except RuntimeError as error:
            found.missing[name] = "overwritten" if "inplace operation" in str(error) else "freed"
    return found


@functools.lru_cache(maxsize=1024)
def _saved_names(kind: Any) -> tuple[str, ...]:
    names = {name.partition("saved_")[2] for name in dir(kind) if name.startswith(("_saved_", "_raw_saved_"))}
    return tuple(sorted(names))


def _note_saved(found: SavedValues, name: str, raw: Any, read: Callable[[], Any]) -> None:
    parts = raw if isinstance(raw, (tuple, list)) else (raw,)
    if any(getattr(part, "unpack_hook", None) is not None for part in parts):
        found.missing[name] = "packed"
        return
    value = read()
    if value is not None:
        found.tensors[name] = value


def _note_number(found: SavedValues, name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        found.tensors[name] = value
    elif value is not None:
        found.numbers[name] = _signed(value)


def _signed(value: Any) -> Any:
    """A node hands out negative ints as unsigned ones of 64 bits."""
    if isinstance(value, (tuple, list)):
        return [_signed(item) for item in value]
    return value - (1 << 64) if type(value) is int and value >= 1 << 63 else value


def outputs_of_node(node: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each result of the op that made this node. Gone: a view's result cannot be made again."""
    try:
        return [(tuple(int(size) for size in one.shape), one.dtype) for one in node._input_metadata]
    except (AttributeError, RuntimeError, TypeError):
        return []


@functools.lru_cache(maxsize=1)
def operators_by_squashed_name() -> dict[str, list[Any]]:
    """The overloads of ATen by their name without underscores, as the names of autograd nodes are spelled.

    Gone: nothing of a graph is computed again, and only what is saved as it stands is known.
    """
    found: dict[str, list[Any]] = {}
    try:
        names = torch._C._dispatch_get_all_op_names()
    except AttributeError:
        return found
    for full in sorted(names):
        space, _, rest = full.partition("::")
        name, _, overload = rest.partition(".")
        if space != "aten" or name.endswith(("_", "_out", "_backward")) or "out" in overload:
            continue
        packet = getattr(torch.ops.aten, name, None)
        one = getattr(packet, overload or "default", None)
        if one is not None:
            squashed = name.replace("_", "").removesuffix("forward")
            found.setdefault(squashed, []).append(one)
    return found
