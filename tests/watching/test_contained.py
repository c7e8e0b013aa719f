"""What must not raise: values that are meant, masked, padded or never used. They are counted, with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import nantrace

from ..builders import Attention, Mlp, Program, caught, sgd

NAN, INF = math.nan, math.inf

LEVELS: list[Any] = [pytest.param({}, id="module"), pytest.param({"level": "op"}, id="op")]


def train(
    model: nn.Module, *args: Any, loss: Callable[[Any], Tensor] = lambda out: out.square().mean(), **options: Any
) -> nantrace.Tracer:
    """Two steps of a model that must not raise; gives the tracer."""
    optimizer = sgd(model, 0.01)
    with nantrace.watch(model, **options) as tracer:
        for _ in range(2):
            optimizer.zero_grad()
            loss(model(*args)).backward()
            optimizer.step()
    assert tracer.reports == []
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    return tracer


CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)
PADDED = torch.tensor([[0.0, 0.0, -INF], [-INF, -INF, -INF]])


def additive_mask(w: Tensor) -> Tensor:
    return (w.expand(5, 5) + torch.full((5, 5), -INF).triu(1)).softmax(-1)


def finite_mask(w: Tensor) -> Tensor:
    return (w.expand(5, 5) + CAUSAL * torch.finfo(w.dtype).min).softmax(-1)


def padded_rows_that_are_dropped(w: Tensor) -> Tensor:
    """The second row is NaN; it is taken out before anything is made of it, and no gradient goes through it."""
    weights = (w.detach()[:3] + PADDED).softmax(-1)
    return w * weights[:1].sum()


def padded_rows_that_are_filled(w: Tensor) -> Tensor:
    """As `nn.functional.scaled_dot_product_attention` guards them: the row is filled before the softmax."""
    scores = w[:3] + PADDED
    dead = (scores == -INF).all(-1, keepdim=True)
    return scores.masked_fill(dead, 0.0).softmax(-1).masked_fill(dead, 0.0)


def max_pool(w: Tensor) -> Tensor:
    return F.max_pool2d(w.reshape(1, 1, 1, 5), (1, 3), stride=1, padding=(0, 1))


def max_pool_by_hand(w: Tensor) -> Tensor:
    return F.pad(w, (2, 2), value=-INF).unfold(0, 3, 1).amax(-1).clamp_min(-9)


def beam_search(w: Tensor) -> Tensor:
    """Finished beams are padded with -inf, and the best of all are taken."""
    scores = torch.cat([w, torch.full((3,), -INF)])
    return scores.topk(3).values


def top_k(w: Tensor) -> Tensor:
    kept = w.topk(2).values[-1]
    return w.masked_fill(w < kept, -INF).softmax(-1)


def running_maximum(w: Tensor) -> Tensor:
    best = torch.full((), -INF)
    for value in w:
        best = torch.maximum(best, value)
    return best


def guarded_logsumexp(w: Tensor) -> Tensor:
    return torch.logsumexp(torch.cat([w, torch.full((2,), -INF)]), 0)


def memory_before_it_is_written(w: Tensor) -> Tensor:
    """`torch.empty` holds whatever it holds: here NaN, written by us as an allocator might."""
    table = torch.empty(5)
    table.data.fill_(NAN)
    table.copy_(w.detach())
    return w * table


def receive_buffer(w: Tensor) -> Tensor:
    """Filled in from outside, without an op that torch sees."""
    buffer = torch.empty_like(w, requires_grad=False)
    buffer.numpy()[:] = 2.0
    return w * buffer


def unselected_branch(w: Tensor) -> Tensor:
    """The bad branch has no gradient of its own: a clean backward."""
    return torch.where(w > 0, w, torch.log(w.detach() * 0))


def nan_to_num(w: Tensor) -> Tensor:
    return w * torch.nan_to_num(torch.log(w.detach() - 99), nan=1.0)


def nan_aware(w: Tensor) -> Tensor:
    values = torch.tensor([1.0, NAN, 3.0])
    return w * values.nanmean() * values.nansum() * torch.isnan(values).sum() * values.nanmedian()


def missing_data(w: Tensor) -> Tensor:
    """NaN stands for what is missing, and is taken out before it is used."""
    data = torch.tensor([1.0, NAN, 3.0, NAN, 5.0])
    return (w * torch.where(torch.isnan(data), 0.0, data))[~torch.isnan(data)]


def auxiliary_output(w: Tensor) -> Tensor:
    """Attention's second result is NaN for a padded row; nobody reads it."""
    values, _ = F.multi_head_attention_forward(
        w.reshape(5, 1, 1), w.reshape(5, 1, 1), w.reshape(5, 1, 1), 1, 1, torch.ones(3, 1), None, None, None, False,
        0.0, torch.ones(1, 1), None, attn_mask=CAUSAL,
    )  # fmt: skip
    return values


def half_precision_sums(w: Tensor) -> Tensor:
    """Finite in float16, though the sum of its elements is not."""
    return (w.half() * 0 + 60000.0).float() / 60000.0 * w


INNOCENT = [
    additive_mask, finite_mask, padded_rows_that_are_dropped, padded_rows_that_are_filled, max_pool, max_pool_by_hand,
    beam_search, top_k, running_maximum, guarded_logsumexp, memory_before_it_is_written, receive_buffer,
    unselected_branch, nan_to_num, nan_aware, missing_data, auxiliary_output, half_precision_sums,
]  # fmt: skip


@pytest.mark.parametrize("options", LEVELS)
@pytest.mark.parametrize("forward", INNOCENT, ids=lambda f: f.__name__)
def test_inside_a_module(forward: Callable[[Tensor], Tensor], options: dict[str, Any]) -> None:
    """Nothing is raised and training goes on with finite weights."""
    if forward is nan_aware:
        train(Program(forward, [1.0, 2.0, 3.0]), **options)
    else:
        train(Program(forward, [1.0, 2.0, 3.0, 4.0, 5.0]), **options)


@pytest.mark.parametrize("options", LEVELS)
@pytest.mark.parametrize("forward", INNOCENT, ids=lambda f: f.__name__)
def test_in_the_loss(forward: Callable[[Tensor], Tensor], options: dict[str, Any]) -> None:
    """The same code outside of every module."""
    width = 3 if forward is nan_aware else 5
    train(Program(lambda w: w * 1, [1.0 + i for i in range(width)]), loss=lambda w: forward(w).sum(), **options)


@pytest.mark.parametrize("forward", INNOCENT, ids=lambda f: f.__name__)
def test_they_are_not_blamed_for_another_fault(forward: Callable[[Tensor], Tensor]) -> None:
    """In a step that does fail, the innocent value is no origin."""
    width = 3 if forward is nan_aware else 5
    model = Program(lambda w: forward(w).sum() + torch.sqrt(w - 99).sum(), [1.0 + i for i in range(width)])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model().backward()
            optimizer.step()

    report = caught(run)

    assert (report.origin.op, report.phase) == ("sqrt", "forward")


def test_deterministic_fill_of_new_memory() -> None:
    """Under deterministic algorithms torch itself fills new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        train(Program(lambda w: w * torch.empty(2).copy_(w.detach()), [1.0, 2.0]))
        train(Attention(), torch.randn(2, 5, 16))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_activation_is_not_counted_twice(reentrant: bool) -> None:
    """A checkpoint runs the block again in the backward: what it holds is one value, not two."""

    class Net(nn.Module):
        def __init__(self, checkpointed: bool) -> None:
            super().__init__()
            self.block = Program(lambda w, x: (w * x, torch.log(x.detach() * 0)), [1.0])
            self.checkpointed = checkpointed

        def forward(self, x: Tensor) -> Any:
            if self.checkpointed:
                return checkpoint(self.block, x, use_reentrant=reentrant)[0]
            return self.block(x)[0]

    x = torch.ones(3, requires_grad=True)

    assert train(Net(True), x).contained == train(Net(False), x).contained == 2


# Counted, with the reason


def test_an_unused_output_is_counted() -> None:
    """A module's NaN output that nothing is made of: one per step."""
    tracer = train(Program(lambda w: (w, torch.log(w - 99)), [1.0]), loss=lambda out: out[0].sum())

    assert tracer.contained == 2


def test_expected_values_have_their_reasons() -> None:
    """The report of another fault lists what the step held besides: written on purpose, or without a part in it."""

    def forward(w: Tensor) -> Tensor:
        masked = w.masked_fill(w > 4, -INF).softmax(-1)
        unused = torch.log(w.detach() - 99).nan_to_num(0.0)
        return (masked + unused * 0).sum() + torch.sqrt(w - 99).sum()

    model = Program(forward, [1.0, 2.0, 5.0])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model().backward()
            optimizer.step()

    expected = {entry.what: (entry.reason, entry.count) for entry in caught(run).expected}

    assert expected == {
        "masked_fill in the root module": ("written on purpose: the value stands in the program", 1),
        "log in the root module": ("it had no part in what was noticed", 3),
    }


def test_what_had_a_part_in_it_is_not_called_harmless() -> None:
    """Two ops that both spoil the loss: the one that is not the origin is no innocent."""
    model = Program(lambda w: torch.log(w - 99).sum() + torch.sqrt(w - 99).sum(), [1.0])
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model().backward()
            optimizer.step()

    assert caught(run).expected == ()


# strict


def test_strict_raises_on_a_nan_inside() -> None:
    """A NaN in an inner module's output that the next one takes out."""
    model = nn.Sequential(Program(lambda w, x: torch.log(x * 0 - 1) + w, [1.0]), NanToNum())
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model, strict=True):
            model(torch.ones(3)).sum().backward()
            optimizer.step()

    report = caught(run)

    assert (report.origin.op, report.origin.module, report.phase) == ("log", "0", "forward")
    assert (report.snapshot.symptom.kind, report.snapshot.symptom.name) == ("result", "0")


class NanToNum(nn.Module):
    """Takes NaN out."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(torch.isnan(x), torch.zeros_like(x), x).detach() + x.nan_to_num(0.0)


@pytest.mark.parametrize("options", [*LEVELS, pytest.param({"replay": False}, id="no-replay")])
def test_strict_raises_on_an_unused_output(options: dict[str, Any]) -> None:
    """Live, replayed, or not replayed: the module is known."""
    model = Mlp()
    model.second = Program(lambda w, h: (h[:, :3] * w, torch.log(h - 99)), [1.0])  # type: ignore[assignment]
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model, strict=True, **options):
            model(torch.randn(5, 4))[0].sum().backward()
            optimizer.step()

    assert caught(run).origin.module == "second"


def test_strict_leaves_infinities_and_placeholders_alone() -> None:
    """A -inf mask is no NaN, and a NaN that stands in the program is meant."""
    for forward in (
        lambda w: (w * 1, w.masked_fill(w > 0, -INF)),
        lambda w: (w * 1, w.masked_fill(w > 0, NAN)),
        lambda w: (w * 1, torch.full_like(w, NAN)),
    ):
        train(Program(forward, [1.0, 2.0]), loss=lambda out: out[0].sum(), strict=True)
