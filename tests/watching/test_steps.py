"""Counting steps: one update of the model is one step, from 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

from ..builders import ConvNet, Mlp, Program, caught, sgd


def forward(model: nn.Module) -> Tensor:
    return model(torch.randn(5, 4)).square().mean()


def test_one_optimizer() -> None:
    """Each step of the only optimizer ends a step."""
    model = Mlp()
    optimizer = sgd(model)
    seen = []
    with nantrace.watch(model) as tracer:
        for _ in range(4):
            seen.append(tracer.step)
            optimizer.zero_grad()
            forward(model).backward()
            optimizer.step()
        seen.append(tracer.step)

    assert seen == [0, 1, 2, 3, 4]


def gan_step(g: nn.Module, d: nn.Module, of_g: torch.optim.SGD, of_d: torch.optim.SGD, spoil: float = 1.0) -> None:
    """One update of the discriminator and one of the generator, whose loss `spoil` may spoil."""
    fake = g(torch.randn(5, 4))
    of_d.zero_grad()
    (F.softplus(-d(torch.randn(5, 3))).mean() + F.softplus(d(fake.detach())).mean()).backward()
    of_d.step()
    of_g.zero_grad()
    (F.softplus(-d(fake)).mean() * spoil).backward()
    of_g.step()


def discriminator() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))


def test_two_optimizers_share_a_step() -> None:
    """A GAN's discriminator and generator belong to one step."""
    g, d = Mlp(), discriminator()
    of_g, of_d = sgd(g), sgd(d)
    seen = []
    with nantrace.watch(g, d) as tracer:
        for _ in range(4):
            gan_step(g, d, of_g, of_d)
            seen.append(tracer.step)

    assert seen == [1, 2, 3, 4]


def test_a_fault_of_the_second_optimizer_carries_the_same_number() -> None:
    """A fault in the generator's half of the step has the number of that step."""
    g, d = Mlp(), discriminator()
    of_g, of_d = sgd(g), sgd(d)

    def run() -> None:
        with nantrace.watch(g, d):
            for i in range(4):
                gan_step(g, d, of_g, of_d, spoil=float("inf") if i == 3 else 1.0)

    assert caught(run).step == 3


def test_several_updates_of_one_optimizer_to_one_of_the_other() -> None:
    """Where one optimizer steps again before the other, that begins a new step: critic steps are counted."""
    g, d = Mlp(), discriminator()
    of_g, of_d = sgd(g), sgd(d)
    with nantrace.watch(g, d) as tracer:
        for _ in range(3):
            for _ in range(2):
                of_d.zero_grad()
                d(g(torch.randn(5, 4)).detach()).mean().backward()
                of_d.step()
            of_g.zero_grad()
            d(g(torch.randn(5, 4))).mean().backward()
            of_g.step()
        steps = tracer.step

    assert steps == 6


def test_gradient_accumulation_is_one_step() -> None:
    """Several backward calls to one update are one step."""
    model = Mlp()
    optimizer = sgd(model)
    with nantrace.watch(model) as tracer:
        for i in range(12):
            forward(model).backward()
            if i % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
        steps = tracer.step

    assert steps == 3


def test_a_fault_in_the_third_of_four_micro_batches() -> None:
    """A fault inside an accumulation is named, with the number of the update it would have gone into."""
    model = Program(lambda w, x: torch.log(w * x).sum(), [1.0, 2.0])
    optimizer = sgd(model, 0.01)

    def run() -> None:
        with nantrace.watch(model):
            for i in range(12):
                model(torch.tensor(0.0 if i == 6 else 1.0)).backward()
                if i % 4 == 3:
                    optimizer.step()
                    optimizer.zero_grad()

    report = caught(run)

    assert report.step == 1
    assert report.origin.op == "log"
    assert report.reproduced is True


@pytest.mark.parametrize("to_none", [True, False])
def test_a_step_that_the_user_skips_counts(to_none: bool) -> None:
    """Dropped gradients end a step too."""
    model = Mlp()
    optimizer = sgd(model)
    with nantrace.watch(model) as tracer:
        for i in range(6):
            forward(model).backward()
            if i % 2 == 0:
                optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
        forward(model)
        steps = tracer.step

    assert steps == 6


def test_calls_without_updates_are_steps() -> None:
    """Where nothing is ever updated, each outermost call under no_grad is a step."""
    model = Mlp()
    with nantrace.watch(model) as tracer, torch.no_grad():
        for _ in range(5):
            model(torch.randn(5, 4))
        steps = tracer.step

    assert steps == 5


def test_the_number_of_the_call_that_failed() -> None:
    """In an evaluation the step is the number of the call."""
    model = Program(lambda w, x: torch.log(w * x), [1.0])

    def run() -> None:
        with nantrace.watch(model), torch.no_grad():
            for x in (1.0, 2.0, -1.0, 3.0):
                model(torch.tensor([x]))

    assert caught(run).step == 2


def test_validation_between_updates_does_not_count() -> None:
    """Calls under no_grad between the updates of a training are no steps."""
    model = ConvNet()
    optimizer = sgd(model)
    with nantrace.watch(model) as tracer:
        for _ in range(3):
            model.train()
            optimizer.zero_grad()
            model(torch.randn(4, 1, 8, 8)).square().mean().backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                for _ in range(2):
                    model(torch.randn(4, 1, 8, 8))
        steps = tracer.step

    assert steps == 3


def test_a_validation_before_the_training_does_not_count() -> None:
    """A sanity check before the first update does not move the numbers."""
    model = Mlp()
    optimizer = sgd(model)
    with nantrace.watch(model) as tracer:
        with torch.no_grad():
            for _ in range(3):
                model(torch.randn(5, 4))
        for _ in range(2):
            optimizer.zero_grad()
            forward(model).backward()
            optimizer.step()
        steps = tracer.step

    assert steps == 2


def test_hand_written_updates() -> None:
    """An update without an optimizer ends its step at the next call."""
    model = Mlp()
    seen = []
    with nantrace.watch(model) as tracer:
        for _ in range(4):
            loss = forward(model)
            seen.append(tracer.step)
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad

    assert seen == [0, 1, 2, 3]


def test_start_and_stop_count_from_zero_again() -> None:
    """Each start begins at 0."""
    model = Mlp()
    optimizer = sgd(model)
    tracer, seen = nantrace.watch(model), []
    for _ in range(2):
        tracer.start()
        for _ in range(3):
            optimizer.zero_grad()
            forward(model).backward()
            optimizer.step()
        seen.append(tracer.step)
        tracer.stop()

    assert seen == [3, 3]


def test_a_decorated_function_is_watched() -> None:
    """As a decorator, `watch` covers each call of the function."""
    model = Mlp()
    optimizer = sgd(model)

    @nantrace.watch(model)
    def train(spoil: float) -> str:
        optimizer.zero_grad()
        (forward(model) * spoil).backward()
        optimizer.step()
        return "trained"

    assert train(1.0) == "trained"
    assert train.__name__ == "train"
    report = caught(lambda: train(float("inf")))
    assert report.step == 0


def test_an_optimizer_of_one_half_of_the_model() -> None:
    """Optimizers of two halves of a model make one step together."""
    model = Mlp()
    halves = [sgd(model.first), sgd(model.second)]
    with nantrace.watch(model) as tracer:
        for _ in range(4):
            model.zero_grad()
            forward(model).backward()
            for optimizer in halves:
                optimizer.step()
        steps = tracer.step

    assert steps == 4


def test_an_optimizer_that_was_replaced_is_forgotten() -> None:
    """A second optimizer made for the same model (a schedule, a restart) takes over the count."""
    model = Mlp()
    old = sgd(model)
    seen = []
    with nantrace.watch(model) as tracer:
        for optimizer in (old, old, torch.optim.Adam(model.parameters())):
            for _ in range(2):
                optimizer.zero_grad()
                forward(model).backward()
                optimizer.step()
            seen.append(tracer.step)

    assert seen == [2, 4, 6]


def failing_in(step: int, loop: Callable[[nn.Module, torch.optim.Optimizer, bool], None]) -> nantrace.Report:
    """The report of a loop around one watched model, which is told when to fail."""
    model = nn.Linear(4, 1)
    optimizer = sgd(model, 0.01)

    def run() -> None:
        with nantrace.watch(model):
            for i in range(step + 2):
                loop(model, optimizer, i == step)

    return caught(run)


def failing_step(model: nn.Module, optimizer: torch.optim.Optimizer, bad: bool, x: Tensor | None = None) -> None:
    """zero_grad after the forward, as many loops have it: until then the last step's gradients are still there."""
    loss = torch.log(model(torch.randn(3, 4) if x is None else x).square().mean() * (0 if bad else 1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_another_model_that_trains_in_the_same_loop() -> None:
    """A backward of a model nobody watches is no step of the watched one."""
    other = nn.Linear(4, 1)
    of_other = sgd(other)

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, bad: bool) -> None:
        of_other.zero_grad()
        other(torch.randn(3, 4)).mean().backward()
        of_other.step()
        failing_step(model, optimizer, bad)

    assert failing_in(4, loop).step == 4


def test_gradients_that_another_models_step_leaves() -> None:
    """The generator's loss goes through the watched discriminator: its gradients there are nobody's skipped step."""
    generator = nn.Linear(4, 4)
    of_generator = sgd(generator)

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, bad: bool) -> None:
        failing_step(model, optimizer, bad)
        of_generator.zero_grad()
        model(generator(torch.randn(3, 4))).mean().backward()
        of_generator.step()

    assert failing_in(4, loop).step == 4


def test_an_attack_on_the_input() -> None:
    """The inner backwards of adversarial training fill the weights' gradients too; they are dropped, not skipped."""

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, bad: bool) -> None:
        x, delta = torch.randn(3, 4), torch.zeros(3, 4, requires_grad=True)
        for _ in range(2):
            model(x + delta).mean().backward()
            with torch.no_grad():
                delta += 0.1 * delta.grad.sign()
                delta.grad.zero_()
        failing_step(model, optimizer, bad, x + delta.detach())

    assert failing_in(3, loop).step == 3
