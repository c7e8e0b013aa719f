"""The replay: bit by bit the same step, without a lasting effect, and honest where it cannot be."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

from ..builders import Attention, ConvNet, Mlp, Program, Recurrent, caught, sgd


def last_step(model: nn.Module, step: Any, steps: int = 3, **options: Any) -> nantrace.Report:
    """The report of a training whose last step ends in the logarithm of a negative number."""
    optimizer = sgd(model, 0.01)

    def run() -> None:
        with nantrace.watch(model, **options):
            for i in range(steps):
                optimizer.zero_grad()
                step(model, i == steps - 1).backward()
                optimizer.step()

    return caught(run)


def spoiled(loss: Tensor, bad: bool) -> Tensor:
    return loss + torch.log(-loss.abs()) if bad else loss


def images(model: nn.Module, bad: bool) -> Tensor:
    return spoiled(F.cross_entropy(model(torch.randn(4, 1, 8, 8)), torch.randint(3, (4,))), bad)


def sequences(model: nn.Module, bad: bool) -> Tensor:
    return spoiled(F.cross_entropy(model(torch.randn(4, 5, 16)), torch.randint(3, (4,))), bad)


def with_dropout_in_the_loss(model: nn.Module, bad: bool) -> Tensor:
    out = F.dropout(model(torch.randn(4, 5, 16)), 0.5)
    return spoiled((out + torch.randn_like(out)).square().mean(), bad)


def with_python_and_numpy(model: nn.Module, bad: bool) -> Tensor:
    out = model(torch.randn(4, 5, 16) * random.random())
    return spoiled((out * float(np.random.rand()) * random.uniform(1, 2)).square().mean(), bad)


def under_autocast(model: nn.Module, bad: bool) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(torch.randn(4, 5, 16))
    return spoiled(out.float().square().mean(), bad)


def with_checkpointing(model: nn.Module, bad: bool) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    out = checkpoint(model, torch.randn(4, 5, 16, requires_grad=True), use_reentrant=False)
    return spoiled(out.square().mean(), bad)


@pytest.mark.parametrize(
    ("model", "step"),
    [
        pytest.param(ConvNet, images, id="batch-norm-and-dropout"),
        pytest.param(Attention, sequences, id="transformer"),
        pytest.param(Recurrent, sequences, id="lstm"),
        pytest.param(Attention, with_dropout_in_the_loss, id="dropout-in-the-loss"),
        pytest.param(Attention, with_python_and_numpy, id="python-and-numpy"),
        pytest.param(Attention, under_autocast, id="autocast"),
        pytest.param(Attention, with_checkpointing, id="checkpointing"),
    ],
)
def test_a_step_is_reproduced_bit_by_bit(model: Any, step: Any) -> None:
    """Random streams, running statistics and modes are restored before the step is run again."""
    report = last_step(model(), step)

    assert report.reproduced is True
    assert report.snapshot.replay.reasons == ()
    assert (report.phase, report.origin.op, report.step) == ("loss", "log", 2)


def test_a_fault_that_depends_on_a_random_number_comes_again() -> None:
    """A fault that only one draw of a dropout brings about is found in the replay."""

    def forward(w: Tensor, x: Tensor) -> Tensor:
        kept = F.dropout(w * x, 0.5)
        return torch.log(kept.sum())

    torch.manual_seed(5)
    model = Program(forward, [1.0])
    optimizer = sgd(model, 0.0)

    def run() -> None:
        with nantrace.watch(model):
            while True:
                optimizer.zero_grad()
                model(torch.ones(1)).backward()
                optimizer.step()

    report = caught(run)

    assert report.origin.op == "log"
    assert report.reproduced is True


def state_of(*modules: nn.Module) -> list[Tensor]:
    return [value.clone() for module in modules for value in module.state_dict().values()]


def test_a_replay_has_no_lasting_effect() -> None:
    """Buffers, gradients, flags and random streams are as the step left them."""
    model = ConvNet()
    optimizer = sgd(model, 0.01)
    before: list[Any] = []

    def now() -> list[Any]:
        gradients = [p.grad.nan_to_num() for p in model.parameters()]
        return [*state_of(model), *gradients, torch.get_rng_state()]

    def run() -> None:
        with nantrace.watch(model):
            images(model, bad=True).backward()
            model.eval()
            model.head.train()
            before.extend(now())
            optimizer.step()

    caught(run)
    after = now()

    assert len(before) == len(after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert [module.training for module in (model, model.body, model.head)] == [False, False, True]
    assert random.random() == random.Random(0).random()


def test_the_optimizer_does_not_step_in_a_replay() -> None:
    """An optimizer that steps inside `backward` is not stepped a second time."""
    model = Program(lambda w: torch.sqrt(w - w).sum(), [1.0, 2.0])
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    calls = []

    def hook(parameter: Tensor) -> None:
        calls.append(1)
        optimizer.step()

    model.w.register_post_accumulate_grad_hook(hook)

    def run() -> None:
        with nantrace.watch(model):
            model().backward()

    caught(run)

    assert calls == [1]
    assert optimizer.state == {}


def test_a_batch_that_was_changed_in_place_is_said() -> None:
    """Where the batch is no longer what it was, the report says so and does not claim a reproduction."""
    model = Program(lambda w, x: torch.log(w * x).sum(), [1.0, 2.0])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            x = np.full(2, -1.0, dtype=np.float32)
            loss = model(torch.from_numpy(x))
            x[:] = 3.0  # behind torch's back
            loss.backward()
            optimizer.step()

    report = caught(run)

    assert report.reproduced is False
    assert report.snapshot.replay.reasons == ("the replay came out finite",)


def test_a_batch_that_the_user_refills_is_kept() -> None:
    """A static batch that the user overwrites with torch is copied before: the replay sees the old values."""
    model = Program(lambda w, x: torch.log(w + x).sum(), [1.0, 2.0])
    optimizer = sgd(model)
    static = torch.ones(2)

    def run() -> None:
        with nantrace.watch(model):
            static.fill_(-9.0)
            loss = model(static)
            static.fill_(3.0)
            loss.backward()
            optimizer.step()

    report = caught(run)

    assert report.origin.op == "log"
    assert report.reproduced is True


def test_a_model_that_changes_its_mind_is_said() -> None:
    """Python state that the replay cannot restore: not reproduced, and no guess."""
    calls = []

    def forward(w: Tensor) -> Tensor:
        calls.append(1)
        return torch.log(w - 5).sum() if len(calls) == 1 else w.sum()

    model = Program(forward, [1.0])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model().backward()
            optimizer.step()

    report = caught(run)

    assert report.reproduced is False
    assert report.cause in ("transient", "undetermined")
    assert report.origin.module == ""


def test_a_replay_that_fails_is_said() -> None:
    """A model that cannot run twice: the ring's answer, and the reason."""
    calls = []

    def forward(w: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("only once")
        return torch.log(w - 5).sum()

    model = Program(forward, [1.0])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model().backward()
            optimizer.step()

    report = caught(run)

    assert report.reproduced is None
    assert report.snapshot.replay.reasons == ("the replay failed: RuntimeError: only once",)
    assert report.origin.module == ""


def test_the_users_hooks_run_in_the_replay_too() -> None:
    """A user's forward hook that changes the output is part of the step."""
    model = Mlp()
    model.first.register_forward_hook(lambda module, args, output: torch.log(-output.abs()))
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model(torch.randn(5, 4)).sum().backward()
            optimizer.step()

    report = caught(run)

    assert report.origin.op == "log"
    assert report.reproduced is True
