"""`on_anomaly="skip"`: after a bad batch everything is as in a run that never saw it, bit for bit."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import nantrace

from ..builders import Mlp, sgd

pytestmark = pytest.mark.filterwarnings("ignore::nantrace.NumericalAnomalyWarning")

BAD = 3
STEPS = 7

Step = Callable[[Tensor], Any]
Parts = dict[str, Any]  # what a training run is made of, by name: everything with a state is compared


def batches(bad: tuple[int, ...] = (BAD,)) -> Iterator[tuple[int, Tensor]]:
    """The same batches in every run; a bad one holds a NaN."""
    generator = torch.Generator().manual_seed(7)
    for number in range(STEPS):
        x = torch.randn(5, 4, generator=generator)
        yield number, torch.full_like(x, float("nan")) if number in bad else x


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every number and tensor of nested state, by path."""
    if hasattr(value, "state_dict"):
        value = value.state_dict()
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in leaves(inner, f"{path}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, inner in enumerate(value) for k, v in leaves(inner, f"{path}.{i}").items()}
    return {path: value.detach().clone() if isinstance(value, Tensor) else value}


def assert_same(parts: Parts, others: Parts) -> None:
    """Both runs ended in the same state, bit for bit."""
    left, right = leaves(parts), leaves(others)
    assert left.keys() == right.keys()
    different = [
        path
        for path, value in left.items()
        if not (torch.equal(value, right[path]) if isinstance(value, Tensor) else value == right[path])
    ]
    assert different == []


def check(build: Callable[[], tuple[Parts, Step]], bad: tuple[int, ...] = (BAD,), **options: Any) -> nantrace.Tracer:
    """Train twice: with bad batches under `skip`, and without a watch on the good batches alone."""
    torch.manual_seed(1)
    parts, step = build()
    watched = [part for part in parts.values() if isinstance(part, nn.Module)]
    with nantrace.watch(*watched, on_anomaly="skip", **options) as tracer:
        for _, x in batches(bad):
            step(x)
    torch.manual_seed(1)
    clean, clean_step = build()
    for number, x in batches(bad):
        if number not in bad:
            clean_step(x)
    assert_same(parts, clean)
    assert [report.step for report in tracer.skipped] == list(bad)
    return tracer


def plain(optimizer: torch.optim.Optimizer, model: nn.Module) -> Step:
    """The usual training step."""

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step


# Every optimizer of torch

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p, **o: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, **o),
    "Adadelta": torch.optim.Adadelta,
    "Adagrad": torch.optim.Adagrad,
    "Adam": lambda p, **o: torch.optim.Adam(p, amsgrad=True, **o),
    "AdamW": torch.optim.AdamW,
    "Adamax": torch.optim.Adamax,
    "ASGD": torch.optim.ASGD,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "RMSprop": lambda p, **o: torch.optim.RMSprop(p, momentum=0.9, centered=True, **o),
    "Rprop": torch.optim.Rprop,
}
VARIANTS: list[tuple[str, dict[str, bool]]] = [
    *((name, {"foreach": flag}) for name in OPTIMIZERS for flag in (True, False)),
    *((name, {"fused": True}) for name in ("SGD", "Adam", "AdamW", "Adagrad")),
]


@pytest.mark.parametrize("level", ["loss", "op"])
def test_at_every_level(level: str) -> None:
    """How much is observed does not change what a skip leaves behind."""

    def build() -> tuple[Parts, Step]:
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 2))
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        return {"model": model, "optimizer": optimizer}, plain(optimizer, model)

    check(build, level=level)


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=lambda value: str(value).strip("{}").replace("'", ""))
@pytest.mark.parametrize("bad", [(0,), (BAD,), (2, 3)], ids=["first", "one", "two"])
def test_every_optimizer_ends_as_if_the_batch_had_not_been_there(
    name: str, variant: dict[str, bool], bad: tuple[int, ...]
) -> None:
    """Weights and state, with lazily made state at the first step as well, foreach and fused."""

    def build() -> tuple[Parts, Step]:
        model = Mlp()
        optimizer = OPTIMIZERS[name](model.parameters(), **variant)
        return {"model": model, "optimizer": optimizer}, plain(optimizer, model)

    check(build, bad)


@pytest.mark.parametrize(
    "make",
    [torch.optim.Adafactor, lambda p: torch.optim.Muon(p, lr=0.01)],
    ids=["Adafactor", "Muon"],
)
def test_optimizers_of_matrices(make: Callable[..., torch.optim.Optimizer]) -> None:
    """The optimizers that take no variants."""

    def build() -> tuple[Parts, Step]:
        model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))
        optimizer = make(model.parameters())
        return {"model": model, "optimizer": optimizer}, plain(optimizer, model)

    check(build)


def test_sparse_gradients() -> None:
    """SparseAdam over an embedding with sparse gradients."""

    def build() -> tuple[Parts, Step]:
        model = nn.EmbeddingBag(9, 3, sparse=True)
        optimizer = torch.optim.SparseAdam(model.parameters())

        def step(x: Tensor) -> None:
            optimizer.zero_grad()
            (model(torch.arange(6).reshape(2, 3)) * x.sum()).square().sum().backward()
            optimizer.step()

        return {"model": model, "optimizer": optimizer}, step

    check(build)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_a_closure_is_undone_in_the_middle_of_its_step(search: str | None) -> None:
    """LBFGS updates the weights several times in a step: all of it goes when one of its evaluations is bad."""

    def build() -> tuple[Parts, Step]:
        model = Mlp()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4, history_size=3, line_search_fn=search)

        def step(x: Tensor) -> None:
            calls = 0

            def closure() -> Tensor:
                nonlocal calls
                calls += 1
                optimizer.zero_grad()
                bad = calls > 2 and bool(x.isnan().any())
                loss = (model(x.nan_to_num(0.5)).square().mean() + 0.1) * (float("nan") if bad else 1.0)
                loss.backward()
                return loss

            loss = optimizer.step(closure)
            assert isinstance(loss, Tensor)  # as it would have been without a watch

        return {"model": model, "optimizer": optimizer}, step

    check(build)


def test_a_closure_given_to_an_ordinary_optimizer() -> None:
    """`optimizer.step(closure)` of Adam."""

    def build() -> tuple[Parts, Step]:
        model = Mlp()
        optimizer = torch.optim.Adam(model.parameters())

        def step(x: Tensor) -> None:
            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                return loss

            optimizer.step(closure)

        return {"model": model, "optimizer": optimizer}, step

    check(build)


# Schedulers

PER_STEP: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=20),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.LinearLR(o, 0.3)]
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
}


@pytest.mark.parametrize("name", PER_STEP)
@pytest.mark.parametrize("bad", [(0,), (BAD,), (4, 5)], ids=["first", "one", "two"])
def test_a_scheduler_that_steps_after_every_update_does_not_step(name: str, bad: tuple[int, ...]) -> None:
    """The learning rate is where it would be without the batch."""

    def build() -> tuple[Parts, Step]:
        model = Mlp()
        optimizer = sgd(model, momentum=0.9)
        scheduler = PER_STEP[name](optimizer)
        train = plain(optimizer, model)

        def step(x: Tensor) -> None:
            train(x)
            scheduler.step()

        return {"model": model, "optimizer": optimizer, "scheduler": scheduler}, step

    check(build, bad)


@pytest.mark.parametrize("bad", [(0,), (2,), (1, 2), (4, 5)], ids=str)
def test_a_scheduler_that_steps_once_an_epoch_keeps_its_pace(bad: tuple[int, ...]) -> None:
    """An epoch's last batch may be the skipped one: the epoch still ends."""
    model = Mlp()
    optimizer = sgd(model)
    scheduler = lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train = plain(optimizer, model)
    with nantrace.watch(model, on_anomaly="skip") as tracer:
        for number in range(9):
            train(torch.full((5, 4), float("nan") if number in bad else 1.0))
            if number % 3 == 2:
                scheduler.step()

    assert len(tracer.skipped) == len(bad)
    assert scheduler.get_last_lr() == [0.1 * 0.5**3]


# Several optimizers


@pytest.mark.parametrize("second_bad", [False, True], ids=["the first is bad", "the second is bad"])
def test_two_optimizers_of_one_backward(second_bad: bool) -> None:
    """Both are refused; the first one is undone where only the gradients of the second are bad."""

    def build() -> tuple[Parts, Step]:
        model = Mlp()
        first = torch.optim.Adam(model.first.parameters())
        second = torch.optim.SGD(model.second.parameters(), lr=0.1, momentum=0.9)
        schedule = lr_scheduler.ExponentialLR(first, 0.9)

        def step(x: Tensor) -> None:
            first.zero_grad()
            second.zero_grad()
            bad = bool(x.isnan().any())
            model(x.nan_to_num(1.0)).square().mean().backward()
            if bad:
                (model.second if second_bad else model.first).weight.grad[0, 0] = float("inf")
            first.step()
            schedule.step()
            second.step()

        return {"model": model, "first": first, "second": second, "schedule": schedule}, step

    check(build, (1,))  # before it is known that both belong to one backward
    check(build, (0,))
    check(build, (4,))


@pytest.mark.parametrize("at_fault", ["discriminator", "generator"])
@pytest.mark.parametrize("bad", [(0,), (BAD,), (2, 3)], ids=["first", "one", "two"])
def test_a_gan_skips_both_updates(at_fault: str, bad: tuple[int, ...]) -> None:
    """The discriminator has stepped long before the generator's backward: its update is undone."""

    def build() -> tuple[Parts, Step]:
        generator, discriminator = Mlp(), nn.Linear(3, 1)
        of_g, of_d = torch.optim.Adam(generator.parameters()), torch.optim.RMSprop(discriminator.parameters())

        def step(x: Tensor) -> None:
            factor = float("nan") if bool(x.isnan().any()) else 1.0
            x = x.nan_to_num(1.0)
            of_d.zero_grad()
            wrong = factor if at_fault == "discriminator" else 1.0
            (discriminator(generator(x).detach()).square().mean() * wrong).backward()
            of_d.step()
            of_g.zero_grad()
            wrong = factor if at_fault == "generator" else 1.0
            (discriminator(generator(x)).mean() * wrong).backward()
            of_g.step()

        return {"generator": generator, "discriminator": discriminator, "g": of_g, "d": of_d}, step

    check(build, bad)


# Scaler, accumulation, buffers


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_the_scalers_scale_stays(fused: bool, unscale: bool) -> None:
    """A bad loss neither backs the scale off nor counts for its growth."""

    def build() -> tuple[Parts, Step]:
        model = Mlp()
        optimizer = torch.optim.Adam(model.parameters(), fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)

        def step(x: Tensor) -> None:
            optimizer.zero_grad()
            scaler.scale(model(x).square().mean()).backward()
            if unscale:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()

        return {"model": model, "optimizer": optimizer, "scaler": scaler}, step

    check(build)


def test_the_scale_stays_where_clipping_makes_the_gradients_bad() -> None:
    """What is bad only after unscaling is refused inside the scaler's step."""

    def build() -> tuple[Parts, Step]:
        model = Mlp()
        optimizer = torch.optim.Adam(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)

        def step(x: Tensor) -> None:
            optimizer.zero_grad()
            scaler.scale(model(x.nan_to_num(1.0)).square().mean()).backward()
            scaler.unscale_(optimizer)
            if bool(x.isnan().any()):
                for parameter in model.parameters():
                    parameter.grad.div_(parameter.grad.norm() * 0)
            scaler.step(optimizer)
            scaler.update()

        return {"model": model, "optimizer": optimizer, "scaler": scaler}, step

    check(build)


@pytest.mark.parametrize("to_none", [True, False])
def test_accumulated_gradients_are_dropped_together(to_none: bool) -> None:
    """One bad micro-batch of three: the update of all three is refused, whether zero_grad comes before or after."""

    def build() -> tuple[Parts, Step]:
        model = Mlp()
        optimizer = torch.optim.Adam(model.parameters())

        def step(x: Tensor) -> None:
            for part, row in enumerate((x.nan_to_num(1.0), x, x.nan_to_num(2.0))):
                (model(row).square().mean() / (3 + part)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)

        return {"model": model, "optimizer": optimizer}, step

    check(build)


class Normalised(nn.Module):
    """BatchNorm, and a buffer of its own that counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.norm(x))


@pytest.mark.parametrize("bad", [(0,), (BAD,), (2, 3)], ids=["first", "one", "two"])
def test_running_statistics_are_put_back(bad: tuple[int, ...]) -> None:
    """A bad batch poisons BatchNorm's running mean for ever, if nobody puts it back."""

    def build() -> tuple[Parts, Step]:
        model = Normalised()
        optimizer = sgd(model)
        return {"model": model, "optimizer": optimizer}, plain(optimizer, model)

    check(build, bad)


# Updates by hand


def by_sub(p: nn.Parameter, buffer: Tensor) -> None:
    buffer.mul_(0.9).add_(p.grad)
    p.sub_(0.1 * buffer)


def by_data(p: nn.Parameter, buffer: Tensor) -> None:
    buffer.mul_(0.9).add_(p.grad)
    p.data.add_(buffer, alpha=-0.1)


def by_detach(p: nn.Parameter, buffer: Tensor) -> None:
    buffer.mul_(0.9).add_(p.grad)
    p.detach().copy_(p - 0.1 * buffer)


@pytest.mark.parametrize("update", [by_sub, by_data, by_detach])
@pytest.mark.parametrize("bad", [(0,), (BAD,), (2, 3)], ids=["first", "one", "two"])
def test_a_hand_written_optimizer_is_refused(update: Callable[..., None], bad: tuple[int, ...]) -> None:
    """The weights are not written, and its momentum is put back; parameters that were written before are undone."""

    def build() -> tuple[Parts, Step]:
        model = Mlp()
        state = [torch.zeros_like(p) for p in model.parameters()]

        def step(x: Tensor) -> None:
            model.zero_grad()
            model(x.nan_to_num(1.0)).square().mean().backward()
            if bool(x.isnan().any()):
                model.second.weight.grad[1, 1] = float("nan")
            with torch.no_grad():
                for p, buffer in zip(model.parameters(), state, strict=True):
                    update(p, buffer)

        return {"model": model, "state": state}, step

    check(build, bad)


def test_an_update_that_exchanges_storages_is_refused() -> None:
    """`p.data = p.data - lr * p.grad`: the old storage comes back at the next call."""

    def build() -> tuple[Parts, Step]:
        model = Mlp()

        def step(x: Tensor) -> None:
            model.zero_grad()
            model(x).square().mean().backward()
            for p in model.parameters():
                p.data = p.data - 0.1 * p.grad

        return {"model": model}, step

    check(build)


def test_a_hand_written_update_that_spoils_the_weights_is_undone() -> None:
    """The copy that was taken before the first write of the step brings them back."""

    def build() -> tuple[Parts, Step]:
        model = Mlp()

        def step(x: Tensor) -> None:
            rate = 3e38 if bool(x.isnan().any()) else 0.1
            model.zero_grad()
            model(x.nan_to_num(99.0)).square().mean().backward()
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(p.grad, alpha=-rate)

        return {"model": model}, step

    check(build)


def test_a_nan_that_the_scalers_skip_would_hide() -> None:
    """The scaler has skipped the step by itself; its scale stays all the same."""

    def build() -> tuple[Parts, Step]:
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        optimizer = torch.optim.Adam(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)

        def step(x: Tensor) -> None:
            optimizer.zero_grad()
            scaler.scale(torch.where(x.isnan(), 0.0, model(x)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()

        return {"model": model, "optimizer": optimizer, "scaler": scaler}, step

    check(build)


# Optimizers that nobody at torch wrote


class SignMomentum(torch.optim.Optimizer):
    """A third-party optimizer in plain Python, with a count of its own in the group and one on itself."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01, "calls": 0})
        self.total = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.total += 1
        for group in self.param_groups:
            group["calls"] += 1
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].mul_(0.9).add_(p.grad)
                p.add_(state["momentum"].sign(), alpha=-group["lr"])


class Lookahead(torch.optim.Optimizer):
    """An optimizer around another one: every second step goes half-way back to slow weights."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.steps = inner, 0
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    def step(self, closure: Any = None) -> None:
        self.inner.step()
        self.steps += 1
        if self.steps % 2 == 0:
            for p, slow in zip((p for group in self.param_groups for p in group["params"]), self.slow, strict=True):
                slow.add_(p.detach() - slow, alpha=0.5)
                p.data.copy_(slow)


class Spoiler(torch.optim.Optimizer):
    """Spoils one gradient before the optimizer inside it steps, and moves the weights afterwards."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.total = inner, 0
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.total += 1
        parameters = self.param_groups[0]["params"]
        parameters[1].grad.div_(parameters[1].grad.abs().max())
        self.inner.step()
        for p in parameters:
            p.mul_(0.9)


def test_an_optimizer_that_spoils_gradients_for_the_one_inside_it() -> None:
    """What the outer step does before and after the refused inner one is undone."""

    def build() -> tuple[Parts, Step]:
        model = Mlp()
        optimizer = Spoiler(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))

        def step(x: Tensor) -> None:
            model.zero_grad()
            (model(x.nan_to_num(1.0)).square().mean() * (0.0 if bool(x.isnan().any()) else 1.0)).backward()
            optimizer.step()

        return {"model": model, "optimizer": optimizer, "inner": optimizer.inner}, step

    check(build)


class Holder:
    """Holds an optimizer without being one."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def step(self) -> None:
        self.inner.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SignMomentum(p),
        lambda p: Lookahead(torch.optim.Adam(p)),
        lambda p: Holder(torch.optim.Adam(p)),
    ],
    ids=["third-party", "an optimizer around another", "a wrapper"],
)
@pytest.mark.parametrize("bad", [(0,), (BAD,), (2, 3)], ids=["first", "one", "two"])
def test_foreign_optimizers_are_refused(make: Callable[..., Any], bad: tuple[int, ...]) -> None:
    """Whatever their code does, it is not run."""

    def build() -> tuple[Parts, Step]:
        model = Mlp()
        optimizer = make(list(model.parameters()))

        def step(x: Tensor) -> None:
            model.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        own = {key: value for key, value in vars(optimizer).items() if key in ("total", "steps", "slow")}
        return {"model": model, "optimizer": optimizer, "own": own}, step

    check(build, bad)


def test_an_optimizer_that_runs_in_backward() -> None:
    """A hook after each accumulation steps and drops: the update of that parameter is refused."""
    model = Mlp()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def hook(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    with nantrace.watch(model, on_anomaly="skip") as tracer:
        for _, x in batches():
            model(x).square().mean().backward()

    assert len(tracer.skipped) >= 1
    assert all(bool(p.isfinite().all()) for p in model.parameters())


# Weights that were spoiled out of finite gradients


def test_a_step_that_spoils_the_weights_is_undone_where_it_was_at_risk() -> None:
    """In half precision a copy is kept, so that a finite gradient that overflows the weights can be undone."""

    def build() -> tuple[Parts, Step]:
        model = nn.Linear(4, 1, bias=False).half()
        optimizer = torch.optim.SGD(model.parameters(), lr=100.0, momentum=0.5)

        def step(x: Tensor) -> None:
            optimizer.zero_grad()
            model.weight.grad = torch.full_like(model.weight, 6e4 if bool(x.isnan().any()) else 1e-3)
            model(torch.zeros(1, 4).half()).sum().backward()
            optimizer.step()

        return {"model": model, "optimizer": optimizer}, step

    tracer = check(build)

    assert tracer.skipped[0].phase == "optimizer"
    assert tracer.skipped[0].snapshot.symptom.where.endswith("and the step is undone")


def test_weights_of_which_there_is_no_copy_raise() -> None:
    """What cannot be undone says so in one sentence, and raises."""
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def spoil(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        model.weight.data.fill_(float("nan"))

    optimizer.register_step_post_hook(spoil)  # stands for a fault that nothing announces
    with pytest.raises(nantrace.NumericalAnomaly) as raised, nantrace.watch(model, on_anomaly="skip"):
        plain(optimizer, model)(torch.ones(5, 4))

    where = raised.value.report.snapshot.symptom.where
    assert "the step cannot be skipped: SGD has changed its weights" in where


# Reporting


def test_each_skip_is_reported_and_dumped(tmp_path: Path) -> None:
    """One warning with a headline, one report, one dump per skip."""
    model = Mlp()
    train = plain(sgd(model), model)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with nantrace.watch(model, on_anomaly="skip", dump_dir=tmp_path) as tracer:
            for _, x in batches((1, 2, 5)):
                train(x)

    texts = [str(warning.message) for warning in seen]
    assert [report.step for report in tracer.skipped] == [1, 2, 5]
    assert tracer.reports == tracer.skipped
    assert texts[0] == "step skipped: NaN: already in the input x[0, 0], step 1"
    assert [text.rpartition(", ")[2] for text in texts] == ["step 1", "step 2", "step 5"]
    assert all("\n" not in text for text in texts)
    assert len(tracer.dumps) == len(list(tmp_path.iterdir())) == 3
    assert seen[0].message.report is tracer.skipped[0]
    assert tracer.skipped[0].phase == "input"
    assert Path(seen[0].filename).name == Path(__file__).name


def test_after_max_skips_in_a_row_it_raises() -> None:
    """A run that only skips is broken: the report says how many steps were skipped before."""
    model = Mlp()
    train = plain(sgd(model), model)
    tracer = nantrace.watch(model, on_anomaly="skip", max_skips=2)
    with pytest.raises(nantrace.NumericalAnomaly) as raised, tracer:
        for _, x in batches((0, 2, 3, 4)):
            train(x)

    assert [report.step for report in tracer.skipped] == [0, 2, 3]
    assert raised.value.report.step == 4
    assert "the 2 steps before it were skipped as well (max_skips=2)" in raised.value.report.snapshot.symptom.where
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("value", [0, -1, True, 1.5, None])
def test_max_skips_must_be_a_count(value: Any) -> None:
    """Anything else is refused with what to give."""
    with pytest.raises(nantrace.OptionError, match=r"max_skips=.*an int of at least 1"):
        nantrace.watch(Mlp(), on_anomaly="skip", max_skips=value)


def test_gradients_that_wait_when_the_block_ends_are_dropped() -> None:
    """A watch around the backward alone: the optimizer that steps after it finds nothing to use."""
    model = Mlp()
    optimizer = torch.optim.Adam(model.parameters())
    before = copy.deepcopy(model.state_dict())
    with nantrace.watch(model, on_anomaly="skip") as tracer:
        model(torch.full((5, 4), float("nan"))).sum().backward()
    optimizer.step()

    assert len(tracer.skipped) == 1
    assert_same(before, model.state_dict())


def test_a_healthy_run_is_not_changed() -> None:
    """Without an anomaly a watched run is the run, with schedulers, scaler and two optimizers."""

    def build() -> tuple[Parts, Step]:
        model = Normalised()
        optimizer = torch.optim.Adam(model.parameters())
        scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
        train = plain(optimizer, model)

        def step(x: Tensor) -> None:
            train(x)
            scheduler.step()

        return {"model": model, "optimizer": optimizer, "scheduler": scheduler}, step

    check(build, ())
