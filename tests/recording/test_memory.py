"""Recording holds no activation, and nothing grows over a long run."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

from ..builders import ConvNet, Mlp, sgd


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(4, 1, 8, 8)), torch.randint(3, (4,))).backward()
        optimizer.step()


def test_an_activation_dies_when_the_user_drops_it() -> None:
    """The tape knows what a step made by weak reference alone."""
    model = Mlp()
    with nantrace.watch(model):
        output = model(torch.randn(5, 4))
        hidden = output * 2
        seen = [weakref.ref(output), weakref.ref(hidden)]
        del output, hidden
        alive = [ref() is not None for ref in seen]

    assert alive == [False, False]


def test_an_activation_inside_the_model_dies_too() -> None:
    """Nor does a module's output inside the model live longer than without a watch."""
    seen: list[weakref.ref[Tensor]] = []
    model = Mlp(fault=lambda hidden: (seen.append(weakref.ref(hidden)), hidden)[1])
    with nantrace.watch(model), torch.no_grad():
        model(torch.randn(5, 4))
        alive = seen[0]() is not None

    assert not alive


def test_the_loss_dies_with_its_graph() -> None:
    """After the step the loss, its graph and the activations are gone."""
    model = Mlp()
    optimizer = sgd(model)
    with nantrace.watch(model):
        loss = model(torch.randn(5, 4)).square().mean()
        loss.backward()
        optimizer.step()
        seen = weakref.ref(loss)
        del loss
        alive = seen() is not None

    assert not alive


def test_a_batch_is_let_go_when_the_step_has_ended() -> None:
    """A batch is held for the replay of its step, and no longer."""
    model = Mlp()
    optimizer = sgd(model)
    with nantrace.watch(model):
        batch = torch.randn(5, 4)
        seen = weakref.ref(batch)
        model(batch).sum().backward()
        del batch
        during = seen() is not None
        optimizer.step()
        after = seen() is not None

    assert during
    assert not after


def test_a_model_dies_after_its_watch() -> None:
    """Nothing of ours keeps a model alive once the watch has ended and its tracer is gone."""
    model = Mlp()
    with nantrace.watch(model):
        model(torch.randn(5, 4)).sum().backward()
    seen = weakref.ref(model)
    del model
    gc.collect()

    assert seen() is None


def test_nothing_grows_over_three_hundred_steps() -> None:
    """Once the ring is full, the number of objects and the tape stand still."""
    model = ConvNet()
    optimizer = sgd(model, 0.01)
    counts, lengths = [], []
    with nantrace.watch(model, capacity=20) as tracer:
        recorder = tracer._recorder
        for _ in range(6):
            train(model, optimizer, 50)
            gc.collect()
            counts.append(len(gc.get_objects()))
            lengths.append((len(recorder.tape.events), len(recorder.tape._tokens), len(recorder.tape.data_ops)))

    assert max(counts[2:]) - min(counts[2:]) < 50
    assert lengths[1:] == lengths[1:2] * 5


def test_a_long_evaluation_does_not_grow() -> None:
    """Calls under no_grad, step after step, leave nothing on the tape."""
    model = ConvNet().eval()
    with nantrace.watch(model, capacity=20) as tracer, torch.no_grad():
        for _ in range(300):
            model(torch.randn(4, 1, 8, 8))
        events = len(tracer._recorder.tape.events)
        held = tracer._recorder.tape.held_bytes

    assert events <= 1
    assert held <= 4 * 64 * 4


def test_a_long_validation_inside_a_training_is_swept() -> None:
    """Many calls under no_grad between two updates are forgotten as their results die."""
    model = ConvNet()
    optimizer = sgd(model, 0.01)
    with nantrace.watch(model) as tracer:
        train(model, optimizer, 1)
        with torch.no_grad():
            for _ in range(600):
                model(torch.randn(4, 1, 8, 8)).argmax(1)
        events = len(tracer._recorder.tape.events)

    assert events < 600


def test_a_tape_of_one_endless_step_is_bounded() -> None:
    """A step with more events than the bound stops the tape and says so; statistics go on."""
    model = Mlp()
    with nantrace.watch(model) as tracer:
        tracer._recorder.tape.max_events = 30
        hidden = model(torch.randn(5, 4))
        for _ in range(50):
            hidden = hidden * 1.01
        hidden.sum().backward()
        tape = tracer._recorder.tape
        events, reason = len(tape.events), tape.overflowed
        model.zero_grad()

    assert events <= 31
    assert reason == "the step has more than 30 calls and loss ops (max_tape_events)"
