"""torch.compile: the tripwires live on the compiled model, the replay runs the eager one and says where they differ."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nantrace

from ..builders import caught, sgd

BAD_STEP = 2
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own, watched or not


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """No compiled code of another test."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Net(nn.Module):
    """The square root of what may be zero, behind a gain that the data decides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.root(self.first(x) * (x.abs().max() < 100)))

    def root(self, h: Tensor) -> Tensor:
        return torch.sqrt(h.square().sum(1, keepdim=True)) + torch.tanh(h)  # BAD


def train(model: Callable[..., Tensor], watched: nn.Module, bad: int | None, **options: Any) -> None:
    """Steps with an outlier in the bad one: the gain becomes 0, and with it the root's argument."""
    optimizer = sgd(watched, 0.01)
    with nantrace.watch(watched, **options):
        for i in range(BAD_STEP + 2):
            x = torch.randn(6, 4)
            x[3, 1] = 1e3 if i == bad else 0.0
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()


BACKENDS = ["eager", "aot_eager", "inductor"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("watching", ["the model", "the compiled model", "compiled in place"])
def test_a_failure_in_a_compiled_model(backend: str, watching: str) -> None:
    """The op, the module and the line are those of the eager model's source."""
    model: Any = Net()
    compiled = model if watching == "compiled in place" else torch.compile(model, backend=backend)
    if compiled is model:
        model.compile(backend=backend)
    report = caught(lambda: train(compiled, compiled if watching == "the compiled model" else model, BAD_STEP))

    assert (report.step, report.phase, report.origin.op, report.origin.module) == (BAD_STEP, "backward", "sqrt", "")
    assert "# BAD" in report.origin.source.code
    assert report.cause == "singular-gradient"
    assert report.reproduced is True or report.snapshot.replay.reasons


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_healthy_compiled_model_is_left_alone(backend: str) -> None:
    """The same weights, bit for bit, as without a watch."""
    begin, ends = Net(), []
    for watched in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(1)
        model = copy.deepcopy(begin)
        compiled = torch.compile(model, backend=backend)
        if watched:
            train(compiled, model, None)
        else:
            optimizer = sgd(model, 0.01)
            for _ in range(BAD_STEP + 2):
                x = torch.randn(6, 4)
                x[3, 1] = 0.0
                optimizer.zero_grad()
                compiled(x).square().mean().backward()
                optimizer.step()
        ends.append([p.detach().clone() for p in model.parameters()])

    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_compiled_part_of_a_model() -> None:
    """One block compiled in place (module.compile), the rest eager."""
    inner = Net()
    inner.compile(backend="aot_eager")
    model = nn.Sequential(inner, nn.Linear(2, 2))
    report = caught(lambda: train(model, model, BAD_STEP))

    assert (report.step, report.phase, report.origin.op, report.origin.module) == (BAD_STEP, "backward", "sqrt", "0")


def test_a_compiled_loss() -> None:
    """The loss function is compiled, the model is not: the origin is in the loss."""
    model = nn.Linear(4, 4)

    @torch.compile(backend="aot_eager")
    def loss(out: Tensor) -> Tensor:
        return torch.log(out.square().mean() - 1e5)

    optimizer = sgd(model, 0.01)

    def run() -> None:
        with nantrace.watch(model):
            loss(model(torch.randn(6, 4))).backward()
            optimizer.step()

    report = caught(run)

    assert (report.step, report.phase, report.origin.op, report.origin.module) == (0, "loss", "log", None)


def test_a_loss_compiled_to_machine_code() -> None:
    """Kernels outside the watched modules cannot be looked into: the report says so, and accuses no label."""
    model = nn.Linear(4, 4)
    optimizer = sgd(model, 0.01)

    @torch.compile(backend="inductor")
    def loss(out: Tensor) -> Tensor:
        return torch.log(out.square().mean() - 1e5)

    def run() -> None:
        with nantrace.watch(model):
            loss(model(torch.randn(6, 4))).backward()
            optimizer.step()

    report = caught(run)

    assert (report.step, report.phase, report.origin.op) == (0, "loss", "CompiledFunction")
    assert (report.cause, report.reproduced) == ("undetermined", None)
    assert "whose ops are not seen" in report.snapshot.replay.reasons[0]


def test_a_fault_of_the_compiler() -> None:
    """What only the compiled code gets wrong is not reproduced by the eager model, and the report says so."""

    def broken(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        return lambda *args: tuple(out / 0 - out / 0 for out in graph(*args))

    model = Net()
    report = caught(lambda: train(torch.compile(model, backend=broken), model, None))

    assert (report.step, report.reproduced, report.cause) == (0, False, "transient")
    assert report.snapshot.replay.reasons == ("the replay came out finite",)


def test_a_module_compiled_in_place_is_as_it_was_afterwards() -> None:
    """What tells of its calls is gone when the watch ends, and it can be copied and pickled while it is watched."""
    model = Net()
    model.compile(backend="eager")
    before = model._compiled_call_impl
    with nantrace.watch(model):
        assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()
        pickle.loads(pickle.dumps(model))
        model(torch.randn(2, 4))

    assert model._compiled_call_impl is before
