"""Modules of every kind, in every place: failures are named, healthy runs left alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

from ..builders import caught, sgd
from .rows import BAD_STEP, Program, Row, Table

table = Table()


def batch() -> Tensor:
    return torch.randn(6, 4)


class Logarithm(nn.Module):
    """Told to, the log of a negative number."""

    bad = False

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x.square() + 1 - (1e6 if self.bad else 0))  # BAD


def trained(model: nn.Module, fault: Any, loss: Callable[[], Tensor], *others: nn.Module) -> Program:
    """One optimizer step per step; `fault.bad` is set in the bad one."""
    optimizer = torch.optim.SGD([p for m in (model, *others) for p in m.parameters() if p.requires_grad], 0.01)

    def step(bad: bool) -> None:
        fault.bad = bad
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return Program((model, *others), step)


class InPlace(nn.Module):
    """Views and in-place ops between layers: slices written, columns scaled, a result reused."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bad = nn.Linear(4, 8), nn.Linear(8, 2), False

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h[:, :4].mul_(0.5)
        left, right = h[:, :4], h[:, 4:]
        left = left.abs().add_(0.0 if self.bad else 1.0)
        if self.bad:
            left[2, 1] = 0.0
        left.log_()  # BAD
        return self.second(torch.cat([left, right.relu()], 1).view(2, 3, 8).transpose(0, 1).reshape(6, 8))


@table.row("forward", "log", "")
def views_and_in_place_ops() -> Program:
    """The origin is an in-place op on one half of a chunked result."""
    model = InPlace()
    return trained(model, model, lambda: model(batch()).square().mean())


class Cells(nn.Module):
    """A recurrent cell that is called hundreds of times in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out, self.bad = nn.GRUCell(4, 4), nn.Linear(4, 1), False

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(6, 4)
        for i in range(200):
            h = self.cell(x, h)
            if self.bad and i == 120:
                h = torch.sqrt(h - h)  # BAD
        return self.out(h)


@table.row("backward", "sqrt", "")
def a_cell_called_two_hundred_times() -> Program:
    """The derivative is infinite in the 121st of 200 calls."""
    model = Cells()
    return trained(model, model, lambda: model(batch()).square().mean())


class Grows(nn.Module):
    """Adds a block to itself in its second step."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.bad, self.calls = nn.ModuleList([nn.Linear(4, 4)]), False, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            self.blocks.append(nn.Sequential(nn.Linear(4, 4), Logarithm()))
        for block in self.blocks:
            x = block(x)
        return x


@table.row("forward", "log", "blocks.1.1")
def a_module_added_while_watching() -> Program:
    """The failure is in a module that was not there when the watch began."""
    model = Grows()
    optimizer = sgd(model, 0.01)

    def step(bad: bool) -> None:
        if len(model.blocks) > 1:
            model.blocks[1][1].bad = bad
        optimizer.zero_grad()
        model(batch()).mean().backward()
        optimizer.step()

    return Program((model,), step)


@table.row("forward", "log", "1")
def lazy_modules() -> Program:
    """Weights that are made in the first call, while it is watched."""
    model = nn.Sequential(nn.LazyLinear(4), Logarithm(), nn.LazyBatchNorm1d(), nn.LazyLinear(2))
    optimizers: list[torch.optim.Optimizer] = []

    def step(bad: bool) -> None:
        model[1].bad = bad
        loss = model(batch()).square().mean()
        optimizers[:] = optimizers or [sgd(model, 0.01)]
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()

    return Program((model,), step)


@dataclass
class Output(OrderedDict):  # type: ignore[type-arg]
    """An output as transformers makes them: a dataclass that is a dictionary of what is not None."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                super().__setitem__(field.name, value)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class WithOutput(nn.Module):
    """Computes its own loss from keyword arguments and returns a record."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.log, self.head = nn.Linear(4, 4), Logarithm(), nn.Linear(4, 3)

    def forward(self, x: Tensor | None = None, *, labels: Tensor | None = None, **options: Any) -> Output:
        hidden = self.log(self.body(x))
        logits = self.head(hidden)
        return Output(F.cross_entropy(logits, labels), logits, (hidden,))


@table.row("forward", "log", "log")
def a_record_as_output_and_keywords_as_inputs() -> Program:
    """The loss is read from the record by attribute; inputs come by keyword, with extra options."""
    model = WithOutput()
    return trained(model, model.log, lambda: model(x=batch(), labels=torch.randint(3, (6,)), scale=2.0).loss)


class FromGenerator(nn.Module):
    """Takes an iterator of pieces, which a call uses up."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.log = nn.Linear(4, 4), Logarithm()

    def forward(self, pieces: Iterator[Tensor]) -> Tensor:
        return torch.stack([self.log(self.body(piece)) for piece in pieces])


def test_a_generator_as_input() -> None:
    """A generator can be run only once: the module is still right, and the report says why there is no replay."""

    def make() -> Program:
        model = FromGenerator()
        return trained(model, model.log, lambda: model(batch() for _ in range(3)).mean())

    program = make()
    report = caught(lambda: program.run(BAD_STEP, nantrace.watch))

    assert (report.step, report.phase, report.origin.module) == (BAD_STEP, "forward", "log")
    assert report.reproduced is None
    assert "took its input from a generator" in report.snapshot.replay.reasons[0]
    Row(make, "forward", "log", "log").check_healthy()


class Metric(nn.Module):
    """Like a metric of torchmetrics: its hash and its equality follow its state, and it is called with predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self.calls = torch.zeros(()), 0

    def __hash__(self) -> int:
        return hash((self.calls, id(self.total)))

    def __eq__(self, other: object) -> Any:
        return Equality(self, other)

    def forward(self, x: Tensor) -> Tensor:
        self.total = self.total + x.detach().mean()
        self.calls += 1
        return self.total


class Equality(nn.Module):
    """What comparing metrics gives: another metric, not a truth."""

    def __init__(self, *parts: Any) -> None:
        super().__init__()

    def __bool__(self) -> bool:
        raise RuntimeError("a comparison of metrics has no truth value")


@table.row("forward", "log", "log")
def metrics_whose_hash_changes() -> Program:
    """A metric inside the model and another one beside it."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.log, self.metric = nn.Linear(4, 4), Logarithm(), Metric()

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(x)
            self.metric(h)
            return self.log(h)

    model, beside = Model(), Metric()

    def loss() -> Tensor:
        out = model(batch())
        beside(out)
        return out.mean()

    return trained(model, model.log, loss)


class Contrast(nn.Module):
    """A loss with a weight of its own, outside every watched model."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bad = nn.Parameter(torch.ones(())), False

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean() / (self.scale * (0 if self.bad else 1))  # BAD


@table.row("loss", "div", None)
def a_loss_module_outside() -> Program:
    """A loss module with parameters that the same optimizer steps, not watched."""
    model, criterion = nn.Linear(4, 4), Contrast()
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], 0.01)

    def step(bad: bool) -> None:
        criterion.bad = bad
        optimizer.zero_grad()
        criterion(model(batch()), model(batch())).backward()
        optimizer.step()

    return Program((model,), step)


class Codec(nn.Module):
    """Used through methods, never through a call of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.bad = nn.Linear(4, 2), nn.Linear(2, 4), False

    def encode(self, x: Tensor) -> Tensor:
        return torch.sqrt(self.encoder(x).square() * (0 if self.bad else 1))  # BAD

    def loss(self, x: Tensor) -> Tensor:
        return F.mse_loss(self.decoder(self.encode(x)), x)


@table.row("backward", "sqrt", None)
def methods_that_bypass_call() -> Program:
    """What runs in such methods between calls is glue: right line, no module."""
    model = Codec()
    return trained(model, model, lambda: model.loss(batch()))


class Shared(nn.Module):
    """One block in two places, and an embedding tied to the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.log = nn.Embedding(7, 4), Logarithm()
        block = nn.Sequential(nn.Linear(4, 4), self.log)
        self.left, self.right = block, block
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.right(self.left(self.words(ids))))


@table.row("forward", "log", "log")
def shared_modules_and_tied_weights() -> Program:
    """The path is the first of several names."""
    model = Shared()
    return trained(model, model.log, lambda: F.cross_entropy(model(torch.randint(7, (6,))), torch.randint(7, (6,))))


class PerSample(nn.Module):
    """functorch inside: gradients of an inner function per sample, vectorised."""

    def __init__(self, transform: Callable[..., Any]) -> None:
        super().__init__()
        self.weight, self.transform, self.bad = nn.Parameter(torch.randn(4)), transform, False

    def forward(self, x: Tensor) -> Tensor:
        inner = self.transform(lambda w, row: (torch.tanh(w) * row).square().sum())
        h = inner(self.weight, x)
        return torch.log(h * 0 if self.bad else h.square() + 1)  # BAD


@pytest.mark.parametrize("name", ["vmap", "grad", "jacrev", "jvp"])
def test_functorch_transforms(name: str) -> None:
    """A failure in the model around a transform is named; wrapped tensors inside are left alone."""
    transforms = {
        "vmap": lambda f: torch.func.vmap(f, in_dims=(None, 0)),
        "grad": lambda f: torch.func.vmap(torch.func.grad(f), in_dims=(None, 0)),
        "jacrev": lambda f: torch.func.jacrev(lambda w, x: torch.func.vmap(f, in_dims=(None, 0))(w, x)),
        "jvp": lambda f: lambda w, x: torch.func.jvp(lambda v: f(v, x[0]), (w,), (torch.ones(4),))[1],
    }

    def make() -> Program:
        model = PerSample(transforms[name])
        return trained(model, model, lambda: model(batch()).mean())

    row = Row(make, "forward", "log", "")
    row.check()
    row.check_healthy()


class InsideTransform(nn.Module):
    """The failure is inside the function that is vectorised."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bad = nn.Parameter(torch.randn(4)), False

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(self.one)(x)

    def one(self, row: Tensor) -> Tensor:
        return torch.log((self.weight * row).square().sum() * (0 if self.bad else 1))  # BAD


@table.row("forward", "log", "")
def inside_vmap() -> Program:
    """The replay sees the batched op that vmap made of it."""
    model = InsideTransform()
    return trained(model, model, lambda: model(batch()).mean())


@pytest.mark.parametrize("row", table.rows)
def test_the_failure_is_named(row: Row) -> None:
    row.check()


@pytest.mark.parametrize("row", table.rows)
def test_a_healthy_run_is_left_alone(row: Row) -> None:
    row.check_healthy()
