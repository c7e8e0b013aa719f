"""A watch leaves nothing behind, however its block ends; and while it runs, the model can be copied and saved."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.flop_counter import FlopCounterMode

import nantrace

from ..builders import Encoder, Mlp, sgd
from ..traces_left import traces_left, wrapped_in


class Interrupted(nn.Module):
    """A model whose forward is left by an exception while `error` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Mlp()
        self.error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        if self.error is not None:
            raise self.error
        return x


def train(model: nn.Module, steps: int = 2) -> None:
    optimizer = sgd(model)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()


def test_nothing_is_left_after_the_block() -> None:
    """Every hook, patch and mode is gone when the block ends."""
    model = Mlp()
    with nantrace.watch(model):
        train(model)

    assert traces_left() == []
    assert wrapped_in(model) == []


def test_something_is_there_inside_the_block() -> None:
    """The list of what could be left names what a running watch has in place."""
    model = Mlp()
    with nantrace.watch(model):
        there = traces_left()
        wrapped = wrapped_in(model)

    assert wrapped == [path for path, _ in model.named_modules()]
    assert "a global module registration hook" in there
    assert "a dispatch mode" in there
    assert "the engine" in there


def test_nothing_accumulates_in_torch_over_many_watches() -> None:
    """A watch around every single step leaves no entry per step in torch's tables."""
    model = Mlp()
    for _ in range(5):
        with nantrace.watch(model):
            train(model, 1)

    assert traces_left() == []


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_nothing_is_left_after_an_exception_in_a_forward(error: BaseException) -> None:
    """An exception, an interrupt or an exit that leaves a forward leaves the block clean."""
    model = Interrupted()
    model.error = error

    with pytest.raises(type(error)), nantrace.watch(model):
        model(torch.randn(5, 4))

    assert traces_left() == []


def test_an_interrupt_is_forgotten_by_the_next_call() -> None:
    """After a caught KeyboardInterrupt inside a forward, the glue of the next step is recorded again."""
    model = Interrupted()
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model.error = KeyboardInterrupt()
            with pytest.raises(KeyboardInterrupt):
                model(torch.randn(5, 4))
            model.error = None
            loss = torch.log(model(torch.randn(5, 4)).square().sum() * 0)
            loss.backward()
            optimizer.step()

    with pytest.raises(nantrace.NumericalAnomaly) as raised:
        run()

    assert raised.value.report.origin.op == "log"
    assert raised.value.report.phase == "loss"


def test_an_optimizer_that_raises_is_forgotten_too() -> None:
    """After a caught exception of an optimizer's own, the glue of the next step is recorded again."""

    class Moody(torch.optim.SGD):
        calls = 0

        def step(self, closure: Callable[[], float] | None = None) -> float | None:
            self.calls += 1
            if self.calls == 1:
                raise RuntimeError("not today")
            return super().step(closure)

    model = Mlp()
    optimizer = Moody(model.parameters(), 0.1)

    def run() -> None:
        with nantrace.watch(model):
            model(torch.randn(5, 4)).sum().backward()
            with pytest.raises(RuntimeError, match="not today"):
                optimizer.step()
            optimizer.zero_grad()
            loss = torch.log(model(torch.randn(5, 4)).square().sum() * 0)
            loss.backward()
            optimizer.step()

    with pytest.raises(nantrace.NumericalAnomaly) as raised:
        run()

    assert (raised.value.report.origin.op, raised.value.report.phase) == ("log", "loss")


def test_nothing_is_left_after_an_anomaly() -> None:
    """Nor does an anomaly leave anything."""
    model = Mlp()
    with pytest.raises(nantrace.NumericalAnomaly), nantrace.watch(model):
        (model(torch.randn(5, 4)).sum() * float("nan")).backward()
        sgd(model).step()

    assert traces_left() == []


def test_nothing_is_left_after_start_and_stop() -> None:
    """`stop()` takes off what `start()` put on, and a second `stop()` does nothing."""
    model = Mlp()
    tracer = nantrace.watch(model).start()
    train(model)
    tracer.stop()
    tracer.stop()

    assert traces_left() == []


def test_two_watches_end_in_any_order() -> None:
    """The first watch to end leaves the other one working."""
    first, second = Mlp(), Mlp()
    one, two = nantrace.watch(first).start(), nantrace.watch(second).start()
    one.stop()
    train(second, 3)
    steps = two.step
    two.stop()

    assert steps == 3
    assert traces_left() == []


def test_no_module_carries_a_hook() -> None:
    """Nothing is registered on the model itself, inside the block or after it."""
    model = Mlp()
    with nantrace.watch(model):
        train(model)
        counts = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]

    assert counts == [0, 0, 0]


def by_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def by_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_state_dict(model: nn.Module) -> nn.Module:
    twin = Mlp()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle, by_torch_save, by_state_dict])
def test_a_watched_model_can_be_copied_and_saved(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    """Inside the block a model copies, pickles and saves as it does outside."""
    model = Mlp()
    with nantrace.watch(model):
        train(model)
        inside = duplicate(model)
    outside = duplicate(model)

    for twin in (inside, outside):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_copy_made_inside_the_block_is_not_watched() -> None:
    """A copy of a watched model is a model of its own: nothing of it is recorded."""
    model = Mlp()
    with nantrace.watch(model) as tracer:
        twin = copy.deepcopy(model)
        twin(torch.full((5, 4), float("nan"))).sum().backward()
        sgd(twin).step()
        train(model, 1)

    assert tracer.reports == []


def test_the_fast_path_of_a_transformer_is_still_taken() -> None:
    """In eval, `nn.TransformerEncoderLayer` runs as one fused op, watched or not."""
    model = Encoder().eval()
    with nantrace.watch(model), torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        model(torch.randn(2, 5, 16))

    assert "aten::_transformer_encoder_layer_fwd" in {event.key for event in seen.key_averages()}


def test_a_mode_of_the_users_own_closes_inside_the_block() -> None:
    """A dispatch mode that the user opens and closes inside the block counts as it does outside."""
    model, counts = Mlp(), []
    for options in (None, {}):
        counter = FlopCounterMode(display=False)
        if options is None:
            with counter:
                model(torch.randn(5, 4)).sum().backward()
        else:
            with nantrace.watch(model), counter:
                model(torch.randn(5, 4)).sum().backward()
        counts.append(counter.get_total_flops())

    assert counts[0] == counts[1] > 0


def test_a_mode_of_the_users_own_around_the_watch_stays() -> None:
    """A mode opened before the watch is still there, alone, when the watch has ended."""
    model = Mlp()
    with FlopCounterMode(display=False) as counter:
        before = list(_get_current_dispatch_mode_stack())
        with nantrace.watch(model):
            train(model, 1)
        after = list(_get_current_dispatch_mode_stack())

    assert before == after
    assert counter.get_total_flops() > 0


def test_a_mode_opened_inside_and_closed_after_the_watch_stays() -> None:
    """A mode opened inside the block and closed after it is not torn off by the end of the watch."""
    model, counter = Mlp(), FlopCounterMode(display=False)
    with nantrace.watch(model):
        counter.__enter__()
    kept = bool(_get_current_dispatch_mode_stack())
    counter.__exit__(None, None, None)

    assert kept
    assert traces_left() == []
