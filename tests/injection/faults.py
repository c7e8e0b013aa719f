"""The faults: each one a few lines as somebody might have written them, with the report that they must lead to.

A fault of a module is given the module and its output, one of the loss the loss and the logits; both return what goes
on in their place. The line that makes the first non-finite value ends in `# born`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INF = math.inf


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault, and what a report must say of it."""

    name: str
    kind: str  # "module": after a drawn module's forward; "loss"; "table": in an embedding; "pixel": in the batch
    op: str
    cause: str
    phase: str
    plant: Callable[..., Any]
    loose: bool = False  # makes infinities alone, and what becomes of them depends on the modules that follow

    @property
    def line(self) -> tuple[str, int]:
        """File and line of the op that makes the value."""
        lines, start = inspect.getsourcelines(self.plant)
        number = next(i for i, line in enumerate(lines) if line.rstrip().endswith("# born"))
        return inspect.getsourcefile(self.plant) or "", start + number


FAULTS: dict[str, Fault] = {}


def fault(kind: str, op: str, cause: str, phase: str, *, loose: bool = False) -> Callable[[Any], Any]:
    """Enter a function into the list of faults."""

    def enter(plant: Callable[..., Any]) -> Callable[..., Any]:
        FAULTS[plant.__name__] = Fault(plant.__name__, kind, op, cause, phase, plant, loose)
        return plant

    return enter


# After a module's forward


@fault("module", "log", "log-domain", "forward")
def log_of_zero(module: nn.Module, x: Tensor) -> Tensor:
    p = x - x.amin(-1, keepdim=True)
    surprise = torch.log(p)  # born
    return x - p * surprise


@fault("module", "log", "log-domain", "forward")
def log_of_negative(module: nn.Module, x: Tensor) -> Tensor:
    return x + torch.log(-x.abs() - 1e-3)  # born


@fault("module", "log", "log-domain", "forward", loose=True)
def log_let_loose(module: nn.Module, x: Tensor) -> Tensor:
    return x + torch.log(x - x)  # born


@fault("module", "div", "zero-division", "forward")
def zero_by_zero(module: nn.Module, x: Tensor) -> Tensor:
    spread = x - x
    return x + spread / spread  # born


@fault("module", "div", "zero-division", "forward", loose=True)
def division_let_loose(module: nn.Module, x: Tensor) -> Tensor:
    count = torch.zeros_like(x)
    return x + (x.abs() + 1) / count  # born


@fault("module", "reciprocal", "zero-division", "forward")
def reciprocal_of_zero(module: nn.Module, x: Tensor) -> Tensor:
    width = (x - x).abs()
    scale = 1 / width  # born
    return x + width * scale


@fault("module", "rsqrt", "zero-division", "forward")
def rsqrt_of_zero(module: nn.Module, x: Tensor) -> Tensor:
    centred = x - x
    inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True))  # born
    return x + centred * inverse


@fault("module", "pow", "zero-division", "forward")
def zero_to_a_negative_power(module: nn.Module, x: Tensor) -> Tensor:
    distance = (x - x).abs()
    return x + distance * torch.pow(distance, -1.5)  # born


@fault("module", "pow", "pow-domain", "forward")
def root_of_a_negative_base(module: nn.Module, x: Tensor) -> Tensor:
    return x + torch.pow(-x.abs() - 0.5, 0.3)  # born


@fault("module", "sqrt", "sqrt-domain", "forward")
def sqrt_of_negative(module: nn.Module, x: Tensor) -> Tensor:
    variance = -x.square() - 1e-4
    return x + torch.sqrt(variance)  # born


@fault("module", "acos", "domain", "forward")
def acos_outside_its_domain(module: nn.Module, x: Tensor) -> Tensor:
    return x + torch.acos(x.abs() + 1.001)  # born


@fault("module", "exp", "overflow", "forward")
def softmax_by_hand(module: nn.Module, x: Tensor) -> Tensor:
    weights = torch.exp(x.abs() * 100 + 100)  # born
    return x + weights / weights.sum(-1, keepdim=True)


@fault("module", "exp", "overflow", "forward", loose=True)
def exp_let_loose(module: nn.Module, x: Tensor) -> Tensor:
    return x + torch.exp(x.abs() + 100)  # born


@fault("module", "mul", "overflow", "forward")
def half_precision_square(module: nn.Module, x: Tensor) -> Tensor:
    coarse = (x * 0 + 300).to(torch.float16)
    energy = coarse * coarse  # born
    return x + (energy - energy.float().mean()).to(x.dtype)


@fault("module", "to_copy", "overflow", "forward")
def half_precision_cast(module: nn.Module, x: Tensor) -> Tensor:
    coarse = (x.abs() + 1e5).to(torch.float16)  # born
    return x + (coarse - coarse.float().mean()).to(x.dtype)


@fault("module", "mul", "inf-arithmetic", "forward")
def zero_times_inf(module: nn.Module, x: Tensor) -> Tensor:
    limit = torch.full_like(x, INF)
    keep = torch.zeros_like(x)
    return x + keep * limit  # born


@fault("module", "sub", "inf-arithmetic", "forward")
def inf_minus_inf(module: nn.Module, x: Tensor) -> Tensor:
    limit = torch.full_like(x, INF)
    return x + (limit - limit)  # born


@fault("module", "softmax", "masked-softmax", "forward")
def softmax_of_nothing(module: nn.Module, x: Tensor) -> Tensor:
    scores = x.masked_fill(torch.ones_like(x, dtype=torch.bool), -INF)
    return x + torch.softmax(scores, -1)  # born


@fault("module", "mean", "empty-reduction", "forward")
def mean_of_nothing(module: nn.Module, x: Tensor) -> Tensor:
    chosen = x.reshape(-1)[:0]
    return x + chosen.mean()  # born


@fault("module", "log", "log-domain", "forward")
def log_in_place(module: nn.Module, x: Tensor) -> Tensor:
    entropy = x.abs() + 1e-3
    entropy.neg_().log_()  # born
    return x - entropy


@fault("module", "div", "zero-division", "forward")
def division_in_place(module: nn.Module, x: Tensor) -> Tensor:
    scaled = x - x
    scaled /= scaled.detach().abs().amax()  # born
    return x + scaled


@fault("module", "log", "log-domain", "forward", loose=True)
def log_of_one_element(module: nn.Module, x: Tensor) -> Tensor:
    gate = torch.ones_like(x).flatten()
    gate[x.numel() // 3] = 0
    return x + torch.log(gate).view_as(x)  # born


@fault("module", "sqrt", "sqrt-domain", "forward", loose=True)
def sqrt_of_one_element(module: nn.Module, x: Tensor) -> Tensor:
    variance = x.square().flatten()
    variance[2 * x.numel() // 3] -= 1e9
    return x + torch.sqrt(variance).view_as(x) * 1e-3  # born


@fault("module", "mm", "overflow", "forward")
def product_of_large_rows(module: nn.Module, x: Tensor) -> Tensor:
    rows = (x * 0 + 1e25).reshape(1, -1).float()
    energy = rows @ rows.T  # born
    return x + (energy - energy).sum().to(x.dtype)


@fault("module", "pow", "overflow", "forward")
def square_of_a_large_number(module: nn.Module, x: Tensor) -> Tensor:
    large = x.float() * 0 + 1e25
    square = large**2  # born
    return x + (large / square - square / square).to(x.dtype)


@fault("module", "layer_norm", "zero-division", "forward")
def norm_without_eps(module: nn.Module, x: Tensor) -> Tensor:
    flat = (x - x).reshape(1, -1)
    return x + F.layer_norm(flat, flat.shape[-1:], eps=0.0).sum()  # born


@fault("module", "atanh", "domain", "forward", loose=True)
def atanh_at_its_pole(module: nn.Module, x: Tensor) -> Tensor:
    return x + torch.atanh(x * 0 + 1)  # born


@fault("module", "index", "indexing", "parameters")
def entry_never_written(module: nn.Module, x: Tensor) -> Tensor:
    index = torch.tensor([0, 3, 1])
    return x + module.planted_table[index].mean()  # born


@fault("module", "hypot", "singular-gradient", "backward")
def hypot_of_zeros(module: nn.Module, x: Tensor) -> Tensor:
    difference = x - x.detach()
    return x + torch.hypot(difference, difference)  # born


@fault("module", "pow", "singular-gradient", "backward")
def root_as_a_power(module: nn.Module, x: Tensor) -> Tensor:
    difference = x - x.detach()
    return x + difference.abs() ** 0.5  # born


@fault("module", "div", "masked-gradient", "backward")
def division_behind_a_mask(module: nn.Module, x: Tensor) -> Tensor:
    size = x - x.amin(-1, keepdim=True)
    ratio = 1e-3 * x / size  # born
    return x + torch.where(size > 0, ratio.clamp(-1, 1), torch.zeros_like(x))


@fault("module", "embedding", "indexing", "parameters")
def row_never_written(module: nn.Module, x: Tensor) -> Tensor:
    index = torch.tensor([1, 3])
    return x + F.embedding(index, module.planted_table).sum()  # born


@fault("module", "sqrt", "singular-gradient", "backward")
def sqrt_at_zero(module: nn.Module, x: Tensor) -> Tensor:
    difference = x - x.detach()
    return x + torch.sqrt(difference.square())  # born


@fault("module", "acos", "singular-gradient", "backward")
def acos_at_its_edge(module: nn.Module, x: Tensor) -> Tensor:
    cosine = 1 + (x - x.detach())
    return x + torch.acos(cosine)  # born


@fault("module", "log", "masked-gradient", "backward")
def log_behind_a_mask(module: nn.Module, x: Tensor) -> Tensor:
    p = x - x.amin(-1, keepdim=True)
    logarithm = torch.log(p)  # born
    return x + torch.where(p > 0, logarithm, torch.zeros_like(p)) * 1e-3


# In the loss


@fault("loss", "log", "log-domain", "loss")
def log_in_the_loss(loss: Tensor, logits: Tensor) -> Tensor:
    certainty = loss - loss
    return loss - torch.log(certainty)  # born


@fault("loss", "div", "zero-division", "loss")
def mean_over_an_empty_mask(loss: Tensor, logits: Tensor) -> Tensor:
    mask = torch.zeros_like(logits)
    return loss + (logits * mask).sum() / mask.sum()  # born


@fault("loss", "exp", "overflow", "loss")
def perplexity(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.exp(loss.abs() + 100)  # born


@fault("loss", "sqrt", "singular-gradient", "backward")
def norm_of_nothing(loss: Tensor, logits: Tensor) -> Tensor:
    difference = logits - logits.detach()
    return loss + torch.sqrt(difference.square().sum())  # born


@fault("loss", "nll_loss", "empty-reduction", "loss")
def no_label_at_all(loss: Tensor, logits: Tensor) -> Tensor:
    labels = torch.full(logits.shape[:-1], -100)
    return loss + F.cross_entropy(logits.flatten(0, -2), labels.flatten())  # born


# Before the step: in a table of the model's own, and in the batch


@fault("table", "embedding", "indexing", "parameters")
def row_of_the_vocabulary(table: nn.Embedding, row: int) -> None:
    with torch.no_grad():
        table.weight[row] = math.nan


@fault("pixel", "convolution", "bad-input", "input")
def missing_pixel(pixel_values: Tensor, row: int) -> None:
    pixel_values[row % len(pixel_values), 0, 1, 2] = math.nan
