"""The alarm: raised where a non-finite value is about to have consequences, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import nantrace

from ..builders import Mlp, Program, caught, sgd

NAN, INF = math.nan, math.inf


def forward_backward(model: nn.Module, scale: float = 1.0) -> Tensor:
    """A loss with its gradients; `scale` NaN or inf spoils both."""
    loss = model(torch.randn(5, 4)).square().mean() * scale
    loss.backward()
    return loss


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(before: list[Tensor], after: list[Tensor]) -> bool:
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def optimizer_state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value.clone() for value in values if isinstance(value, Tensor)]


# Before the weights are poisoned


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), id="sgd"),
        pytest.param(lambda p: torch.optim.Adam(p, 1e-2), id="adam"),
        pytest.param(lambda p: torch.optim.AdamW(p, 1e-2, foreach=False), id="adamw"),
        pytest.param(lambda p: torch.optim.Adam(p, 1e-2, fused=True), id="fused-adam"),
        pytest.param(lambda p: torch.optim.Adagrad(p, 1e-2), id="adagrad"),
    ],
)
def test_weights_and_optimizer_state_are_clean_when_it_raises(make: Callable[..., torch.optim.Optimizer]) -> None:
    """The optimizer is stopped before it has touched anything."""
    model = Mlp()
    optimizer = make(model.parameters())
    before: list[Tensor] = []

    def run() -> None:
        nonlocal before
        with nantrace.watch(model):
            for step in range(4):
                optimizer.zero_grad()
                forward_backward(model, NAN if step == 3 else 1.0)
                before = [*weights(model), *optimizer_state(optimizer)]
                optimizer.step()

    report = caught(run)

    assert report.step == 3
    assert same(before, [*weights(model), *optimizer_state(optimizer)])
    assert all(bool(torch.isfinite(tensor).all()) for tensor in before)


def test_gradients_alone_are_enough() -> None:
    """A finite loss with a NaN gradient raises at the optimizer's step."""
    report = caught(lambda: one_step(Program(lambda w: torch.sqrt(w - w).sum(), [1.0, 2.0])))

    assert report.phase == "backward"
    assert report.snapshot.symptom.kind == "gradient"
    assert report.snapshot.symptom.name == "w"


def one_step(model: nn.Module, **options: object) -> None:
    optimizer = sgd(model)
    with nantrace.watch(model, **options):
        model().backward()
        optimizer.step()


def test_an_infinite_loss_raises() -> None:
    """An infinity in the loss is as bad as a NaN."""
    report = caught(lambda: one_step(Program(lambda w: torch.exp(w * 1000).sum(), [1.0])))

    assert report.origin.op == "exp"
    assert report.snapshot.symptom.value == INF


def test_finite_gradients_with_squares_that_overflow_are_no_anomaly() -> None:
    """A gradient norm that overflows is a tripwire, not a verdict."""
    model = Program(lambda w: (w * 1e30).sum(), [1.0, 2.0])
    optimizer = sgd(model, lr=0.0)
    with nantrace.watch(model) as tracer:
        model().backward()
        optimizer.step()

    assert tracer.reports == []


def test_gradients_of_another_model_are_not_ours() -> None:
    """An optimizer that holds no watched parameter is let through."""
    watched, other = Mlp(), Mlp()
    with nantrace.watch(watched) as tracer:
        forward_backward(other, NAN)
        sgd(other).step()

    assert tracer.reports == []


def test_a_bad_loss_of_another_model_does_not_accuse_this_one() -> None:
    """A NaN loss that no watched parameter has a part in is nothing to a later healthy step."""
    watched, other = Mlp(), Mlp()
    with nantrace.watch(watched) as tracer:
        forward_backward(other, NAN)
        optimizer = sgd(watched)
        forward_backward(watched)
        optimizer.step()

    assert tracer.reports == []


# Dropped gradients are no anomaly


def drop_by_zero_grad(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()


def drop_by_zeroing(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=False)


def drop_by_model(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.zero_grad()


DROPS = [drop_by_zero_grad, drop_by_zeroing, drop_by_model]


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("scale", [NAN, INF])
def test_a_step_that_the_user_skips_on_a_bad_norm_is_silent(drop: Callable[..., None], scale: float) -> None:
    """A NaN loss whose gradients are dropped has no consequences; it is counted as contained."""
    model = Mlp()
    optimizer = sgd(model)
    with nantrace.watch(model) as tracer:
        for step in range(4):
            forward_backward(model, scale if step == 1 else 1.0)
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if torch.isfinite(norm):
                optimizer.step()
            drop(model, optimizer)

    assert tracer.reports == []
    assert tracer.contained >= 1


@pytest.mark.parametrize("drop", DROPS)
def test_nan_gradients_that_the_user_skips_are_silent(drop: Callable[..., None]) -> None:
    """NaN gradients of a finite loss that are dropped have no consequences either."""
    model = Program(lambda w, x: torch.sqrt(w.square().sum() * x), [1.0, 2.0])
    optimizer = sgd(model)
    with nantrace.watch(model) as tracer:
        for step in range(4):
            model(torch.tensor(0.0 if step == 1 else 1.0)).backward()
            if all(bool(torch.isfinite(p.grad).all()) for p in model.parameters()):
                optimizer.step()
            drop(model, optimizer)

    assert tracer.reports == []


def test_a_skipped_loss_before_backward_is_silent() -> None:
    """A NaN loss that `backward` is never called on is the user's to drop."""
    model = Mlp()
    optimizer = sgd(model)
    with nantrace.watch(model) as tracer:
        for step in range(3):
            loss = model(torch.randn(5, 4)).square().mean() * (NAN if step == 1 else 1.0)
            if torch.isfinite(loss):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    assert tracer.reports == []


def test_a_bad_loss_with_good_gradients_is_not_dropped() -> None:
    """A NaN loss is raised even where every gradient is finite: the step would go on with a meaningless loss."""
    report = caught(lambda: one_step(Program(lambda w: (w * torch.log(w.detach() - 5)).sum() * 0 + w.sum(), [1.0])))

    assert report.snapshot.symptom.kind == "loss"
    assert report.origin.op == "log"


def test_the_end_of_the_block_with_a_pending_loss_raises() -> None:
    """Gradients of a NaN loss that still wait for their update when the block ends are an anomaly."""
    model = Mlp()

    def run() -> None:
        with nantrace.watch(model):
            forward_backward(model, NAN)

    report = caught(run)

    assert "the watched block ended" in report.snapshot.symptom.where


def test_the_end_of_the_block_after_dropped_gradients_is_silent() -> None:
    """Where they have been dropped, the end of the block is silent."""
    model = Mlp()
    with nantrace.watch(model) as tracer:
        forward_backward(model, NAN)
        model.zero_grad()

    assert tracer.reports == []
    assert tracer.contained >= 1


def test_an_exception_of_the_user_is_not_hidden_by_a_pending_loss() -> None:
    """A block that is left by an exception of the user's own leaves by that one."""
    model = Mlp()
    with pytest.raises(ZeroDivisionError), nantrace.watch(model):
        forward_backward(model, NAN)
        1 / 0


def test_the_step_of_a_watch_around_one_step_raises() -> None:
    """A watch around a single step sees the same as one around the loop."""
    model = Mlp()
    optimizer = sgd(model)

    def run() -> None:
        for step in range(3):
            with nantrace.watch(model):
                optimizer.zero_grad()
                forward_backward(model, NAN if step == 2 else 1.0)
                optimizer.step()

    report = caught(run)

    assert report.step == 0
    assert report.snapshot.symptom.kind == "loss"


# Calls without gradients


def test_a_nan_in_a_result_without_gradients_raises() -> None:
    """A prediction that is NaN is itself the consequence."""
    model = Program(lambda w, x: torch.log(w * x), [1.0])

    def run() -> None:
        with nantrace.watch(model), torch.no_grad():
            model(torch.tensor([-1.0]))

    report = caught(run)

    assert (report.origin.op, report.phase) == ("log", "forward")
    assert report.snapshot.symptom.kind == "result"


def test_a_nan_under_inference_mode_raises() -> None:
    """Inference mode is no different."""
    model = Program(lambda w, x: torch.log(w * x), [1.0])

    def run() -> None:
        with nantrace.watch(model), torch.inference_mode():
            model(torch.tensor([-1.0]))

    assert caught(run).origin.op == "log"


def test_an_infinity_in_a_result_without_gradients_is_only_counted() -> None:
    """Scores of -inf and the like are common in results: counted, not raised."""
    model = Program(lambda w, x: torch.log(w * x), [1.0])
    with nantrace.watch(model) as tracer, torch.no_grad():
        model(torch.tensor([0.0]))

    assert tracer.reports == []
    assert tracer.contained == 1


def test_a_nan_module_output_without_consequences_is_counted() -> None:
    """A NaN that a module makes and that nothing uses is contained."""
    model = Mlp(fault=lambda hidden: torch.where(torch.isnan(torch.log(hidden - 9)), hidden, hidden))
    optimizer = sgd(model)
    with nantrace.watch(model) as tracer:
        forward_backward(model)
        optimizer.step()

    assert tracer.reports == []


def strict_model() -> nn.Module:
    """A model that returns its loss and, beside it, an output that is NaN and that nothing uses."""
    return Program(lambda w: (w.square().sum(), torch.log(w.detach() - 5)), [1.0, 2.0])


def test_an_unused_nan_output_is_contained() -> None:
    """By default a NaN output that has no consequences is counted."""
    model = strict_model()
    optimizer = sgd(model)
    with nantrace.watch(model) as tracer:
        model()[0].backward()
        optimizer.step()

    assert tracer.reports == []
    assert tracer.contained == 1


def test_strict_raises_on_an_unused_nan_output() -> None:
    """With `strict=True` it raises."""
    model = strict_model()
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model, strict=True):
            model()[0].backward()
            optimizer.step()

    assert caught(run).origin.op == "log"


# Updates written by hand


def update_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad


def update_by_data(model: nn.Module) -> None:
    for p in model.parameters():
        p.data.add_(p.grad, alpha=-0.1)


def update_by_copy(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p - 0.1 * p.grad)


def update_of_a_view(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.view(-1).sub_(0.1 * p.grad.view(-1))


def update_by_foreach(model: nn.Module) -> None:
    with torch.no_grad():
        torch._foreach_add_(list(model.parameters()), [p.grad for p in model.parameters()], alpha=-0.1)


UPDATES = [update_in_place, update_by_data, update_by_copy, update_of_a_view, update_by_foreach]


@pytest.mark.parametrize("update", UPDATES)
def test_a_hand_written_update_is_refused_before_it_writes(update: Callable[[nn.Module], None]) -> None:
    """An update without an optimizer is stopped too, and the weights stay as they were."""
    model = Program(lambda w, x: torch.sqrt(w.square().sum() * x), [1.0, 2.0])
    before: list[Tensor] = []

    def run() -> None:
        nonlocal before
        with nantrace.watch(model):
            for step in range(4):
                model.zero_grad()
                model(torch.tensor(0.0 if step == 3 else 1.0)).backward()
                before = weights(model)
                update(model)

    report = caught(run)

    assert report.step == 3
    assert (report.origin.op, report.phase) == ("sqrt", "backward")
    assert same(before, weights(model))


@pytest.mark.parametrize("update", UPDATES)
def test_a_hand_written_update_with_a_bad_loss_is_refused(update: Callable[[nn.Module], None]) -> None:
    """The same for a loss that is not finite."""
    model = Mlp()
    before: list[Tensor] = []

    def run() -> None:
        nonlocal before
        with nantrace.watch(model):
            for step in range(3):
                model.zero_grad()
                forward_backward(model, NAN if step == 2 else 1.0)
                before = weights(model)
                update(model)

    assert caught(run).step == 2
    assert same(before, weights(model))


def test_a_hand_written_update_of_a_parameter_that_was_bad_before_is_refused() -> None:
    """A loss made bad by the weights themselves raises in its own step, though what is written is bad already."""
    model = Program(lambda w, x: (w * x).sum(), [1.0, NAN])

    def run() -> None:
        with nantrace.watch(model):
            for _ in range(3):
                model.zero_grad()
                model(torch.tensor(1.0)).backward()
                update_in_place(model)

    report = caught(run)

    assert (report.step, report.phase, report.cause) == (0, "parameters", "bad-parameter")


def test_a_hand_written_update_that_divides_by_zero_is_named_in_the_optimizer() -> None:
    """A value that the update itself makes is born in phase "optimizer", on the line of the update."""
    model = Program(lambda w: (w * 0).sum(), [1.0, 2.0])

    def run() -> None:
        with nantrace.watch(model):
            model().backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad / p.grad.norm()

    report = caught(run)

    assert (report.origin.op, report.phase) == ("div", "optimizer")
    assert "p.grad / p.grad.norm()" in report.origin.source.code
    assert report.cause == "zero-division"


def test_an_update_inside_backward_is_refused() -> None:
    """An optimizer that steps in a post-accumulate hook raises out of `backward`."""
    model = Program(lambda w: torch.sqrt(w - w).sum(), [1.0, 2.0])
    optimizer = sgd(model)
    model.w.register_post_accumulate_grad_hook(lambda p: optimizer.step())
    before = weights(model)

    def run() -> None:
        with nantrace.watch(model):
            model().backward()

    report = caught(run)

    assert (report.origin.op, report.phase) == ("sqrt", "backward")
    assert same(before, weights(model))


# Optimizers that make it themselves


def test_a_parameter_that_the_optimizer_spoils_is_found_after_the_step() -> None:
    """Finite gradients and a parameter that is not finite after the update: phase "optimizer"."""
    model = Mlp()
    optimizer = sgd(model, lr=1e38)

    def run() -> None:
        with nantrace.watch(model):
            forward_backward(model, 1e4)
            optimizer.step()

    report = caught(run)

    assert report.phase == "optimizer"
    assert report.origin.op == "sgd"
    assert report.origin.module == "first"
    assert "optimizer.step()" in report.origin.source.code
    assert report.snapshot.symptom.kind == "parameter"


def test_adams_eps_that_vanishes_in_half_precision() -> None:
    """Adam's eps of 1e-8 is 0 in float16: the update divides by zero."""
    model = Program(lambda w: (w * 1e-5).sum(), torch.ones(3, dtype=torch.float16))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=False)

    def run() -> None:
        with nantrace.watch(model):
            model().backward()
            optimizer.step()

    report = caught(run)

    assert (report.phase, report.origin.op, report.cause) == ("optimizer", "adam", "precision")
    assert report.snapshot.optimizer.settings["eps"] == 1e-8


def test_lbfgs_with_a_closure_is_watched() -> None:
    """An optimizer that runs the model in a closure: its calls are recorded, and the op is named."""
    model = Program(lambda w, x: torch.log(w * x).square().sum(), [1.0, 2.0])
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = model(torch.tensor(-1.0 if calls == 3 else 1.0))
        loss.backward()
        return loss

    def run() -> None:
        with nantrace.watch(model):
            for _ in range(3):
                optimizer.step(closure)

    report = caught(run)

    assert (report.origin.op, report.origin.module) == ("log", "")


def test_lbfgs_that_converges_is_silent() -> None:
    """A healthy run with a closure raises nothing."""
    model = Mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    x = torch.randn(5, 4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    with nantrace.watch(model) as tracer:
        for _ in range(3):
            optimizer.step(closure)
        steps = tracer.step

    assert tracer.reports == []
    assert steps == 3


def test_exponential_moving_averages_are_no_update() -> None:
    """Weights copied and averaged between the steps are not taken for an update of the watched ones."""
    model = Mlp()
    optimizer = sgd(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    with nantrace.watch(model) as tracer:
        for _ in range(4):
            optimizer.zero_grad()
            forward_backward(model)
            optimizer.step()
            average.update_parameters(model)
        steps = tracer.step

    assert tracer.reports == []
    assert steps == 4


def test_a_placeholder_in_a_result_without_gradients_is_contained() -> None:
    """A NaN that the module wrote on purpose into its result is counted, not raised."""

    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x > 0, self.fc(x), torch.tensor(float("nan")))

    model = Sparse()
    with nantrace.watch(model) as tracer, torch.no_grad():
        model(torch.tensor([[1.0, -1.0, 1.0, 1.0]]))

    assert tracer.reports == []
    assert tracer.contained > 0


def exchange(model: nn.Module) -> None:
    """An update that gives every parameter a new storage."""
    for parameter in model.parameters():
        parameter.data = parameter.data - 0.1 * parameter.grad


def root_of_zero(model: nn.Module, step: int) -> Tensor:
    """A loss whose gradient becomes infinite in step 2."""
    return torch.sqrt(model(torch.randn(5, 4)).square().sum() * (step != 2))


def test_an_update_that_exchanges_the_weights_is_undone() -> None:
    """`p.data = p.data - lr * p.grad` with a bad gradient: the origin is named and the old weights are back."""
    model = nn.Linear(4, 2)
    before: list[Tensor] = []

    def run() -> None:
        with nantrace.watch(model):
            for step in range(5):
                model.zero_grad()
                root_of_zero(model, step).backward()
                before[:] = [parameter.detach().clone() for parameter in model.parameters()]
                exchange(model)

    with pytest.raises(nantrace.NumericalAnomaly) as raised:
        run()

    report = raised.value.report
    assert (report.step, report.phase, report.origin.op, report.reproduced) == (2, "backward", "sqrt", True)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_an_update_that_exchanges_the_weights_stands_where_the_run_goes_on() -> None:
    """In "warn" mode the weights are what they would have been without a watch."""
    model = nn.Linear(4, 2)

    def run() -> None:
        with nantrace.watch(model, on_anomaly="warn"):
            for step in range(4):
                model.zero_grad()
                root_of_zero(model, step).backward()
                exchange(model)

    with pytest.warns(nantrace.NumericalAnomalyWarning):
        run()

    assert all(bool(parameter.isnan().any()) for parameter in model.parameters())
