"""Modules that count, carry and collect: a replay begins with what they held, and leaves it as it was."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nantrace

from ..builders import caught, kept, sgd

BAD_STEP = 3


def train(model: nn.Module, step: Callable[[int], Tensor] | None = None) -> None:
    """Steps until the planted failure: two calls of the model in each."""
    optimizer = sgd(model, 0.01)
    step = step or (lambda i: (model(torch.randn(3, 4)) + model(torch.randn(3, 4))).square().mean())
    with nantrace.watch(model):
        for i in range(BAD_STEP + 2):
            optimizer.zero_grad()
            step(i).backward()
            optimizer.step()


def found(model: nn.Module, step: Callable[[int], Tensor] | None = None) -> nantrace.Report:
    report = caught(lambda: train(model, step))
    assert report.step == BAD_STEP
    assert report.reproduced is True
    return report


class Counting(nn.Module):
    """Fails in its eighth call, which it knows by counting."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = self.linear(x)
        return torch.log(h * 0) if self.calls == 2 * BAD_STEP + 2 else h


class Collecting(nn.Module):
    """Counts by the length of a list."""

    def __init__(self, like: Callable[[], Any]) -> None:
        super().__init__()
        self.linear, self.seen = nn.Linear(4, 4), like()

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        self.seen.append(h.detach().mean())
        return torch.log(h * 0) if len(self.seen) == 2 * BAD_STEP + 2 else h


class CountingInATensor(nn.Module):
    """Counts in a tensor that is no buffer, in place."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.linear, self.seen = nn.Linear(4, 4), torch.zeros(numel)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        h = self.linear(x)
        return torch.log(h * 0) if self.seen[0] == 2 * BAD_STEP + 2 else h


class RebindingABuffer(nn.Module):
    """Replaces its buffer by another one in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        h = self.linear(x)
        return torch.log(h * 0) if self.seen == 2 * BAD_STEP + 2 else h


class CountingBelow(nn.Module):
    """Holds the one that counts, below a module of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), Counting())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize(
    ("make", "module"),
    [
        pytest.param(Counting, "", id="number"),
        pytest.param(CountingBelow, "body.1", id="submodule"),
        pytest.param(lambda: Collecting(list), "", id="list"),
        pytest.param(lambda: Collecting(lambda: deque(maxlen=100)), "", id="deque"),
        pytest.param(lambda: CountingInATensor(1), "", id="small tensor"),
        pytest.param(lambda: CountingInATensor(5000), "", id="large tensor"),
        pytest.param(RebindingABuffer, "", id="rebound buffer"),
    ],
)
def test_a_failure_in_an_exact_call(make: Callable[[], nn.Module], module: str) -> None:
    """A model that fails in its n-th call fails again in the replay."""
    report = found(make())

    assert (report.origin.op, report.origin.module) == ("log", module)


def test_a_temperature_that_the_model_anneals() -> None:
    """The value in the failing step is the one that the replay divides by."""

    class Annealing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.tau = nn.Linear(4, 4), 2.0 * BAD_STEP + 1

        def forward(self, x: Tensor) -> Tensor:
            out = torch.softmax(self.linear(x) / self.tau, -1)
            self.tau -= 1
            return out

    report = found(Annealing())

    assert (report.origin.op, report.cause) == ("div", "zero-division")


def test_a_temperature_that_the_loop_anneals() -> None:
    """The loop lowers a number of the model's after the forward: the replay uses the one before."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.tau = nn.Linear(4, 4), float(BAD_STEP)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) / self.tau

    model = Model()

    def step(i: int) -> Tensor:
        out = model(torch.randn(3, 4)).mean()
        model.tau -= 1
        return out

    assert found(model, step).origin.op == "div"


@dataclass
class State:
    """What a recurrent model carries from call to call."""

    h: Tensor


class Recurrent(nn.Module):
    """Carries its state in whatever container; the state vanishes in the bad step."""

    def __init__(self, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.linear, self.pack, self.unpack = nn.Linear(4, 4), pack, unpack
        self.state, self.bad = pack(torch.zeros(3, 4)), False

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.linear(x) + self.unpack(self.state))
        self.state = self.pack(torch.sqrt(h * 0) if self.bad else h)
        return h


@pytest.mark.parametrize(
    ("pack", "unpack"),
    [
        pytest.param(lambda h: h, lambda s: s, id="tensor"),
        pytest.param(lambda h: (h, None), lambda s: s[0], id="tuple"),
        pytest.param(lambda h: {"h": [h]}, lambda s: s["h"][0], id="nested"),
        pytest.param(State, lambda s: s.h, id="dataclass"),
    ],
)
def test_a_state_that_is_carried_through_the_step(pack: Any, unpack: Any) -> None:
    """The backward goes from the second call through the carried state into the first one, in the replay too."""
    model = Recurrent(pack, unpack)

    def step(i: int) -> Tensor:
        model.state = pack(unpack(model.state).detach())
        model.bad = i == BAD_STEP
        first = model(torch.randn(3, 4))
        model.bad = False
        return (first + model(torch.randn(3, 4))).mean()

    report = found(model, step)

    assert (report.phase, report.origin.op, report.origin.module) == ("backward", "sqrt", "")
    assert report.origin.source.expression == kept("torch.sqrt(h * 0)")


def test_a_bad_state_from_the_step_before() -> None:
    """A carried state that is not finite when the step begins is named like a buffer."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.state, self.gain = nn.Linear(4, 4), None, 1.0

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x)
            if self.state is not None:
                h = h + self.state
            self.state = (h * h * self.gain).detach() * 1e-3
            return h

    model = Model()

    def step(i: int) -> Tensor:
        model.gain = 1e39 if i == BAD_STEP - 1 else 1.0
        return model(torch.randn(3, 4)).square().mean()

    report = found(model, step)

    assert (report.phase, report.origin.op) == ("parameters", "add")
    assert report.snapshot.source_value.name == "state"


class WithAuxiliaryLoss(nn.Module):
    """Leaves an auxiliary loss in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.penalty, self.bad = nn.Linear(4, 4), torch.zeros(()), False

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        self.penalty = torch.sqrt((h * 0 if self.bad else h).square()).mean()
        return h.relu()


def test_an_auxiliary_loss_in_an_attribute() -> None:
    """What the loop reads from an attribute of the model is a result of the call that made it."""
    model = WithAuxiliaryLoss()

    def step(i: int) -> Tensor:
        model.bad = i == BAD_STEP
        return model(torch.randn(3, 4)).mean() + 0.1 * model.penalty

    report = found(model, step)

    assert (report.phase, report.origin.op, report.origin.module) == ("backward", "sqrt", "")


@pytest.mark.parametrize("inplace", [False, True], ids=["new", "in place"])
def test_a_feature_that_a_hook_puts_aside(inplace: bool) -> None:
    """A loss made of a hidden layer's features alone (perceptual losses) is replayed through the model."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=inplace), nn.Linear(4, 2))
    features: dict[str, Tensor] = {}
    model[0].register_forward_hook(lambda module, args, output: features.update(hidden=output))

    def step(i: int) -> Tensor:
        model(torch.randn(3, 4))
        hidden = features["hidden"] * (0 if i == BAD_STEP else 1)
        return torch.sqrt(hidden.square().sum(1)).mean()

    report = found(model, step)

    assert (report.phase, report.origin.op, report.origin.module) == ("backward", "sqrt", None)


class Statistics:
    """An object of the user's own, held by a model."""

    def __init__(self) -> None:
        self.count, self.last = 0, torch.zeros(())

    def note(self, h: Tensor) -> None:
        self.count, self.last = self.count + 1, h.detach().sum()


class CarryingEverything(nn.Module):
    """Changes something of every kind in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls, self.seen, self.state = 0, [], torch.zeros(4)
        self.table, self.own = torch.zeros(2000), Statistics()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor, bad: bool) -> Tensor:
        self.calls += 1
        h = self.linear(x)
        self.seen.append(h.detach().sum())
        self.state = 0.5 * self.state + h.detach().mean(0)
        self.mean = 0.5 * self.mean + h.detach().mean(0)
        self.table[self.calls] += 1
        self.own.note(h)
        return torch.log(h * 0) if bad else h

    def carried(self) -> list[Tensor]:
        """All of it, in tensors."""
        numbers = torch.tensor([self.calls, len(self.seen), self.own.count])
        return [numbers, *self.seen, self.state, self.mean, self.table, self.own.last, *self.parameters()]


def test_nothing_that_a_model_carries_is_changed_by_a_replay() -> None:
    """Counters, lists, states, tensors and objects go on as if there had been no replay."""
    reports: list[nantrace.Report] = []
    twins = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = CarryingEverything()
        optimizer = sgd(model, 0.01)
        with nantrace.watch(model, on_anomaly=reports.append) if watched else nullcontext():
            for i in range(BAD_STEP + 3):
                optimizer.zero_grad()
                model(torch.randn(3, 4), i == BAD_STEP).mean().backward()
                optimizer.step()
        twins.append(model.carried())

    assert [report.step for report in reports] == [BAD_STEP]
    assert len(twins[0]) == len(twins[1])
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*twins, strict=True))


def test_a_state_too_large_to_be_kept_is_a_doubt() -> None:
    """Keeping it would raise the memory of the step: where the replay differs for that reason, the report says so."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.state = nn.Linear(4, 4), torch.zeros(5_000_000)

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x) if self.state[0] != BAD_STEP else torch.log(self.linear(x) * 0)
            self.state = self.state + 1
            return h

    model = Model()
    report = caught(lambda: train(model, lambda i: model(torch.randn(3, 4)).mean()))

    assert (report.step, report.reproduced) == (BAD_STEP, False)
    assert report.snapshot.replay.changed == (
        "state was too large to be kept: the replay began with what it held afterwards",
    )
    assert report.cause == "log-domain"  # from the live graph: a difference that is explained is not "transient"
