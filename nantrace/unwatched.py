"""`trace`: no watch was on, and a NaN is in hand."""

from __future__ import annotations

from typing import Any

import torch

from .errors import NotAModuleError, TraceError
from .report import Report


def trace(tensor: torch.Tensor, model: torch.nn.Module | None = None) -> Report:
    """Explain a tensor that is not finite, from its live autograd graph: a loss, a model's output, a bad parameter.

    Give it before `backward`, or after a backward that kept the graph: what a backward has freed cannot be read. With
    the `model`, ops are placed in its modules by the parameters that they read; what lies between is a best guess,
    and the report says so. Lines are known only where `torch.autograd.detect_anomaly` was on. A parameter whose
    gradient is not finite is explained by the gradients of the model's other parameters.

    Nothing is changed: no backward runs, nothing is freed, no random stream moves. `report.reproduced` is None.

    Raises `TraceError` where all is finite or no graph leads back from the tensor.
    """
    from .tracing.unwatched import trace_gradients, trace_graph, trace_parameter

    _check(tensor, model)
    parameter = _owner(tensor, model)
    if _is_bad(tensor):
        if tensor.grad_fn is not None:
            snapshot = trace_graph(tensor, model)
            assert snapshot is not None
            return Report(snapshot)
        if parameter is not None:
            return Report(trace_gradients(parameter, model))
        if tensor.requires_grad or isinstance(tensor, torch.nn.Parameter):
            return Report(trace_parameter(tensor, model))
        raise TraceError(
            "the tensor holds NaN or infinities, but no autograd graph leads back from it: give trace() the loss or "
            "the output itself, not a detached copy, made with gradients enabled"
            + ("" if model is not None else "; for a gradient, give the parameter, or the model as well")
        )
    if tensor.is_leaf and tensor.grad is not None and _is_bad(tensor.grad):
        if tensor.grad.grad_fn is not None:  # the backward was run with create_graph
            return trace(tensor.grad, model)
        return Report(trace_gradients(tensor, model))
    hint = "; its gradient is finite, too" if tensor.is_leaf and tensor.grad is not None else ""
    count = tensor.numel()
    values = "the value of the tensor is" if count == 1 else f"all {count} values of the tensor are"
    raise TraceError(f"{values} finite{hint}: there is nothing to explain")


def _check(tensor: Any, model: Any) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TraceError(f"trace() takes a tensor (a loss, an output, a parameter), not {type(tensor).__name__}")
    if model is not None and not isinstance(model, torch.nn.Module):
        raise NotAModuleError(f"the model of trace() must be a torch.nn.Module, not {type(model).__name__}")
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise TraceError(f"a tensor of {str(tensor.dtype).removeprefix('torch.')} cannot hold NaN or infinities")
    if tensor.is_meta:
        raise TraceError("the tensor is on the meta device: it has no values")


def _is_bad(tensor: torch.Tensor) -> bool:
    from .tracing.summaries import describe

    return describe(tensor.detach()).nonfinite > 0


def _owner(tensor: torch.Tensor, model: torch.nn.Module | None) -> torch.Tensor | None:
    """The parameter of the model whose gradient this tensor is."""
    if model is None:
        return None
    return next((parameter for parameter in model.parameters() if parameter.grad is tensor), None)
