"""The alarm: which non-finite values are about to have consequences. First a cheap tripwire, then the exact verdict."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..model import Snapshot
from ..torch_private import foreach_norm
from . import kernel
from .frames import RawStack
from .statistics import accumulation, is_finite, readable
from .tape import GlueOp, Token, version_of
from .undo import Memory

Named = tuple[str, torch.Tensor]


@dataclass(slots=True)
class Alarm:
    """A non-finite value is about to have consequences. Live: holds tensors, for the tracer alone."""

    kind: str  # "loss" | "gradient" | "parameter" | "result" | "write" | "state" (not raised: looked at, in case)
    where: str  # a sentence for the report
    step: int
    tokens: list[Token] = field(default_factory=list)  # the symptom on the tape
    named: list[Named] = field(default_factory=list)  # bad gradients or parameters, by parameter name
    stack: RawStack = ()
    optimizer: torch.optim.Optimizer | None = None
    write: GlueOp | None = None  # for "write": the op that was about to write a parameter
    value: float | None = None
    written: tuple[Any, Any, Any] | None = None  # for "parameter": the hand-written op (func, args, kwargs) that did it
    memory: Memory | None = None  # for "parameter": the optimizer's weights and state before its step
    earlier: Snapshot | None = None  # the step that spoiled the optimizer's state before the weights went bad
    obstacle: str = ""  # why the update cannot be refused or undone, in half a sentence
    advisory: bool = False  # a warning, whatever is done about anomalies: nothing bad has happened to the weights
    unless_backward: bool = False  # no anomaly where the value turns out to be born in the (scaled) backward
    left_over: str = ""  # what stays changed where it is, in half a sentence
    explanation: Any = None  # what the live autograd graph said of the loss before its backward freed it
    within: str | None = None  # strict: the module whose output held NaN; the tokens are the entry calls' results
    meant: bool = False  # found by the tracer: the value was declared with `expect_nonfinite`


@dataclass(slots=True)
class Pending:
    """A non-finite loss was given to `backward`; nothing has used its gradients yet."""

    root: Token
    value: float
    before: dict[int, tuple[int, int]]  # parameter -> identity and version of its gradient before the backward
    gradients: dict[int, tuple[weakref.ref[torch.Tensor], int]]  # after it, of the parameters it gave a gradient
    earlier: Pending | None = None  # another one of the same step, whose gradients were still there
    explanation: Any = None  # what the live graph said of it before the backward freed it

    def still_there(self, parameters: Sequence[Named]) -> bool:
        """Whether any of these parameters still carries a gradient of that backward, neither dropped nor zeroed."""
        for _, parameter in parameters:
            known = self.gradients.get(id(parameter))
            if known is not None and parameter.grad is not None and parameter.grad is known[0]():
                if not was_zeroed(parameter.grad, known[1]):
                    return True
        return False


def was_zeroed(gradient: torch.Tensor, version: int) -> bool:
    """Whether a gradient was set to zero in place since it had this version."""
    return version_of(gradient) != version and not bool(gradient.any())


def gradients_of(parameters: Sequence[Named]) -> list[Named]:
    """The gradients that are there, under their parameters' names."""
    return [(name, parameter.grad) for name, parameter in parameters if parameter.grad is not None]


def total_norm(tensors: list[torch.Tensor]) -> float:
    """The 2-norm over all tensors, one read per device. Not finite is a tripwire, no verdict: squares overflow."""
    if not tensors:
        return 0.0
    norm = kernel.total_norm(tensors)
    if norm is not None:
        return norm
    with torch.no_grad():
        try:
            norms = torch.stack(foreach_norm(tensors))
            return float(torch.linalg.vector_norm(norms, dtype=accumulation(norms.dtype)))
        except RuntimeError:  # several devices or dtypes, sparse or float8 tensors: one group at a time
            return _norm_by_groups(tensors)


def _norm_by_groups(tensors: list[torch.Tensor]) -> float:
    total = 0.0
    for tensor in tensors:
        values = readable(tensor)
        if values is not None and values.numel():
            total += float(torch.linalg.vector_norm(values.detach(), dtype=accumulation(values.dtype))) ** 2
    return math.sqrt(total) if total == total else total


def first_bad(tensors: Sequence[Named]) -> list[Named]:
    """The tensors that hold a NaN or an infinity: the exact verdict."""
    return [(name, tensor) for name, tensor in tensors if not is_finite(tensor)]


def scalar_value(tensor: Any) -> float | None:
    """The value of a 0-dim real floating tensor, else None."""
    if isinstance(tensor, torch.Tensor) and tensor.dim() == 0 and tensor.is_floating_point() and not tensor.is_meta:
        return float(tensor.detach())
    return None
