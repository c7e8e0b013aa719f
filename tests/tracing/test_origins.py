"""Which op generated the value: generated, propagated, killed, declared."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

from ..builders import operand, report_on, sgd, stays_silent

NAN, INF = math.nan, math.inf


# A NaN made of an infinity belongs to the op that made the infinity


@pytest.mark.parametrize(
    "consume",
    [
        pytest.param(lambda e: e - e, id="inf-inf"),
        pytest.param(lambda e: e / e, id="inf/inf"),
        pytest.param(lambda e: e * 0, id="inf*0"),
        pytest.param(lambda e: torch.softmax(e, 0), id="softmax"),
        pytest.param(lambda e: torch.cos(e), id="cos"),
        pytest.param(lambda e: e / e.sum(), id="softmax-by-hand"),
    ],
)
def test_an_infinity_before_the_nan_is_the_origin(consume: object) -> None:
    """exp overflows, a later op makes NaN of it: exp is the origin."""
    report = report_on(lambda w: consume(torch.exp(w)), [1.0, 100.0])

    assert (report.origin.op, report.origin.example.value) == ("exp", INF)
    assert report.cause == "overflow"


def test_the_earlier_of_two_origins_is_named() -> None:
    """Two ops that made a NaN each: the one that ran first."""
    report = report_on(lambda w: torch.sqrt(w - 3) + torch.log(w - 2), [1.0])

    assert report.origin.op == "sqrt"


def test_a_value_that_was_killed_is_no_origin() -> None:
    """An infinity that a later op made finite has nothing to do with the NaN."""
    report = report_on(lambda w: torch.exp(-torch.exp(w * 100)) + torch.log(w - 2), [1.0])

    assert report.origin.op == "log"


def test_a_killed_value_is_silent() -> None:
    """1 / (1 + exp(x)) of a large x is 0: nothing is raised where the gradient is finite as well."""
    tracer = stays_silent(lambda w: 1 / (1 + torch.exp(w.detach() * 100)) + w, [1.0])

    assert tracer.reports == []


def test_nan_to_num_kills() -> None:
    """What nan_to_num replaced has no consequences."""
    tracer = stays_silent(lambda w: torch.nan_to_num(torch.log(w.detach() - 3)) + w, [1.0])

    assert tracer.reports == []


# Declared


CAUSAL = torch.ones(3, 3, dtype=torch.bool).triu(1)


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(lambda s: s.masked_fill(CAUSAL, -INF), id="masked_fill"),
        pytest.param(lambda s: s + torch.zeros(3, 3).masked_fill(CAUSAL, -INF), id="additive"),
        pytest.param(lambda s: s + torch.full((3, 3), -INF).triu(1), id="full-triu"),
        pytest.param(lambda s: torch.where(CAUSAL, -INF, s), id="where"),
        pytest.param(lambda s: torch.where(CAUSAL, torch.tensor(-INF), s), id="where-tensor"),
        pytest.param(lambda s: s + torch.finfo(s.dtype).min * CAUSAL, id="finfo-min"),
    ],
)
def test_a_declared_mask_is_no_origin(mask: object) -> None:
    """-inf that the program wrote is not accused of a NaN that came from elsewhere."""

    def forward(w: Tensor) -> Tensor:
        weights = torch.softmax(mask(w), -1)
        return weights * torch.log(w.diagonal() - 5)

    report = report_on(forward, torch.ones(3, 3))

    assert report.origin.op == "log"


@pytest.mark.parametrize("place", [0, 2])
def test_a_declared_mask_alone_is_silent(place: int) -> None:
    """A masked attention trains in silence."""

    def forward(w: Tensor) -> Tensor:
        return torch.softmax(w.masked_fill(CAUSAL, -INF), -1)[:, place]

    assert stays_silent(forward, torch.randn(3, 3)).reports == []


def test_what_was_declared_is_listed_as_expected() -> None:
    """The report of another fault says that the mask was seen and judged harmless."""

    def forward(w: Tensor) -> Tensor:
        return torch.softmax(w.masked_fill(CAUSAL, -INF), -1) * torch.log(w - 5)

    report = report_on(forward, torch.ones(3, 3))

    assert any("masked_fill" in expected.what and expected.count == 3 for expected in report.expected)


def test_a_fully_masked_row_is_an_origin() -> None:
    """A softmax row with nothing left is the origin, not the mask."""
    mask = torch.tensor([[False, True, True], [True, True, True]])
    report = report_on(lambda w: torch.softmax(w.masked_fill(mask, -INF), -1), torch.zeros(2, 3))

    assert (report.origin.op, report.cause) == ("softmax", "masked-softmax")
    assert report.origin.example.index[0] == 1
    assert operand(report, "self").values == (-INF, -INF, -INF)


def test_declared_infinities_that_are_mixed() -> None:
    """inf - inf of two declared infinities: the op that mixed them is the origin."""
    report = report_on(lambda w: (w * 0 + INF) + torch.full((2,), -INF), [1.0, 2.0])

    assert (report.origin.op, report.cause) == ("add", "inf-arithmetic")


def test_zero_times_a_declared_infinity() -> None:
    """A mask by multiplication: 0 * inf is born at the product."""
    report = report_on(lambda w: torch.where(w > 1.5, INF, w) * torch.tensor([1.0, 0.0]), [1.0, 2.0])

    assert (report.origin.op, report.cause) == ("mul", "inf-arithmetic")


@pytest.mark.parametrize("inside", [True, False], ids=["in-the-model", "in-the-loss"])
def test_a_nan_that_where_chose(inside: bool) -> None:
    """A NaN that stands in the program as a number and was not taken out again: `where` is the origin, no label is."""

    def choose(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, NAN)

    if inside:
        report = report_on(lambda w: choose(w * 2), [1.0, -1.0])
    else:
        report = report_on(lambda w: w * 2, [1.0, -1.0], loss=lambda out: choose(out).sum())

    assert (report.origin.op, report.phase) == ("where", "forward" if inside else "loss")
    assert report.snapshot.source_value is None


def test_the_determinant_that_has_no_logarithm() -> None:
    """torch.logdet writes its NaN with `where`: the determinant is to blame."""
    report = report_on(lambda w: torch.logdet(torch.diag(w)), [1.0, -1.0])

    assert (report.cause, report.phase) == ("log-domain", "forward")
    assert "determinant of torch.diag(w) is negative" in report.evidence[0]


def test_max_pool_padding_is_silent() -> None:
    """The -inf padding of a max-pool is internal to it."""
    assert stays_silent(lambda w: F.max_pool2d(w[None, None], 2, padding=1), torch.randn(4, 4)).reports == []


# In-place ops and views


def test_an_in_place_op_is_named() -> None:
    """log_ is log."""
    report = report_on(lambda w: (w - 2).log_(), [1.0, 5.0])

    assert report.origin.op == "log"
    assert operand(report, "self").value == -1.0


def test_the_operand_of_an_in_place_op_is_what_it_was() -> None:
    """The values before the write are shown, though the op has overwritten them."""
    report = report_on(lambda w: (w * 200).exp_(), [1.0])

    assert (report.origin.op, operand(report, "self").value) == ("exp", 200.0)


def test_an_in_place_op_on_a_view_reaches_its_base() -> None:
    """A NaN written through a view is found from the base."""

    def forward(w: Tensor) -> Tensor:
        hidden = w * 1.0
        hidden[1:].sub_(5.0).log_()
        return hidden

    report = report_on(forward, [1.0, 2.0, 3.0])

    assert (report.origin.op, report.origin.example.index) == ("log", (0,))
    assert operand(report, "self").value == -3.0


def test_a_bad_value_that_was_overwritten_is_forgotten() -> None:
    """A place that was overwritten with a finite value is followed to its newest writer."""

    def forward(w: Tensor) -> Tensor:
        hidden = torch.log(w - 5).detach()
        hidden.fill_(1.0)
        return torch.sqrt(w - 3 * hidden)

    report = report_on(forward, [1.0])

    assert report.origin.op == "sqrt"


def test_an_in_place_chain_of_a_module() -> None:
    """ReLU(inplace=True) after the fault does not hide it."""
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    optimizer = sgd(model)
    with torch.no_grad():
        model[0].weight.fill_(1e38)
    with pytest.raises(nantrace.NumericalAnomaly) as raised, nantrace.watch(model):
        model(torch.full((2, 3), 1e3)).sum().backward()
        optimizer.step()

    assert (raised.value.report.origin.op, raised.value.report.origin.module) == ("addmm", "0")


def test_index_put_follows_the_written_values() -> None:
    """x[i] = v: the element came from v."""

    def forward(w: Tensor) -> Tensor:
        hidden = w * 1.0
        hidden[torch.tensor([0, 2])] = torch.log(w[:2] - 3)
        return hidden

    report = report_on(forward, [1.0, 2.0, 3.0])

    assert (report.origin.op, operand(report, "self").value) == ("log", -2.0)


def test_uninitialised_memory_that_is_written_is_not_accused() -> None:
    """torch.empty is no origin once its elements have been written."""

    def forward(w: Tensor) -> Tensor:
        out = torch.empty(2)
        out[0] = w[0]
        out[1] = torch.log(w[1] - 5)
        return out

    report = report_on(forward, [1.0, 2.0])

    assert report.origin.op == "log"


# Reductions of nothing


def test_a_sparse_matrix_is_followed_through_its_values() -> None:
    """A bad value that a sparse tensor carries on belongs to the op before it."""

    def propagate(w: Tensor, x: Tensor) -> Tensor:
        edges = torch.tensor([[0, 1], [1, 0]])
        return torch.sparse.mm(torch.sparse_coo_tensor(edges, torch.log(w), (2, 2), check_invariants=True), x)

    report = report_on(propagate, [0.0, 1.0], torch.ones(2, 3))

    assert (report.origin.op, report.cause, report.reproduced) == ("log", "log-domain", True)


def test_the_mean_of_nothing() -> None:
    """A mean over an empty selection generates the NaN."""
    report = report_on(lambda w: w[w > 5].mean(), [1.0, 2.0])

    assert (report.origin.op, report.cause) == ("mean", "empty-reduction")


def test_the_deviation_of_one() -> None:
    """The unbiased deviation of a single element."""
    with pytest.warns(UserWarning, match="degrees of freedom"):
        report = report_on(lambda w: w.std(), [1.0])

    assert (report.origin.op, report.cause) == ("std", "empty-reduction")


# The path


def test_the_path_leads_from_the_origin_to_the_loss() -> None:
    """The first op of the path is the origin, the last one made the loss."""
    report = report_on(lambda w: torch.relu(torch.log(w - 5)) * 2, [1.0], loss=lambda out: out.mean())

    assert [op.name for op in report.path] == ["log", "relu", "mul", "mean"]
    assert [str(op.status) for op in report.path] == ["generated", "propagated", "propagated", "propagated"]


def test_the_graph_holds_what_ran() -> None:
    """Every op of the replay is a node, and the origin is on it."""
    report = report_on(lambda w: torch.log(w - 5) * 2, [1.0])

    assert report.graph.nodes[report.origin.id]["op"].name == "log"
    assert {"sub", "log", "mul", "sum"} <= {data["op"].name for _, data in report.graph.nodes(data=True)}
    origin = report.origin.id
    assert [report.graph.nodes[n]["op"].name for n in report.graph.successors(origin)][:1] == ["mul"]
