"""The other ways to look for a NaN, each as a context manager, written or used as an expert would.

None of them knows masks that are meant, and each stops at the first NaN; what is compared is what looking costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from ..torch_private import TorchDispatchMode


class Unavailable(Exception):
    """A tool that cannot be measured here; the text says why."""


def detect_anomaly(model: nn.Module) -> AbstractContextManager[object]:
    """torch's own: every gradient checked for NaN, and the forward stack kept for every autograd node."""
    return torch.autograd.set_detect_anomaly(True)


_aten = torch.ops.aten
_UNWRITTEN = {  # memory that the next op writes: whatever it holds is no result
    getattr(packet, overload)
    for packet in (_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided)
    for overload in packet.overloads()
}


class FirstNaN(TorchDispatchMode):
    """Stops at the first op, forward or backward, whose result holds a NaN."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the op, then look at what it gave."""
        out = func(*args, **(kwargs or {}))
        if func in _UNWRITTEN:
            return out
        if isinstance(out, Tensor):
            _refuse_nan(out, func)
        elif isinstance(out, (tuple, list)):
            for one in out:
                if isinstance(one, Tensor):
                    _refuse_nan(one, func)
        return out


def first_nan_mode(model: nn.Module) -> AbstractContextManager[object]:
    """A dispatch mode that looks at the results of every op."""
    return FirstNaN()


@contextmanager
def isnan_hooks(model: nn.Module) -> Iterator[None]:
    """A forward hook on every module that looks at its outputs; the backward is not looked at."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            _refuse_nan(output, module)
        else:
            for one in tree_iter(output):
                if isinstance(one, Tensor):
                    _refuse_nan(one, module)

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def hf_debugger(model: nn.Module) -> Iterator[None]:
    """Hugging Face's: parameters, inputs and outputs of every module, in the forward; the backward is not looked at."""
    handles: list[Any] = []

    class Removable(_hf_class()):  # type: ignore[misc]
        """The same, but its hooks can be taken off again."""

        def _register_forward_hook(self, module: nn.Module) -> None:
            handles.append(module.register_forward_hook(self.forward_hook))

    Removable(model)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hf_class() -> Any:
    try:
        from transformers.debug_utils import DebugUnderflowOverflow
    except ImportError as error:
        raise Unavailable("transformers is not installed") from error
    if not hasattr(DebugUnderflowOverflow, "_register_forward_hook"):
        raise Unavailable("this transformers hooks in a way that cannot be undone")
    return DebugUnderflowOverflow


def _refuse_nan(tensor: Tensor, where: object) -> None:
    if tensor.is_floating_point() and tensor.isnan().any():
        raise FloatingPointError(f"NaN after {where}")
