"""Play a run of the autograd engine again, without accumulating into the user's gradients."""

from __future__ import annotations

from typing import Any

import torch

from ..recording.tape import EngineCall
from ..torch_private import engine_function, has_post_accumulate_hooks, run_backward
from .run import Run, operand, unobserved


def play_engine(run: Run, event: EngineCall) -> None:
    roots = [twin for token in event.roots if (twin := operand(run, token, copied=False)).requires_grad]
    grads = [None if token is None else operand(run, token, copied=False) for token in event.grads]
    grads = grads[: len(roots)] if grads else [None] * len(roots)
    grads = [_ones(run, root) if grad is None else grad for root, grad in zip(roots, grads, strict=False)]
    if not roots:
        raise RuntimeError("the loss of the replay does not require a gradient")
    with torch.set_grad_enabled(event.grad):
        if event.inputs:
            inputs = tuple(operand(run, token, copied=False) for token in event.inputs)
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
        known = run.gradients.get(id(leaf))
        run.gradients[id(leaf)] = gradient if known is None else known + gradient


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
    with unobserved(run.microscope):
        return torch.ones_like(root, memory_format=torch.preserve_format).detach()


# the frames that tell an op of a backward from a recomputed forward op
ENGINE_CODES = frozenset({_run_engine.__code__, _run_engine_accumulating.__code__, engine_function().__code__})
