"""`expect_nonfinite`: values generated inside are meant. They are no origin, and what they spoil later is one."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nantrace

from ..builders import Mlp, Program, caught, sgd, stays_silent

MODES: list[Any] = [
    pytest.param({}, id="replay"),
    pytest.param({"level": "op"}, id="op"),
    pytest.param({"replay": False}, id="no-replay"),
]


def watched(model: nn.Module, **options: Any) -> nantrace.Tracer:
    """One call of a model without gradients."""
    with nantrace.watch(model, **options) as tracer, torch.no_grad():
        model()
    return tracer


def declared_log(w: Tensor) -> Tensor:
    with nantrace.expect_nonfinite():
        return torch.log(w - 5)


@pytest.mark.parametrize("options", MODES[:2])
def test_a_nan_result_that_was_declared_inside_the_model(options: dict[str, Any]) -> None:
    """A NaN in a result without gradients raises, but not one that the model has declared."""
    tracer = watched(Program(declared_log, [1.0]), **options)

    assert tracer.reports == []
    assert tracer.contained > 0


@pytest.mark.parametrize("options", MODES)
def test_a_call_inside_the_context(options: dict[str, Any]) -> None:
    """A whole call of the model can be declared."""
    model = Program(lambda w: torch.log(w - 5), [1.0])
    with nantrace.watch(model, **options) as tracer, torch.no_grad(), nantrace.expect_nonfinite():
        model()

    assert tracer.reports == []
    assert tracer.contained > 0


def test_without_it_the_same_call_raises() -> None:
    """The two tests above would fail without the context."""
    assert caught(lambda: watched(Program(lambda w: torch.log(w - 5), [1.0]))).origin.op == "log"


@pytest.mark.parametrize("options", MODES)
def test_a_loss_that_was_declared_with_finite_gradients(options: dict[str, Any]) -> None:
    """A loss that is meant to be infinite raises nothing while the gradients are fine."""
    model = Program(lambda w: w * 2, [1.0])
    optimizer = sgd(model)

    with nantrace.watch(model, **options) as tracer:
        out = model()
        with nantrace.expect_nonfinite():
            bound = torch.log(out.detach() * 0) * (out * 0 + 1).detach()
            loss = (out + bound).sum()
        loss.backward()
        optimizer.step()

    assert tracer.reports == []
    assert tracer.contained > 0


@pytest.mark.parametrize("options", MODES[:2])
def test_a_declared_value_that_spoils_the_gradients_is_an_anomaly(options: dict[str, Any]) -> None:
    """What the value does later is not excused: the op that let it out is the origin."""
    model = Program(lambda w: declared_log(w).sum() * w.sum(), [1.0])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model, **options):
            model().backward()
            optimizer.step()

    report = caught(run)

    assert report.origin.op != "log"
    assert report.path[0].name != "log"


def test_a_backward_inside_the_context() -> None:
    """A bad loss that is given to `backward` inside is not pending."""
    model = Program(lambda w: w * 1, [1.0])
    optimizer = sgd(model)

    with nantrace.watch(model) as tracer:
        loss = (model() + torch.tensor(float("inf"))).sum()
        with nantrace.expect_nonfinite():
            loss.backward()
        optimizer.step()

    assert tracer.reports == []
    assert tracer.contained > 0


@pytest.mark.parametrize("options", MODES[:2])
def test_a_report_lists_what_was_expected(options: dict[str, Any]) -> None:
    """Another op's anomaly in the same step does not blame the declared one."""

    def forward(w: Tensor) -> Tensor:
        return declared_log(w).nan_to_num(0.0) + torch.sqrt(w - 9)

    model = Program(forward, [1.0])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model, **options):
            model().sum().backward()
            optimizer.step()

    report = caught(run)

    assert report.origin.op == "sqrt"
    assert [(e.what, e.reason) for e in report.expected] == [
        ("log in the root module", "declared with nantrace.expect_nonfinite()")
    ]


def test_strict_leaves_declared_values_alone() -> None:
    """A declared NaN in a module's output is not raised by `strict`."""
    model = Program(lambda w: (w * 2, declared_log(w)), [1.0])
    optimizer = sgd(model)

    with nantrace.watch(model, strict=True) as tracer:
        model()[0].sum().backward()
        optimizer.step()

    assert tracer.reports == []


def test_as_a_decorator_and_nested() -> None:
    """It is used like `torch.no_grad`, and the outer context holds after the inner one ends."""

    @nantrace.expect_nonfinite()
    def score(w: Tensor) -> Tensor:
        with nantrace.expect_nonfinite():
            pass
        return torch.log(w - 5)

    assert watched(Program(score, [1.0])).reports == []


def test_other_threads_are_not_meant() -> None:
    """The declaration holds for the code inside, not for what runs elsewhere at the same time."""
    reports: list[nantrace.Report] = []

    def elsewhere() -> None:
        reports.append(caught(lambda: watched(Program(lambda w: torch.log(w - 5), [1.0]))))

    with nantrace.expect_nonfinite():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    assert reports[0].origin.op == "log"


def test_without_a_watch_it_does_nothing() -> None:
    """The values are what they are."""
    with nantrace.expect_nonfinite():
        assert torch.log(torch.zeros(1)).isinf().all()


def test_an_exception_leaves_the_context() -> None:
    """What follows is watched as ever."""
    with pytest.raises(KeyError), nantrace.expect_nonfinite():
        raise KeyError

    assert caught(lambda: watched(Program(lambda w: torch.log(w - 5), [1.0]))).origin.op == "log"


def test_it_changes_nothing_for_a_clean_step() -> None:
    """A step without bad values is silent in it."""
    with nantrace.expect_nonfinite():
        assert stays_silent(lambda w: w * 2, [1.0]).contained == 0
    assert isinstance(Mlp(), nn.Module)
