"""Models of every shape work while they are watched, and a fault planted in them is named right."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

from ..builders import caught, sgd

BAD_STEP = 2


class Fault(nn.Module):
    """Passes its input on, but in the bad step takes the logarithm of a negative number."""

    now = 0

    def forward(self, x: Tensor) -> Tensor:
        if Fault.now == BAD_STEP:
            return torch.log(-1 - x.abs())
        return x


@pytest.fixture(autouse=True)
def step_zero() -> None:
    Fault.now = 0


def train(model: nn.Module, step: Any = None, *others: nn.Module) -> nantrace.Report:
    """Three steps; the last one meets the fault."""
    optimizer = torch.optim.SGD([p for m in (model, *others) for p in m.parameters()], 0.01)
    step = step or (lambda: model(torch.randn(5, 4)).square().mean())

    def run() -> None:
        with nantrace.watch(model, *others):
            for Fault.now in range(BAD_STEP + 1):
                optimizer.zero_grad()
                step().backward()
                optimizer.step()

    report = caught(run)
    assert report.step == BAD_STEP
    assert report.reproduced is True
    return report


def named(report: nantrace.Report) -> tuple[str, str | None, str]:
    return report.origin.op, report.origin.module, report.phase


def test_in_place_relus() -> None:
    """ReLU(inplace=True) before and after the fault, with gradients observed at every module."""
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True), Fault(), nn.Linear(8, 2)
    )

    assert named(train(model)) == ("log", "4", "forward")


def test_in_place_after_the_fault() -> None:
    """An in-place op that overwrites the fault's own output."""
    model = nn.Sequential(nn.Linear(4, 8), Fault(), nn.LeakyReLU(inplace=True), nn.Linear(8, 2))

    assert named(train(model)) == ("log", "1", "forward")


def test_a_shared_module() -> None:
    """A module that stands in two places has the path of the first."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shared = nn.Sequential(nn.Linear(4, 4), Fault())
            self.left, self.right = shared, shared

        def forward(self, x: Tensor) -> Tensor:
            return self.right(torch.relu(self.left(x)))

    assert named(train(Model())) == ("log", "left.1", "forward")


def test_a_module_called_several_times() -> None:
    """A recurrent cell: the first bad call is the one that is named."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.fault = nn.Linear(4, 4), Fault()

        def forward(self, x: Tensor) -> Tensor:
            for i in range(6):
                x = torch.tanh(self.cell(x))
                if i == 3:
                    x = self.fault(x)
            return x

    assert named(train(Model())) == ("log", "fault", "forward")


def test_several_calls_of_the_model_per_step() -> None:
    """Two forward calls to one backward: a siamese net."""
    model = nn.Sequential(nn.Linear(4, 4), Fault())

    def step() -> Tensor:
        return F.cosine_similarity(model(torch.randn(5, 4)), model(torch.randn(5, 4))).mean()

    assert named(train(model, step)) == ("log", "1", "forward")


def test_a_recursive_module() -> None:
    """A module that calls itself."""

    class Tree(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.node, self.fault = nn.Linear(4, 4), Fault()

        def forward(self, x: Tensor, depth: int = 3) -> Tensor:
            if depth == 0:
                return self.fault(self.node(x))
            return torch.tanh(self(x, depth - 1) + self(x * 0.5, depth - 1))

    assert named(train(Tree())) == ("log", "fault", "forward")


def test_tied_weights() -> None:
    """An embedding and an output layer that share their weight."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.fault = nn.Embedding(10, 4), Fault()
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.fault(self.words(ids)))

    model = Model()

    def step() -> Tensor:
        return F.cross_entropy(model(torch.randint(10, (6,))), torch.randint(10, (6,)))

    assert named(train(model, step)) == ("log", "fault", "forward")


@dataclass
class Output:
    """What a model of the transformers kind returns."""

    loss: Tensor
    hidden: tuple[Tensor, ...] = ()


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("pack", "unpack"),
    [
        pytest.param(lambda h: (h, h * 2), lambda out: out[0] + out[1], id="tuple"),
        pytest.param(lambda h: [h, [h * 2]], lambda out: out[1][0], id="list"),
        pytest.param(lambda h: {"logits": h, "aux": {"h": h}}, lambda out: out["logits"], id="dict"),
        pytest.param(lambda h: Output(h.mean(), (h,)), lambda out: out.loss + out.hidden[0], id="dataclass"),
        pytest.param(lambda h: Pair(h, None), lambda out: out.left, id="namedtuple"),
    ],
)
def test_structured_outputs(pack: Any, unpack: Any) -> None:
    """Outputs in containers are recorded, and the loss that takes them apart is replayed."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.fault = nn.Linear(4, 4), Fault()

        def forward(self, x: Tensor) -> Any:
            return pack(self.fault(self.linear(x)))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Any:
            return self.inner(x)

    model = Model()
    report = train(model, lambda: unpack(model(torch.randn(5, 4))).square().mean())

    assert named(report) == ("log", "inner.fault", "forward")


def test_keyword_and_structured_inputs() -> None:
    """Inputs by keyword, in dictionaries, and that are no tensors."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.fault = nn.Linear(4, 4), Fault()

        def forward(self, batch: dict[str, Tensor], *, scale: float, extra: list[Tensor], flag: bool = True) -> Tensor:
            return self.fault(self.linear(batch["x"] * scale + extra[0]))

    model = Model()

    def step() -> Tensor:
        return model({"x": torch.randn(5, 4)}, scale=2.0, extra=[torch.randn(4)]).mean()

    assert named(train(model, step)) == ("log", "fault", "forward")


def test_two_models_in_one_step() -> None:
    """A fault of the first model that shows in the loss of the second."""
    encoder = nn.Sequential(nn.Linear(4, 4), Fault())
    decoder = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))

    report = train(encoder, lambda: decoder(encoder(torch.randn(5, 4))).square().mean(), decoder)

    assert named(report) == ("log", "1", "forward")
    assert report.origin.module_type == "Fault"


def test_two_models_with_the_same_names() -> None:
    """Two models of one architecture (a student and a teacher): a bad gradient of the first is its own."""

    class Small(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([value, 1.0]))

        def forward(self) -> Tensor:
            return torch.sqrt(self.w).sum()

    first, second = Small(0.0), Small(1.0)
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], 0.1)

    def run() -> None:
        with nantrace.watch(first, second):
            (first() + second()).backward()
            optimizer.step()

    report = caught(run)

    assert named(report) == ("sqrt", "", "backward")
    assert report.reproduced is True


def test_a_bad_loss_of_one_of_two_models_with_the_same_names() -> None:
    """A NaN loss of the first is not missed because the second has parameters of the same name."""
    first, second = nn.Linear(4, 2), nn.Linear(4, 2)
    of_first = sgd(first)

    def run() -> None:
        with nantrace.watch(first, second):
            second(torch.randn(3, 4)).sum().backward()
            (first(torch.randn(3, 4)).sum().detach() * float("nan") + first(torch.randn(3, 4)).sum()).backward()
            of_first.step()

    assert caught(run).snapshot.symptom.kind == "loss"


def test_a_part_of_a_model_that_is_watched_alone() -> None:
    """Watching a submodule: paths begin there, the rest is glue."""
    inner = nn.Sequential(nn.Linear(4, 4), Fault())
    outer = nn.Sequential(nn.Linear(4, 4), inner, nn.Linear(4, 2))
    optimizer = sgd(outer, 0.01)

    def run() -> None:
        with nantrace.watch(inner):
            for Fault.now in range(BAD_STEP + 1):
                optimizer.zero_grad()
                outer(torch.randn(5, 4)).square().mean().backward()
                optimizer.step()

    assert named(caught(run)) == ("log", "1", "forward")


def test_weight_norm_and_spectral_norm() -> None:
    """Parametrized weights are made anew in each call."""
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        Fault(),
    )

    assert named(train(model)) == ("log", "2", "forward")


def test_checkpointed_blocks() -> None:
    """A fault inside a checkpointed block is named once, in the forward."""
    from torch.utils.checkpoint import checkpoint

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.block = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), Fault(), nn.Dropout(0.1))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.block, self.first(x), use_reentrant=False)

    assert named(train(Model())) == ("log", "block.1", "forward")


def test_functional_call_with_other_parameters() -> None:
    """A step taken by hand on the weights, as meta-learning does."""
    model = nn.Sequential(nn.Linear(4, 4), Fault())

    def step() -> Tensor:
        loss = model(torch.randn(5, 4)).square().mean()
        grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        fast = {name: p - 0.1 * g for (name, p), g in zip(model.named_parameters(), grads, strict=True)}
        return torch.func.functional_call(model, fast, (torch.randn(5, 4),)).square().mean()

    report = train(model, step)

    assert named(report) == ("log", "1", "forward")


def test_a_model_that_calls_autograd_in_its_forward() -> None:
    """An energy model whose output is a gradient."""

    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.fault = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), Fault()

        def forward(self, x: Tensor) -> Tensor:
            x = x.requires_grad_(True)
            energy = self.net(x).sum()
            (force,) = torch.autograd.grad(energy, x, create_graph=True)
            return self.fault(force)

    model = Energy()

    assert named(train(model, lambda: model(torch.randn(5, 4)).square().mean())) == ("log", "fault", "forward")


def test_a_frozen_backbone() -> None:
    """A backbone under no_grad and a trained head: an overflow between them is found in the loop's own line."""
    backbone, head = nn.Sequential(nn.Linear(4, 4), Fault()), nn.Linear(4, 2)

    def step() -> Tensor:
        with torch.no_grad():
            features = torch.nan_to_num(backbone(torch.randn(5, 4)), nan=1e30, neginf=1e30)
        return head(features * 1e10).mean()

    optimizer = sgd(head, 0.0)

    def run() -> None:
        with nantrace.watch(head):
            for Fault.now in range(BAD_STEP + 1):
                optimizer.zero_grad()
                loss = step() if Fault.now == BAD_STEP else head(torch.randn(5, 4)).sum()
                loss.backward()
                optimizer.step()

    report = caught(run)

    assert (report.step, report.phase, report.cause) == (BAD_STEP, "loss", "overflow")
    assert (report.origin.op, report.origin.module) == ("mul", None)


def test_a_scripted_part_is_called_like_any_other() -> None:
    """A model that holds a ScriptModule is recorded, and a fault after it is found."""
    scripted = torch.jit.script(nn.Linear(4, 4))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scripted, self.head = scripted, nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.log(self.head(self.scripted(x)) * 0)

    model = Model()
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model(torch.randn(5, 4)).sum().backward()
            optimizer.step()

    report = caught(run)

    assert (report.origin.op, report.origin.module, report.reproduced) == ("log", "", True)
