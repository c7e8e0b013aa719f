"""Tensors of every dtype, layout and size: failures are named, healthy runs left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .rows import Program, Row, Table

table = Table()


class Model(nn.Module):
    """A linear layer of some dtype and a function of its output, told whether to fail."""

    def __init__(self, function: Callable[[Tensor, bool], Tensor], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.linear, self.function, self.bad = nn.Linear(4, 4, dtype=dtype), function, False

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x.to(self.linear.weight.dtype)), self.bad)


def trained(model: Model, *batch: Tensor) -> Program:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def step(bad: bool) -> None:
        model.bad = bad
        optimizer.zero_grad()
        model(*(batch or (torch.randn(6, 4),))).float().mean().backward()
        optimizer.step()

    return Program((model,), step)


def program(function: Callable[[Tensor, bool], Tensor], dtype: torch.dtype = torch.float32) -> Program:
    return trained(Model(function, dtype))


@table.row("forward", "exp", "")
def half_overflow() -> Program:
    """exp of 12 is beyond float16."""
    return program(lambda h, bad: torch.exp(h + (12 if bad else 0)), torch.float16)  # BAD


@table.row("forward", "log", "")
def bfloat16() -> Program:
    """1 + 1e-3 - 1 is 0 in bfloat16."""
    return program(lambda h, bad: torch.log((h * 0 + 1 + 1e-3) - 1 if bad else h.square() + 1), torch.bfloat16)  # BAD


@table.row("forward", "log", "")
def double() -> Program:
    """float64 parameters and a float64 loss."""
    return program(lambda h, bad: torch.log(h.square() * (0 if bad else 1) + (0 if bad else 1)), torch.float64)  # BAD


@table.row("forward", "to_copy", "")
def float8() -> Program:
    """A cast to float8_e5m2 overflows to infinity; the rest of the maths is done in float32."""
    return program(
        lambda h, bad: (h * (1e9 if bad else 1) / 100).to(torch.float8_e5m2).float(),  # BAD
    )


@table.row("forward", "log", "")
def complex_numbers() -> Program:
    """log of a complex zero, in a spectrum."""

    def spectrum(h: Tensor, bad: bool) -> Tensor:
        f = torch.fft.fft(h) * (0 if bad else 1)
        return torch.log(f + (0 if bad else 10)).real  # BAD

    return program(spectrum)


@table.row("backward", "sqrt", "")
def a_complex_derivative() -> Program:
    """The root of a complex zero has no finite derivative."""

    def root(h: Tensor, bad: bool) -> Tensor:
        return torch.sqrt(torch.complex(h, h + 1) * (0 if bad else 1)).real  # BAD

    return program(root)


@table.row("forward", "div", "")
def a_sparse_matrix() -> Program:
    """A sparse adjacency matrix: its degree is zero for one node."""

    def graph(h: Tensor, bad: bool) -> Tensor:
        index = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
        weights = torch.ones(6)
        weights[3] = 0.0 if bad else 1.0
        adjacency = torch.sparse_coo_tensor(index, weights, (6, 6), check_invariants=False)
        summed = torch.sparse.mm(adjacency, h)
        return summed / torch.sparse.sum(adjacency, 1).to_dense()[:, None]  # BAD

    return program(graph)


class Words(nn.Module):
    """An embedding with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.bad = nn.Embedding(9, 4, sparse=True), False

    def forward(self, ids: Tensor) -> Tensor:
        return torch.sqrt((self.words(ids) * (0 if self.bad else 1)).square().sum(-1))  # BAD


@table.row("backward", "sqrt", "")
def sparse_gradients() -> Program:
    """The gradient of the embedding is a sparse tensor."""
    model = Words()
    optimizer = torch.optim.SparseAdam(model.parameters(), 0.01)

    def step(bad: bool) -> None:
        model.bad = bad
        optimizer.zero_grad()
        model(torch.randint(9, (5,))).mean().backward()
        optimizer.step()

    return Program((model,), step)


@table.row("forward", "mean", "")
def an_empty_tensor() -> Program:
    """A mean over the rows that a mask leaves: none."""
    return program(lambda h, bad: h[h[:, 0] > (1e6 if bad else -1e6)].mean())  # BAD


@table.row("forward", "log", "")
def empty_tensors_that_do_no_harm() -> Program:
    """Empty results of modules and empty slices in the loss; the failure is beside them."""

    def function(h: Tensor, bad: bool) -> Tensor:
        nothing = F.relu(h[:0])
        h = torch.cat([h, nothing])
        return torch.log(h.square() + (-1e6 if bad else 1)) + nothing.sum()  # BAD

    return program(function)


@table.row("backward", "pow", "")
def scalars() -> Program:
    """0-dim parameters and activations."""

    class Scalar(Model):
        def __init__(self) -> None:
            super().__init__(lambda h, bad: h)
            self.exponent = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x).square().mean()
            return (h * (0 if self.bad else 1)) ** self.exponent.detach()  # BAD

    return trained(Scalar())


class Tagged(Tensor):
    """A tensor subclass that stays itself through every op."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


@table.row("forward", "log", "")
def a_tensor_subclass() -> Program:
    """Batches, activations and loss are of a subclass with its own __torch_function__."""
    model = Model(lambda h, bad: torch.log(h.square() + (-1e6 if bad else 1)))  # BAD
    return trained(model, torch.randn(6, 4).as_subclass(Tagged))


@table.row("forward", "log", "")
def nan_as_a_placeholder_in_where() -> Program:
    """Missing values marked by a NaN constant that never reaches the loss; the failure is another one."""

    def function(h: Tensor, bad: bool) -> Tensor:
        marked = torch.where(h > 0, h, torch.tensor(float("nan")))
        kept = torch.where(marked.isnan(), torch.zeros_like(h), marked)
        return torch.log(kept.square() + (-1e6 if bad else 1))  # BAD

    return program(function)


@table.row("forward", "softmax", "")
def minus_infinity_as_a_mask() -> Program:
    """A float mask of -inf does no harm until it leaves a row nothing."""

    def function(h: Tensor, bad: bool) -> Tensor:
        mask = torch.full((4,), float("-inf"))
        mask[: 0 if bad else 3] = 0
        return torch.softmax(h + mask, -1)  # BAD

    return program(function)


@table.row("forward", "log", "")
def integer_and_bool_batches() -> Program:
    """Ids, masks and counts travel beside the floats."""

    def function(h: Tensor, bad: bool) -> Tensor:
        order = h.argsort(-1)
        picked = h.gather(-1, order) * (h > 0) * torch.arange(4)
        return torch.log(picked.square() + (-1e6 if bad else 1))  # BAD

    return program(function)


@table.row("forward", "exp", "")
def autocast() -> Program:
    """The linear layer runs in bfloat16, the exponential in float32, the parameters are float32."""
    model = Model(lambda h, bad: torch.exp(h.float() + (1000 if bad else 0)))  # BAD
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def step(bad: bool) -> None:
        model.bad = bad
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(torch.randn(6, 4)).mean()
        loss.backward()
        optimizer.step()

    return Program((model,), step)


@pytest.mark.parametrize("row", table.rows)
def test_the_failure_is_named(row: Row) -> None:
    row.check()


@pytest.mark.parametrize("row", table.rows)
def test_a_healthy_run_is_left_alone(row: Row) -> None:
    row.check_healthy()
