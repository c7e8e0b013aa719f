"""What happens at an anomaly: raise, warn, or a function of the user's own."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nantrace

from ..builders import Mlp, Program, caught, sgd

BAD = 2


def logs(w: Tensor, x: Tensor) -> Tensor:
    return torch.log(w * x).square().sum()


def run_with_one_bad_step(
    model: nn.Module, steps: int = 5, bad: tuple[int, ...] = (BAD,), **options: object
) -> nantrace.Tracer:
    """Train a `Program(logs)`; in the bad steps the batch is 0."""
    optimizer = sgd(model, 0.01)
    with nantrace.watch(model, **options) as tracer:
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.tensor(0.0 if step in bad else 1.0)).backward()
            optimizer.step()
    return tracer


def test_raise_is_the_default() -> None:
    """The anomaly is an exception that carries the report, and `str()` of it is the report's text."""
    with pytest.raises(nantrace.NumericalAnomaly) as raised:
        run_with_one_bad_step(Program(logs, [1.0, 2.0]))

    assert raised.value.report.step == BAD
    assert str(raised.value).strip() == raised.value.report.text().strip()
    assert isinstance(raised.value, FloatingPointError)
    assert isinstance(raised.value, nantrace.NantraceError)


def test_report_of_an_anomaly() -> None:
    """`report_of` works for the anomaly itself as well."""
    with pytest.raises(nantrace.NumericalAnomaly) as raised:
        run_with_one_bad_step(Program(logs, [1.0, 2.0]))

    assert nantrace.report_of(raised.value) is raised.value.report


def test_the_anomaly_is_raised_at_the_users_line() -> None:
    """The traceback goes through the line of the user's that was about to have consequences."""
    with pytest.raises(nantrace.NumericalAnomaly) as raised:
        run_with_one_bad_step(Program(logs, [1.0, 2.0]))

    lines = [str(entry.statement) for entry in raised.traceback if Path(str(entry.path)).name == Path(__file__).name]
    assert any("optimizer.step()" in line for line in lines)


def test_warn_lets_the_run_go_on_as_it_would_have() -> None:
    """With "warn" every weight ends as it does without a watch: here, spoiled."""
    watched, plain = Program(logs, [1.0, 2.0]), Program(logs, [1.0, 2.0])
    with pytest.warns(nantrace.NumericalAnomalyWarning) as seen:
        tracer = run_with_one_bad_step(watched, on_anomaly="warn")
    optimizer = sgd(plain, 0.01)
    for step in range(5):
        optimizer.zero_grad()
        plain(torch.tensor(0.0 if step == BAD else 1.0)).backward()
        optimizer.step()

    assert len(seen) == 1
    assert "log" in str(seen[0].message)
    assert len(tracer.reports) == 1
    assert torch.equal(torch.isnan(watched.w), torch.isnan(plain.w))
    assert bool(torch.isnan(watched.w).any())


def test_a_warning_names_the_users_file() -> None:
    """The warning is shown at a line outside nantrace and torch."""
    with pytest.warns(nantrace.NumericalAnomalyWarning) as seen:
        run_with_one_bad_step(Program(logs, [1.0, 2.0]), on_anomaly="warn")

    assert Path(seen[0].filename).name == Path(__file__).name


def test_what_follows_an_anomaly_is_counted_not_traced() -> None:
    """The steps right after a poisoned one are the same anomaly: one warning, the rest are counted."""
    with pytest.warns(nantrace.NumericalAnomalyWarning) as seen:
        tracer = run_with_one_bad_step(Program(logs, [1.0, 2.0]), steps=8, on_anomaly="warn")

    assert len(seen) == 1
    assert tracer.repeated >= 5


def test_an_anomaly_long_after_another_is_a_new_one() -> None:
    """After healthy steps the next anomaly is traced again."""
    model = Mlp()
    optimizer = sgd(model, 0.01)
    found: list[nantrace.Report] = []
    with nantrace.watch(model, on_anomaly=found.append) as tracer:
        for step in range(8):
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.zero_grad()
            (model(torch.randn(5, 4)).square().sum() * (float("nan") if step in (1, 6) else 1.0)).backward()
            optimizer.step()
            if step in (1, 6):
                with torch.no_grad():
                    for p, value in zip(model.parameters(), before, strict=True):
                        p.copy_(value)

    assert [report.step for report in found] == [1, 6]
    assert found == tracer.reports


def test_a_function_is_given_the_report() -> None:
    """A function is called with the report, and the run goes on."""
    found: list[nantrace.Report] = []
    tracer = run_with_one_bad_step(Program(logs, [1.0, 2.0]), on_anomaly=found.append)

    assert [report.step for report in found] == [BAD]
    assert found == tracer.reports
    assert found[0].origin.op == "log"


def test_what_the_function_raises_reaches_the_user() -> None:
    """A function may end the run by an exception of its own, before the weights are touched."""

    class Stop(Exception):
        pass

    def stop(report: nantrace.Report) -> None:
        raise Stop(report.origin.op)

    model = Program(logs, [1.0, 2.0])
    with pytest.raises(Stop, match="log"):
        run_with_one_bad_step(model, on_anomaly=stop)

    assert bool(torch.isfinite(model.w).all())


def test_the_same_watch_raises_twice_in_a_row() -> None:
    """With "raise", an anomaly right after a caught one is raised again."""
    model = Mlp()
    optimizer = sgd(model)
    raised = 0
    with nantrace.watch(model) as tracer:
        for _ in range(2):
            optimizer.zero_grad()
            (model(torch.randn(5, 4)).sum() * float("inf")).backward()
            try:
                optimizer.step()
            except nantrace.NumericalAnomaly:
                raised += 1
        optimizer.zero_grad()

    assert raised == 2
    assert len(tracer.reports) == 2


def test_training_goes_on_after_a_caught_anomaly() -> None:
    """A user may catch the anomaly, drop the gradients and go on: later steps are clean and counted."""
    model = Mlp()
    optimizer = sgd(model)
    with nantrace.watch(model) as tracer:
        for step in range(5):
            optimizer.zero_grad()
            (model(torch.randn(5, 4)).square().mean() * (float("nan") if step == 1 else 1.0)).backward()
            try:
                optimizer.step()
            except nantrace.NumericalAnomaly:
                optimizer.zero_grad()

    assert [report.step for report in tracer.reports] == [1]
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_replay_false_still_raises() -> None:
    """Without a replay the alarm is the same, and the report says what is not known."""
    report = caught(lambda: run_with_one_bad_step(Program(logs, [1.0, 2.0]), replay=False))

    assert report.reproduced is None
    assert "replay is switched off" in report.snapshot.replay.reasons[0]
    assert report.origin.module == ""


def test_level_loss_still_finds_the_op() -> None:
    """At level "loss" no statistics are kept, and the replay still names the op."""
    report = caught(lambda: run_with_one_bad_step(Program(logs, [1.0, 2.0]), level="loss"))

    assert report.origin.op == "log"
    assert len(report.history) == 0


def test_a_fault_of_the_tracer_does_not_cost_the_alarm(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where tracing itself fails, the anomaly is still raised, with what is known."""

    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("the walk fell over")

    monkeypatch.setattr("nantrace.tracer.trace", broken)
    report = caught(lambda: run_with_one_bad_step(Program(logs, [1.0, 2.0])))

    assert report.step == BAD
    assert "the walk fell over" in report.snapshot.replay.reasons[0]
    assert "tracing the anomaly failed" in caplog.text
    caplog.clear()


def test_no_warning_without_an_anomaly() -> None:
    """A healthy run warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracer = run_with_one_bad_step(Program(logs, [1.0, 2.0]), bad=(), on_anomaly="warn")

    assert tracer.reports == []
    assert tracer.repeated == 0
