"""Finite gradients, weights that are not finite after the step: which op of whose optimizer, in which line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nantrace

from ..builders import caught, kept, operand


class Recipe(torch.optim.Optimizer):
    """An optimizer that nobody at torch wrote; its rule is a function of parameter, gradient, state and group."""

    def __init__(self, params: Any, rule: Callable[..., None], **settings: Any) -> None:
        super().__init__(params, {"lr": 0.01, **settings})
        self.rule = rule

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.rule(p, p.grad, self.state[p], group)


def adaptive(p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    if not state:
        state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
    state["m"].mul_(0.9).add_(grad, alpha=0.1)
    state["v"].mul_(0.99).addcmul_(grad, grad, value=0.01)
    denominator = state["v"].sqrt() + group["eps"]
    p.add_(state["m"] / denominator, alpha=-group["lr"])


def layerwise(p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    trust = p.norm() / grad.norm()
    p.add_(grad * trust, alpha=-group["lr"])


def log_scaled(p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    if not state:
        state["scale"] = torch.ones_like(p)
    p.sub_(group["lr"] * state["scale"])
    state["scale"] = torch.log(grad.abs())  # read by the next step


class Weights(nn.Module):
    """One parameter whose gradient is what it is called with."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 1, bias=False, dtype=dtype)

    def forward(self, gradient: Tensor) -> Tensor:
        return (self.inner.weight * gradient.to(self.inner.weight.dtype)).sum()


def train(model: nn.Module, optimizer: Any, gradients: list[list[float]], **options: Any) -> None:
    """One step per gradient."""
    with nantrace.watch(model, **options):
        for gradient in gradients:
            model.zero_grad()
            model(torch.tensor(gradient)).backward()
            optimizer.step()


GOOD = [1.0, -2.0, 0.5]


def test_an_eps_that_vanishes_in_half_precision() -> None:
    """The origin is the division inside the step, and the cause is the eps that was added before it."""
    model = Weights(torch.float16)
    optimizer = Recipe(model.parameters(), adaptive, eps=1e-8)

    report = caught(lambda: train(model, optimizer, [[1.0, 0.0, 1.0]]))

    assert (report.phase, report.origin.op, report.origin.module, report.step) == ("optimizer", "div", "inner", 0)
    assert report.origin.source.expression == kept('state["m"] / denominator')
    assert report.origin.source.function == "adaptive"
    assert report.cause == "precision"
    assert report.reproduced is True
    assert operand(report, "other").value == 0
    facts = report.snapshot.optimizer
    assert (facts.type, facts.parameter, facts.settings["eps"]) == ("Recipe", "inner.weight", 1e-8)
    assert {one.name: one.value for one in facts.state} == {"grad": 0.0, "m": 0.0, "v": 0.0}


def test_a_foreach_op_is_named_by_the_tensors_at_the_failing_place() -> None:
    """Of the lists that a foreach op works on, those of the bad parameter; the eps is found in the settings."""

    class Foreach(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            params = self.param_groups[0]["params"]
            grads = [p.grad for p in params]
            roots = torch._foreach_add([g.abs() for g in grads], self.param_groups[0]["eps"])
            torch._foreach_addcdiv_(params, grads, roots, value=-0.01)

    model = nn.ModuleList([Weights(torch.float16), Weights(torch.float16)])
    model.forward = lambda gradient: model[0](torch.tensor(GOOD)) + model[1](gradient)
    optimizer = Foreach(model.parameters(), {"eps": 1e-8})

    report = caught(lambda: train(model, optimizer, [GOOD, [1.0, 0.0, 1.0]]))

    assert (report.step, report.origin.op, report.origin.module) == (1, "addcdiv", "1.inner")
    assert report.origin.source.code == "torch._foreach_addcdiv_(params, grads, roots, value=-0.01)"
    assert (operand(report, "tensor1").value, operand(report, "tensor2").value) == (0, 0)
    assert report.cause == "precision"


def test_a_division_by_a_zero_norm() -> None:
    """A trust ratio with the norm of a gradient of zeros below it, after healthy steps."""
    model = Weights()
    optimizer = Recipe(model.parameters(), layerwise)

    report = caught(lambda: train(model, optimizer, [GOOD, GOOD, [0.0, 0.0, 0.0]]))

    assert (report.step, report.phase, report.origin.op, report.cause) == (2, "optimizer", "div", "zero-division")
    assert report.origin.source.code == "trust = p.norm() / grad.norm()"
    assert report.reproduced is True


def test_a_square_that_overflows_in_half_precision() -> None:
    """The second moment overflows and the update divides infinity by infinity: the origin is the square."""

    def rule(p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        square = grad * grad
        p.add_(square / square.sqrt(), alpha=-group["lr"])

    model = Weights(torch.float16)

    report = caught(lambda: train(model, Recipe(model.parameters(), rule), [GOOD, [1.0, 600.0, 1.0]]))

    assert (report.step, report.phase, report.origin.op, report.cause) == (1, "optimizer", "mul", "overflow")
    assert report.origin.source.code == "square = grad * grad"


def test_state_that_was_spoiled_a_step_before_the_weights() -> None:
    """The origin is the op of the earlier step, whose line made the state; the report says in which step."""
    model = Weights()
    optimizer = Recipe(model.parameters(), log_scaled)

    report = caught(lambda: train(model, optimizer, [GOOD, [1.0, 0.0, 1.0], GOOD, GOOD]))

    assert (report.step, report.phase, report.origin.op, report.cause) == (2, "optimizer", "log", "log-domain")
    assert report.origin.source.code.startswith('state["scale"] = torch.log(grad.abs())')
    assert report.snapshot.optimizer.spoiled_in == 1
    assert report.snapshot.optimizer.spoiled_state == "scale"
    assert report.snapshot.symptom.kind == "parameter"
    assert "in step 1 already" in report.text()


def test_state_that_heals_is_no_anomaly() -> None:
    """A state that is infinite for a while and that no weight ever meets raises nothing."""

    def rule(p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        state["least"] = torch.log(grad.abs())
        p.add_(grad, alpha=-group["lr"])

    model = Weights()

    train(model, Recipe(model.parameters(), rule), [GOOD, [1.0, 0.0, 1.0], GOOD, GOOD])


class Bounded(torch.optim.AdamW):
    """torch's AdamW with a step of its own around it."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.div_(p.grad.abs().max())
        super().step()


def test_a_subclass_of_torchs_own() -> None:
    """The line of the subclass, although most of the step is torch's."""
    torch.optim.AdamW([nn.Parameter(torch.ones(1))])  # torch hooks a class when it is first used
    model = Weights()

    report = caught(lambda: train(model, Bounded(model.parameters()), [GOOD, [0.0, 0.0, 0.0]]))

    assert (report.step, report.phase, report.origin.op) == (1, "optimizer", "div")
    assert report.origin.source.code == "p.grad.div_(p.grad.abs().max())"
    assert report.cause == "zero-division"


def test_a_subclass_counts_each_step_once() -> None:
    """`super().step()` is the same step, also when torch has put its hooks into both classes."""
    torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    model = Weights()
    optimizer = Bounded(model.parameters())
    with nantrace.watch(model) as tracer:
        for _ in range(3):
            model.zero_grad()
            model(torch.tensor(GOOD)).backward()
            optimizer.step()
        steps = tracer.step

    assert steps == 3


class Centred(torch.optim.Optimizer):
    """Normalises the gradients and lets another optimizer step."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.grad.div_(p.grad.std())
        self.inner.step()


def test_gradients_that_an_optimizer_spoils_for_the_one_inside_it() -> None:
    """The inner optimizer is stopped before it writes the weights; the origin is the outer one's line."""
    model = Weights()
    optimizer = Centred(torch.optim.SGD(model.parameters(), lr=0.1))
    before: list[Tensor] = []

    def run() -> None:
        with nantrace.watch(model):
            for gradient in (GOOD, GOOD, [1.0, 1.0, 1.0]):
                model.zero_grad()
                model(torch.tensor(gradient)).backward()
                before[:] = [model.inner.weight.detach().clone()]
                optimizer.step()

    report = caught(run)

    assert (report.step, report.phase, report.origin.op, report.cause) == (2, "optimizer", "div", "zero-division")
    assert report.origin.source.code == "p.grad.div_(p.grad.std())"
    assert torch.equal(model.inner.weight, before[0])


class Lookahead(torch.optim.Optimizer):
    """Slow weights around another optimizer, by a rate that becomes too large."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.rate = inner, 1.0
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.inner.step()
        self.rate *= 1e20
        for p, slow in zip((p for group in self.param_groups for p in group["params"]), self.slow, strict=True):
            slow.add_((p - slow) * self.rate)
            p.copy_(slow)


def test_an_optimizer_around_another_one() -> None:
    """The wrapper's own attributes are put back before the second run, too."""
    model = Weights()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))

    report = caught(lambda: train(model, optimizer, [GOOD, GOOD, GOOD]))

    assert (report.phase, report.origin.op) == ("optimizer", "mul")
    assert report.origin.source.expression == kept("(p - slow) * self.rate")
    assert report.reproduced is True


class Surgery:
    """Projects gradients and holds an optimizer, without being one."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    def step(self) -> None:
        for group in self.inner.param_groups:
            for p in group["params"]:
                p.grad = p.grad / p.grad.norm()
        self.inner.step()


def test_gradient_surgery_outside_an_optimizer() -> None:
    """What a wrapper does to the gradients is found before the weights are touched, at its own line."""
    model = Weights()
    before = model.inner.weight.detach().clone()

    report = caught(lambda: train(model, Surgery(torch.optim.SGD(model.parameters(), lr=0.1)), [[0.0, 0.0, 0.0]]))

    assert (report.phase, report.origin.op, report.cause) == ("optimizer", "div", "zero-division")
    assert report.origin.source.code == "p.grad = p.grad / p.grad.norm()"
    assert torch.equal(before, model.inner.weight)


class Sharpness(torch.optim.Optimizer):
    """Steps along the gradient of the worst point nearby: `step(closure)` runs the model a second time."""

    def __init__(self, params: Any, inner: torch.optim.Optimizer) -> None:
        super().__init__(params, {"rho": 0.05})
        self.inner = inner

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        group = self.param_groups[0]
        norm = torch.stack([p.grad.norm() for p in group["params"]]).norm()
        steps = [p.grad * (group["rho"] / norm) for p in group["params"]]
        for p, e in zip(group["params"], steps, strict=True):
            p.add_(e)
        with torch.enable_grad():
            closure()
        for p, e in zip(group["params"], steps, strict=True):
            p.sub_(e)
        self.inner.step()


def test_a_step_with_a_closure_names_its_own_op() -> None:
    """Sharpness-aware minimisation at a gradient of zero: rho / 0."""
    model = Weights()
    optimizer = Sharpness(model.parameters(), torch.optim.SGD(model.parameters(), lr=0.1))

    def run() -> None:
        with nantrace.watch(model):
            for gradient in (GOOD, GOOD, [0.0, 0.0, 0.0]):

                def closure(gradient: list[float] = gradient) -> Tensor:
                    model.zero_grad()
                    loss = model(torch.tensor(gradient))
                    loss.backward()
                    return loss

                closure()
                optimizer.step(closure)

    report = caught(run)

    assert (report.phase, report.step) == ("optimizer", 2)
    assert report.origin.op in ("reciprocal", "div")
    assert report.origin.source.code == 'steps = [p.grad * (group["rho"] / norm) for p in group["params"]]'


def test_at_level_loss_the_op_is_found_from_where_the_step_ended() -> None:
    """Without copies the step is run from its end: the same op, and the report says that it is no exact replay."""
    model = Weights(torch.float16)
    optimizer = Recipe(model.parameters(), adaptive, eps=1e-8)

    report = caught(lambda: train(model, optimizer, [[1.0, 0.0, 1.0]], level="loss"))

    assert (report.phase, report.origin.op, report.origin.source.function) == ("optimizer", "div", "adaptive")
    assert report.reproduced is None
    assert "the weights from before the optimizer's step are gone" in report.snapshot.replay.reasons[0]


@pytest.mark.parametrize("level", ["module", "loss"])
def test_the_second_run_leaves_nothing_behind(level: str) -> None:
    """With "warn" weights, gradients, state and random numbers are those of a run without a watch."""

    def noisy(p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        group["calls"] = group.get("calls", 0) + 1
        grad.add_(torch.randn_like(grad), alpha=1e-3)
        adaptive(p, grad, state, group)
        p.div_(0 if group["calls"] == 3 else 1)

    found = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Weights()
        optimizer = Recipe(model.parameters(), noisy, eps=1e-8)
        tracer = nantrace.watch(model, on_anomaly=lambda report: None, level=level)
        if watched:
            tracer.start()
        for _ in range(5):
            model.zero_grad()
            model(torch.tensor(GOOD)).backward()
            optimizer.step()
        tracer.stop()
        state = optimizer.state[model.inner.weight]
        assert optimizer.param_groups[0]["calls"] == 5
        found.append([model.inner.weight.detach(), model.inner.weight.grad, *state.values(), torch.rand(3)])
        assert len(tracer.reports) == watched

    for one, other in zip(*found, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


def test_a_healthy_foreign_optimizer_is_bit_identical_and_silent() -> None:
    """Copies are taken, nothing else."""
    found = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Weights()
        optimizer = Recipe(model.parameters(), adaptive, eps=1e-8)
        tracer = nantrace.watch(model)
        if watched:
            tracer.start()
        for _ in range(5):
            model.zero_grad()
            model(torch.tensor(GOOD)).backward()
            optimizer.step()
        tracer.stop()
        found.append(model.inner.weight.detach())

    assert torch.equal(*found)


def test_a_hand_written_update_that_makes_the_value_itself() -> None:
    """Every operand is finite and the weights are not: the op and its line, at once and not a step later."""
    model = Weights(torch.float16)

    def run() -> None:
        with nantrace.watch(model):
            for rate in (0.1, 0.1, 6e4):
                model.zero_grad()
                model(torch.tensor([1.0, 8.0, 1.0])).backward()
                with torch.no_grad():
                    for p in model.parameters():
                        p.sub_(p.grad, alpha=rate)

    report = caught(run)

    assert (report.step, report.phase, report.origin.op, report.origin.module) == (2, "optimizer", "sub", "inner")
    assert report.origin.source.code == "p.sub_(p.grad, alpha=rate)"
    assert operand(report, "other").value == 8
    assert report.snapshot.symptom.where == (
        "the parameter inner.weight is no longer finite after a hand-written update: these weights are spoiled, "
        "go on from a checkpoint"
    )


def test_a_projection_onto_a_norm_of_zero() -> None:
    """Weights divided by their own norm in place, where it is 0."""
    model = Weights()
    with torch.no_grad():
        model.inner.weight.zero_()

    def run() -> None:
        with nantrace.watch(model):
            model(torch.zeros(3)).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p.div_(p.norm())

    report = caught(run)

    assert (report.phase, report.origin.op, report.cause) == ("optimizer", "div", "zero-division")


def test_a_large_foreign_optimizer_is_copied_only_at_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a size no copy is taken of a healthy step; the op is then found from where the step ended."""
    monkeypatch.setattr("nantrace.recording.updates.SMALL", 4)
    model = Weights()

    report = caught(lambda: train(model, Recipe(model.parameters(), projected), [GOOD, [1.0, 1.0, 1.0]]))

    assert (report.step, report.phase, report.origin.op, report.reproduced) == (1, "optimizer", "div", None)
    assert report.origin.source.code == "p.add_(grad / (grad - 1))"


def projected(p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    if bool((grad == 1).all()):
        p.add_(grad / (grad - 1))


@pytest.mark.filterwarnings("ignore")  # torch's own, about what it leaves out of the compiled step
def test_a_compiled_step_works_and_is_not_observed() -> None:
    """`torch.compile(optimizer.step)` traces the hooks away: the step does what it does without a watch."""
    found = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Weights()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = torch.compile(optimizer.step, backend="eager")
        tracer = nantrace.watch(model)
        if watched:
            tracer.start()
        for _ in range(3):
            model.zero_grad()
            model(torch.tensor(GOOD)).backward()
            step()
        tracer.stop()
        found.append(model.inner.weight.detach())

    assert torch.equal(*found)
