"""Without a replay, or where it failed: the live graph, the loss lines and the ring say what they can, honestly."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nantrace

from ..builders import Mlp, Program, caught, sgd

NAN, INF = math.nan, math.inf


def mean_square(out: Tensor) -> Tensor:
    return out.square().mean()


@dataclass
class Kind:
    """One kind of failure, and what is known of it without a replay."""

    phase: str
    op: str
    module: str | None
    confidence: str = "certain"
    fault: Callable[[Tensor], Tensor] | None = None
    loss: Callable[[Tensor], Tensor] = mean_square
    spoil: Callable[[Mlp, Tensor], Any] = field(default=lambda model, x: None)


def spoil_input(model: Mlp, x: Tensor) -> None:
    x[1, 1] = NAN


def spoil_parameter(model: Mlp, x: Tensor) -> None:
    with torch.no_grad():
        model.second.weight[0, 3] = INF


def spoil_scale(model: Mlp, x: Tensor) -> None:
    with torch.no_grad():
        model.second.weight.mul_(1e38)
        model.first.weight.mul_(1e30)


def with_bad_labels(out: Tensor) -> Tensor:
    return (out - torch.tensor([1.0, NAN, 2.0])).square().mean()


KINDS = {
    "log": Kind("forward", "log", "", fault=torch.log),
    "division": Kind("forward", "div", "", fault=lambda h: h / h),
    "exp": Kind("forward", "exp", "", fault=lambda h: torch.exp(h * 1000)),
    "sqrt": Kind("forward", "sqrt", "", "undetermined", fault=lambda h: torch.sqrt(h - 1)),
    "power": Kind("forward", "pow", "", fault=lambda h: (h - 9).pow(0.5)),
    "masked-softmax": Kind("forward", "softmax", "", "likely", fault=lambda h: h.masked_fill(h > -1, -INF).softmax(-1)),
    "overflow-in-a-layer": Kind("forward", "addmm", "second", spoil=spoil_scale),
    "log-in-the-loss": Kind("loss", "log", None, loss=lambda out: torch.log(out.softmax(-1) - 1).mean()),
    "division-in-the-loss": Kind("loss", "div", None, loss=lambda out: (out / (out - out)).mean()),
    "empty-mean": Kind("loss", "mean", None, loss=lambda out: out[:0].mean()),
    "bad-label": Kind("input", "sub", None, "likely", loss=with_bad_labels),
    "bad-input": Kind("input", "addmm", "first", spoil=spoil_input),
    "bad-parameter": Kind("parameters", "addmm", "second", spoil=spoil_parameter),
    "derivative": Kind("backward", "sqrt", "", "undetermined", fault=lambda h: torch.sqrt(h - h)),
    "derivative-of-acos": Kind("backward", "acos", "", "undetermined", fault=lambda h: torch.acos(h * 0 + 1)),
    "derivative-in-the-loss": Kind(
        "backward", "sqrt", None, "undetermined", loss=lambda out: torch.sqrt((out - out).square().sum())
    ),
}


def train(kind: Kind, **options: Any) -> nantrace.Report:
    """The report of a training of two steps whose second one fails."""
    model = Mlp()
    optimizer = sgd(model, 0.01)

    def run() -> None:
        with nantrace.watch(model, **options):
            for step in range(2):
                x = torch.randn(5, 4)
                if step == 1:
                    model.fault = kind.fault
                    kind.spoil(model, x)
                optimizer.zero_grad()
                (kind.loss if step == 1 else mean_square)(model(x)).backward()
                optimizer.step()

    return caught(run)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_of_failure(kind: Kind) -> None:
    """Step, phase, module and op are right without a replay, and the confidence tells what is inferred."""
    report = train(kind, replay=False)

    assert (report.step, report.phase) == (1, kind.phase)
    assert (report.origin.op, report.origin.module) == (kind.op, kind.module)
    assert report.reproduced is None
    assert report.confidence == kind.confidence
    assert report.snapshot.replay.reasons[0] == "replay is switched off (replay=False)"


@pytest.mark.parametrize("name", ["log-in-the-loss", "division-in-the-loss", "derivative-in-the-loss", "bad-label"])
def test_a_loss_line_is_known(name: str) -> None:
    """The ops of the loss were seen live: their lines are exact."""
    source = train(KINDS[name], replay=False).origin.source

    assert source.file == __file__
    assert "lambda out" in source.code or "with_bad_labels" in source.function


def test_a_layer_of_torchs_own_has_the_line_that_called_it() -> None:
    """Inside `nn.Linear` there is no line of the user's: the one that called the layer is named."""
    source = train(KINDS["overflow-in-a-layer"], replay=False).origin.source

    assert source.code == "return self.second(hidden)"


def test_a_line_inside_a_module_is_not_invented() -> None:
    """Where nothing recorded the line, there is none."""
    assert train(KINDS["log"], replay=False).origin.source is None


def test_the_tripwires_alone() -> None:
    """`level="loss"` keeps no statistics; the live graph of the loss still has the op."""
    report = train(KINDS["log"], replay=False, level="loss")

    assert (report.phase, report.origin.op, report.cause) == ("forward", "log", "log-domain")


def test_a_result_without_gradients_is_placed_by_the_ring() -> None:
    """Without gradients there is no graph: the first module with a bad output is all that is known."""
    model = Mlp(lambda h: h)
    with torch.no_grad():
        model.second.weight.fill_(NAN)

    def run() -> None:
        with nantrace.watch(model, replay=False), torch.no_grad():
            model(torch.randn(5, 4))

    report = caught(run)

    assert (report.phase, report.origin.module, report.confidence) == ("forward", "second", "undetermined")


def test_watching_without_a_replay_changes_nothing() -> None:
    """The numbers are the same as without a watch."""

    def losses(watched: bool) -> list[float]:
        torch.manual_seed(3)
        model = Mlp()
        optimizer = sgd(model)
        found = []
        tracer = nantrace.watch(model, replay=False)
        if watched:
            tracer.start()
        for _ in range(3):
            optimizer.zero_grad()
            loss = mean_square(model(torch.randn(5, 4)))
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        tracer.stop()
        return found

    assert losses(True) == losses(False)


# Replays that fail


def one_step(model: nn.Module, *args: Any, between: Callable[[], object] = lambda: None) -> nantrace.Report:
    """The report of one step that must be replayed."""
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            loss = model(*args).sum()
            between()
            loss.backward()
            optimizer.step()

    return caught(run)


def test_an_input_that_was_changed_in_place() -> None:
    """Written behind torch's back: the replay comes out finite, the live graph's values are from before."""
    batch = np.full((5, 4), 1.0, dtype=np.float32)
    scale = np.full(8, -1.0, dtype=np.float32)
    factor = torch.from_numpy(scale)
    model = Program(lambda w, x: torch.log((x @ w) * factor), torch.ones(4, 8))

    def refill() -> None:
        scale[:] = 1.0

    report = one_step(model, torch.from_numpy(batch), between=refill)

    assert report.reproduced is False
    assert (report.phase, report.origin.op, report.confidence) == ("forward", "log", "likely")
    assert "the replay came out finite" in report.snapshot.replay.reasons
    assert report.origin.example.operand("self").value == -4


def test_a_model_that_reads_the_clock_or_the_system() -> None:
    """What is drawn outside of every random stream is drawn anew: not reproduced, and the live operand is shown."""
    drawn: list[int] = []

    def forward(w: Tensor) -> Tensor:
        drawn.append(os.urandom(4)[0] if drawn else 0)  # the first draw is known, those of the replay are not
        return torch.log(w * (drawn[-1] and 1))

    report = one_step(Program(forward, [1.0, 2.0]))

    if drawn[-1] == 0:
        pytest.skip("the system drew the same number again")
    assert report.reproduced is False
    assert (report.phase, report.origin.op) == ("forward", "log")
    assert report.origin.example.operand("self").value == 0
    assert report.cause == "transient"
    assert report.confidence == "likely"
    assert "in the live run log made out[0] = -inf of self = 0" in report.evidence


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(RuntimeError("called a second time"), id="user-code"),
        pytest.param(MemoryError("no more memory"), id="memory"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory"), id="device-memory"),
        pytest.param(KeyboardInterrupt(), id="interrupt"),
    ],
)
def test_an_exception_in_the_replay(error: BaseException) -> None:
    """A forward that counts its calls and raises on an extra one: the reason is said, the live graph has the op."""
    calls = []

    def forward(w: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise error
        return torch.log(w - 1)

    report = one_step(Program(forward, [1.0, 2.0]))

    assert len(calls) == 2
    assert report.reproduced is None
    assert report.snapshot.replay.reasons[0].startswith(f"the replay failed: {type(error).__name__}")
    assert (report.phase, report.origin.op, report.origin.module) == ("forward", "log", "")
    assert (report.cause, report.confidence) == ("log-domain", "certain")


def test_an_exception_in_the_replay_of_a_backward() -> None:
    """Born in the backward the graph is freed: the derivative is named as a guess."""
    calls = []

    def forward(w: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("called a second time")
        return torch.sqrt(w - w)

    report = one_step(nn.Sequential(Program(forward, [1.0, 2.0]), nn.Linear(2, 2)).requires_grad_(True)[0])

    assert (report.phase, report.origin.module) == ("backward", "")
    assert report.confidence == "undetermined"


def test_a_replay_that_blames_another_op_is_not_believed() -> None:
    """Where the replay fails in another way than the live run, the live graph's operands decide."""
    calls = []

    def forward(w: Tensor) -> Tensor:
        calls.append(1)
        return torch.log(w - 1) if len(calls) == 1 else w / (w - w)

    report = one_step(Program(forward, [1.0, 2.0]))

    assert report.reproduced is False
    assert report.origin.op == "log"
    assert any("blamed div" in reason for reason in report.snapshot.replay.reasons)
    assert report.confidence != "certain"
