"""The ring buffer: bounded in steps and in events per step, and honest about what it left out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import nantrace
from nantrace.model import History
from nantrace.recording.ring import MAX_EVENTS_PER_STEP, Place, Ring

from ..builders import Mlp, sgd
from ..references import reference


def history_of(steps: int, capacity: int, model: nn.Module | None = None) -> History:
    model = model or Mlp()
    optimizer = sgd(model, 0.01)
    with nantrace.watch(model, capacity=capacity) as tracer:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(5, 4)).square().mean().backward()
            optimizer.step()
        return tracer.history


def test_the_last_steps_are_kept_and_the_rest_is_counted() -> None:
    """Past the capacity the oldest step leaves, and is counted."""
    history = history_of(10, capacity=4)

    assert [record.step for record in history.steps] == [6, 7, 8, 9]
    assert (history.capacity, history.evicted_steps) == (4, 6)
    assert {event.step for event in history} == {6, 7, 8, 9}


def test_a_capacity_of_one() -> None:
    """The smallest ring keeps one finished step."""
    assert [record.step for record in history_of(3, capacity=1).steps] == [2]


def test_nothing_is_evicted_below_the_capacity() -> None:
    """A ring that is not full has lost nothing."""
    history = history_of(3, capacity=100)

    assert len(history.steps) == 3
    assert history.evicted_steps == 0


class Halves(nn.Module):
    """Two outputs of one op."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x * self.scale).unbind(1)


def test_an_output_that_nothing_uses_has_no_gradient() -> None:
    """Where only a sibling output of the same op is used, that one alone has a gradient event."""
    model = Halves()
    with nantrace.watch(model) as tracer:
        model(torch.randn(5, 2))[0].sum().backward()
        history = tracer.history

    assert [event.output for event in history if event.kind == "gradient"] == [0]


def test_hooks_of_the_user_on_an_output_fire_as_ever() -> None:
    """Each hook of the user's sees the gradient of the value it was put on, before and after an in-place op."""
    seen = []
    model = Mlp()
    with nantrace.watch(model):
        out = model(torch.randn(5, 4))
        out.register_hook(lambda gradient: seen.append(gradient[0, 0].item()))
        out.mul_(2)
        out.register_hook(lambda gradient: seen.append(gradient[0, 0].item()))
        (out * 3).sum().backward()

    assert seen == [3.0, 6.0]


def test_the_events_of_a_step_in_order() -> None:
    """Outputs in the order of the calls, then gradients in the order of the backward."""
    history = history_of(1, capacity=4)

    assert [(event.kind, event.module) for event in history] == [
        ("forward", "first"),
        ("forward", "second"),
        ("forward", ""),
        ("gradient", "second"),  # whose output is the model's output: one tensor, two events
        ("gradient", ""),
        ("gradient", "first"),
    ]


def test_the_statistics_of_outputs_and_gradients() -> None:
    """What the ring says of a tensor equals the float64 reference."""
    model = Mlp()
    outputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    for path, module in (("first", model.first), ("second", model.second)):

        def keep(_: nn.Module, __: object, output: Tensor, path: str = path) -> None:
            outputs[path] = output.detach().clone()
            output.register_hook(lambda gradient: gradients.__setitem__(path, gradient.clone()))

        module.register_forward_hook(keep)
    with nantrace.watch(model) as tracer:
        model(torch.randn(5, 4)).square().mean().backward()
        history = tracer.history

    for kind, seen in (("forward", outputs), ("gradient", gradients)):
        for path, tensor in seen.items():
            (event,) = [e for e in history if e.kind == kind and e.module == path]
            expected = reference(tensor)
            assert (event.min, event.max) == (expected.min, expected.max)
            assert event.mean == pytest.approx(expected.mean, rel=1e-4, abs=1e-7)
            assert event.rms == pytest.approx(expected.rms, rel=1e-5)
            assert (event.numel, event.dtype, event.finite) == (tensor.numel(), "float32", True)


def test_loss_norm_and_learning_rate_of_each_step() -> None:
    """Beside the events a step knows its loss, its gradient norm and its learning rate."""
    model = Mlp()
    optimizer = sgd(model, 0.25)
    losses, norms = [], []
    with nantrace.watch(model) as tracer:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.randn(5, 4)).square().mean()
            loss.backward()
            losses.append(loss.item())
            norms.append(math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters())))
            optimizer.step()
            optimizer.param_groups[0]["lr"] /= 2
        history = tracer.history

    assert [record.loss for record in history.steps] == losses
    assert [record.grad_norm for record in history.steps] == pytest.approx(norms, rel=1e-5)
    assert [record.lr for record in history.steps] == [0.25, 0.125, 0.0625]


def test_events_past_the_bound_of_a_step_are_counted() -> None:
    """A step with too many events keeps the first ones and counts the others."""
    ring = Ring(4)
    for _ in range(MAX_EVENTS_PER_STEP + 5):
        ring.write(Place("forward", "m", 0), torch.ones(1))
    ring.close(0)
    (record,) = ring.table(1).steps

    assert (record.events, record.dropped) == (MAX_EVENTS_PER_STEP, 5)


def test_what_comes_after_the_mark_belongs_to_the_next_step() -> None:
    """A step that turns out to have ended earlier gives later events to the next one."""
    ring = Ring(4)
    ring.write(Place("forward", "a", 0), torch.tensor([1.0]))
    ring.loss = 5.0
    ring.mark()
    ring.write(Place("forward", "b", 0), torch.tensor([2.0]))
    taken = ring.close(0)
    table = ring.table(1)

    assert taken == 1
    assert [(e.step, e.module, e.max) for e in table] == [(0, "a", 1.0), (1, "b", 2.0)]
    assert [record.loss for record in table.steps] == [5.0, None]


def test_the_series_of_a_module() -> None:
    """One statistic of one module over the steps."""
    history = history_of(5, capacity=3)

    assert [step for step, _ in history.series("first")] == [2, 3, 4]
    assert all(value > 0 for _, value in history.series("first", "gradient", "rms"))


def test_a_module_called_several_times_has_an_event_per_call() -> None:
    """Each call of a shared module is an event of its own."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x))

    history = history_of(1, capacity=2, model=Twice())

    assert sum(1 for event in history if event.module == "inner" and event.kind == "forward") == 2
    assert sum(1 for event in history if event.module == "inner" and event.kind == "gradient") == 2


def test_several_outputs_are_numbered() -> None:
    """The tensors of a structured output are told apart by their number."""

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> dict[str, object]:
            return {"a": self.w * 2, "rest": [self.w * 3, (x, "text")], "n": 4}

    model = Many()
    with nantrace.watch(model) as tracer:
        model(torch.ones(1))
        events = [(event.output, event.max) for event in tracer.history]

    assert events == [(0, 2.0), (1, 3.0), (2, 1.0)]


def test_a_step_with_a_nan_is_flagged() -> None:
    """An event of a tensor with a NaN says so."""
    model = Mlp(fault=lambda hidden: hidden * float("nan"))
    with nantrace.watch(model) as tracer:
        model(torch.randn(5, 4))
        flags = {event.module: event.finite for event in tracer.history}

    assert flags == {"first": True, "second": False, "": False}
