"""level="op": every op is seen as it runs. The origin is exact without a second run of anything."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import nantrace

from ..builders import Attention, ConvNet, Encoder, Mlp, Program, Recurrent, caught, report_on, sgd, stays_silent
from .test_without_replay import KINDS, Kind, train

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_of_failure(kind: Kind) -> None:
    """Step, phase, op, module and line, forward and backward, all certain."""
    report = train(kind, level="op")

    assert (report.step, report.phase) == (1, kind.phase)
    assert (report.origin.op, report.origin.module) == (kind.op, kind.module)
    assert report.origin.source is not None
    assert report.reproduced is None
    assert report.confidence == "certain"


def test_a_model_that_cannot_run_twice() -> None:
    """The model is called once; its line and operands are known all the same."""
    calls = []

    def forward(w: Tensor) -> Tensor:
        calls.append(os.urandom(4))
        return torch.log(w * (len(calls) - 1))

    report = report_on(forward, [1.0, 2.0], level="op")

    assert len(calls) == 1
    assert (report.origin.op, report.cause, report.confidence) == ("log", "log-domain", "certain")
    assert report.origin.source.code == "return torch.log(w * (len(calls) - 1))"
    assert report.origin.example.operand("self").value == 0


def test_the_operand_of_an_in_place_op_is_shown_as_it_was() -> None:
    """What the op overwrote was copied before."""
    report = report_on(lambda w: (w * 2).sub_(4).log_(), [1.0, 5.0], level="op")

    assert report.origin.op == "log"
    assert report.origin.example.operand("self").value == -2


def test_the_derivative_of_an_op_that_saved_its_result_alone() -> None:
    """`sqrt` saves its result; the operand was held because its derivative can be singular."""
    report = report_on(lambda w: torch.sqrt(w - w), [1.0, 2.0], level="op")

    assert (report.phase, report.origin.op, report.cause) == ("backward", "sqrt", "singular-gradient")
    assert report.origin.example.operand("self").value == 0
    assert report.origin.autograd_node == "SqrtBackward0"


def test_a_custom_function() -> None:
    """Born in the backward of a user's Function: its name, and the line that applied it."""

    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sqrt()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return gradient / x.sqrt()

    report = report_on(lambda w: Root.apply(w - w), [1.0], level="op")

    assert (report.phase, report.origin.op) == ("backward", "Root")
    assert "Root.apply" in report.origin.source.code


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint(reentrant: bool) -> None:
    """The recomputation is seen too, and is no second origin."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Mlp(lambda h: torch.sqrt(h - h))

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    model = Net()
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model, level="op"):
            model(torch.randn(5, 4, requires_grad=True)).sum().backward()
            optimizer.step()

    report = caught(run)

    assert (report.phase, report.origin.op, report.origin.module) == ("backward", "sqrt", "inner")


def test_a_gradient_penalty() -> None:
    """A double backward in the loss code: the forward op of the derivative is named."""
    model = Program(lambda w, x: torch.sqrt((w * x).square().sum()), [1.0, 1.0])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model, level="op"):
            x = torch.zeros(2, requires_grad=True)
            out = model(x)
            (gradient,) = torch.autograd.grad(out, x, create_graph=True)
            gradient.square().sum().backward()
            optimizer.step()

    assert caught(run).origin.op == "sqrt"


def test_a_hand_written_update() -> None:
    """A division in a hand-written optimizer: phase and line."""
    model = Program(lambda w: w * 0, [1.0])

    def run() -> None:
        with nantrace.watch(model, level="op"):
            model().sum().backward()
            with torch.no_grad():
                for p in model.parameters():
                    direction = p.grad / p.grad.norm()
                    p -= 0.1 * direction

    report = caught(run)

    assert (report.phase, report.origin.op) == ("optimizer", "div")
    assert report.origin.source.code == "direction = p.grad / p.grad.norm()"


def test_data_code_is_no_origin_of_a_bad_input() -> None:
    """A NaN written into the batch by the loop is an input; where the loop computed it, that op is the origin."""
    model = Mlp()
    optimizer = sgd(model)

    def run(x: Tensor) -> Callable[[], None]:
        def training() -> None:
            with nantrace.watch(model, level="op"):
                x[0, 0] = NAN
                model(x).sum().backward()
                optimizer.step()

        return training

    report = caught(run(torch.randn(5, 4)))

    assert (report.phase, report.origin.op, report.origin.module) == ("input", "addmm", "first")


def test_several_steps_and_models() -> None:
    """What is seen of a step is forgotten with it: a GAN's two optimizers, and a later step that fails."""
    generator, discriminator = Mlp(), nn.Linear(3, 1)
    first, second = sgd(generator, 0.01), sgd(discriminator, 0.01)

    def run() -> None:
        with nantrace.watch(generator, discriminator, level="op"):
            for step in range(4):
                fake = generator(torch.randn(5, 4))
                second.zero_grad()
                F.softplus(discriminator(fake.detach())).mean().backward()
                second.step()
                first.zero_grad()
                score = discriminator(fake).sigmoid()
                (-torch.log(score * (step < 3))).mean().backward()
                first.step()

    report = caught(run)

    assert (report.step, report.phase, report.origin.op) == (3, "loss", "log")


def test_an_index_error_is_explained_without_a_replay() -> None:
    """The op that raised was seen."""
    model = nn.Sequential(nn.Embedding(4, 2))

    def run() -> None:
        with nantrace.watch(model, level="op"):
            model(torch.tensor([1, 7]))

    with pytest.raises(IndexError) as raised:
        run()
    report = nantrace.report_of(raised.value)

    assert report is not None
    assert (report.origin.op, report.origin.module, report.snapshot.index.value) == ("embedding", "0", 7)
    assert report.reproduced is None


def test_a_result_without_gradients() -> None:
    """No gradients, no optimizer: a NaN in the result raises with its op."""
    model = Program(lambda w: torch.log(w - 5), [1.0])

    def run() -> None:
        with nantrace.watch(model, level="op"), torch.no_grad():
            model()

    assert caught(run).origin.op == "log"


def test_innocent_values_are_silent() -> None:
    """Masks, unselected branches and padding raise nothing."""
    mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
    for forward in (
        lambda w: w.expand(3, 3).masked_fill(mask, -INF).softmax(-1),
        lambda w: torch.where(w > 0, w, torch.full_like(w, NAN)),
        lambda w: F.max_pool2d(w.reshape(1, 1, 1, 3), (1, 3), padding=(0, 1)),
    ):
        assert report_or_none(forward) is None


def report_or_none(forward: Callable[[Tensor], Tensor]) -> nantrace.Report | None:
    model = Program(forward, [1.0, 2.0, 3.0])
    optimizer = sgd(model)
    with nantrace.watch(model, level="op") as tracer:
        model().sum().backward()
        optimizer.step()
    return tracer.reports[0] if tracer.reports else None


def test_the_run_goes_on_with_a_warning() -> None:
    """`on_anomaly="warn"`: seen, reported, and the run is as it would have been."""
    model = Mlp(torch.log)
    optimizer = sgd(model)

    with nantrace.watch(model, level="op", on_anomaly="warn") as tracer:
        model(torch.randn(5, 4)).sum().backward()
        with pytest.warns(nantrace.NumericalAnomalyWarning):
            optimizer.step()

    assert tracer.reports[0].origin.op == "log"


# Nothing is changed, nothing is kept


@pytest.mark.parametrize("model", [ConvNet, Attention, Encoder, Recurrent])
def test_watching_changes_nothing(model: Callable[[], nn.Module]) -> None:
    """Losses, parameters and random streams are bit by bit those of a run without a watch."""

    def run(watched: bool) -> list[Tensor]:
        torch.manual_seed(1)
        network = model()
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        shape = (4, 1, 8, 8) if model is ConvNet else (4, 5, 16)
        found = []
        tracer = nantrace.watch(network, level="op")
        if watched:
            tracer.start()
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(torch.randn(shape)), torch.randint(3, (4,)))
            loss.backward()
            optimizer.step()
            found.append(loss.detach().clone())
        tracer.stop()
        return [*found, *(p.detach().clone() for p in network.parameters()), torch.get_rng_state()]

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


def test_a_finished_step_is_let_go() -> None:
    """Activations of a step, bad ones included, do not outlive it."""
    seen: list[weakref.ref[Tensor]] = []

    def fault(hidden: Tensor) -> Tensor:
        hidden = hidden.masked_fill(hidden > 0, -INF)
        seen.append(weakref.ref(hidden))
        return hidden.nan_to_num(neginf=0.0)

    model = Mlp(fault)
    optimizer = sgd(model)
    with nantrace.watch(model, level="op"):
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(torch.randn(5, 4)).sum()
            loss.backward()
            del loss
            optimizer.step()
        assert [reference() for reference in seen] == [None, None]


def test_a_mode_of_the_users_is_left_alone() -> None:
    """A dispatch mode that the user enters and leaves inside the watch stays theirs."""
    from torch.utils.flop_counter import FlopCounterMode

    model = Mlp()
    with nantrace.watch(model, level="op"), FlopCounterMode(display=False) as counter:
        model(torch.randn(5, 4)).sum().backward()

    assert counter.get_total_flops() > 0


def test_an_exception_in_the_loop_leaves_nothing() -> None:
    """The mode and the hooks are gone (the suite looks), and the next watch works."""
    model = Mlp()
    with pytest.raises(KeyError), nantrace.watch(model, level="op"):
        model(torch.randn(5, 4))
        raise KeyError

    assert stays_silent(lambda w: w * 2, [1.0]).reports == []


def test_an_interrupted_optimizer_does_not_blind_it() -> None:
    """An optimizer's step that raises is not told to have ended; the next step is observed again."""

    class Torn(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise RuntimeError("no connection")

    model = Mlp()
    torn, optimizer = Torn(model.parameters(), 0.1), sgd(model)

    def run() -> None:
        with nantrace.watch(model, level="op"):
            model(torch.randn(5, 4)).sum().backward()
            with pytest.raises(RuntimeError, match="no connection"):
                torn.step()
            optimizer.zero_grad()
            model.fault = torch.log
            model(torch.randn(5, 4)).sum().backward()
            optimizer.step()

    assert caught(run).origin.op == "log"
