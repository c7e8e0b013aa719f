"""The walk follows the elements that can have reached the failing one, and no others."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

from ..builders import caught, operand, report_on, sgd, stays_silent

NAN, INF = math.nan, math.inf


def test_where_follows_the_chosen_branch() -> None:
    """A NaN in the branch that was not chosen is not the one that is accused."""
    chosen = torch.tensor([False, True])
    report = report_on(lambda w: torch.where(chosen, torch.sqrt(w - 1.5), torch.log(w - 3)), [1.0, 2.0])

    assert (report.origin.op, report.origin.example.index) == ("log", (0,))
    assert operand(report, "self").value == -2.0


def test_where_with_a_scalar_branch() -> None:
    """The scalar branch is finite: the tensor branch is followed."""
    report = report_on(lambda w: torch.where(w > 1.5, torch.log(w - 3), 0.0), [1.0, 2.0])

    assert (report.origin.op, report.origin.example.index) == ("log", (1,))


def test_masked_fill_follows_what_was_not_masked() -> None:
    """What stands under the mask cannot be the cause."""
    mask = torch.tensor([True, False, False])
    report = report_on(lambda w: torch.log(w).masked_fill(mask, 0.0), [-1.0, 2.0, -3.0])

    assert report.origin.op == "log"
    assert report.origin.example.index == (2,)
    assert operand(report, "self").value == -3.0


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("dim", [-1, 0])
def test_softmax_reads_a_row(function: object, dim: int) -> None:
    """A softmax is spoiled by an element of its own row (or column)."""

    def forward(w: Tensor) -> Tensor:
        return function(torch.exp(w), dim)[1, 2]

    w = torch.zeros(3, 4)
    w[1, 0 if dim == -1 else 2] = 100.0
    report = report_on(forward, w)

    assert report.origin.op == "exp"
    assert report.origin.example.index == (1, 0 if dim == -1 else 2)


def test_mm_reads_a_row_and_a_column() -> None:
    """The overflowing product shows the row and the column it was made from."""
    left = torch.ones(3, 2)
    left[1] = 1e20
    right = torch.ones(2, 4)
    right[:, 3] = 1e20
    report = report_on(lambda w: w @ right, left)

    assert (report.origin.op, report.origin.example.index, report.origin.example.value) == ("mm", (1, 3), INF)
    assert operand(report, "self").kind == "row"
    assert operand(report, "self").values == pytest.approx((1e20, 1e20))
    assert operand(report, "mat2").kind == "column"
    assert operand(report, "mat2").values == pytest.approx((1e20, 1e20))


def test_a_batched_product_reads_its_own_batch() -> None:
    """bmm: row and column of the same batch."""
    left = torch.ones(2, 3, 2)
    left[1, 2] = 1e30
    report = report_on(lambda w: torch.bmm(w, torch.full((2, 2, 3), 1e20)), left)

    assert (report.origin.op, report.origin.example.index[:2]) == ("bmm", (1, 2))
    assert operand(report, "self").values == pytest.approx((1e30, 1e30))


def test_a_linear_layer_with_bias() -> None:
    """addmm: what is added is shown beside row and column."""
    report = report_on(lambda w: F.linear(torch.full((2, 3), 1e25), w, torch.zeros(4)), torch.full((4, 3), 1e25))

    assert report.origin.op == "addmm"
    kinds = {o.name: o.kind for o in report.origin.example.operands}
    assert kinds == {"self": "element", "mat1": "row", "mat2": "column"}


MOVERS = [
    pytest.param(lambda x: x[torch.tensor([2, 0])], (0, 1), (2, 1), id="index"),
    pytest.param(lambda x: x[:, torch.tensor([3, 1])], (2, 1), (2, 1), id="index-column"),
    pytest.param(lambda x: torch.gather(x, 1, torch.tensor([[0], [0], [1]])), (2, 0), (2, 1), id="gather"),
    pytest.param(lambda x: torch.index_select(x, 0, torch.tensor([1, 2])), (1, 1), (2, 1), id="index_select"),
    pytest.param(lambda x: torch.cat([torch.zeros(2, 4), x]), (4, 1), (2, 1), id="cat"),
    pytest.param(lambda x: torch.stack([torch.zeros(3, 4), x], 1), (2, 1, 1), (2, 1), id="stack"),
    pytest.param(lambda x: F.pad(x, (1, 2, 0, 1)), (2, 2), (2, 1), id="pad"),
    pytest.param(lambda x: F.pad(x, (1, 2), value=-INF).clamp_min(-9), (2, 2), (2, 1), id="pad-with-inf"),
    pytest.param(lambda x: x.flip(0), (0, 1), (2, 1), id="flip"),
    pytest.param(lambda x: x.roll(1, 1), (2, 2), (2, 1), id="roll"),
    pytest.param(lambda x: F.embedding(torch.tensor([[0, 2]]), x), (0, 1, 1), (2, 1), id="embedding"),
    pytest.param(lambda x: x.t(), (1, 2), (2, 1), id="transpose"),
    pytest.param(lambda x: x.reshape(2, 6), (1, 3), (2, 1), id="reshape"),
    pytest.param(lambda x: x[2:, 1:3], (0, 0), (2, 1), id="slice"),
    pytest.param(lambda x: x.unsqueeze(0).expand(2, 3, 4), (0, 2, 1), (2, 1), id="expand"),
    pytest.param(lambda x: x.permute(1, 0).contiguous(), (1, 2), (2, 1), id="contiguous"),
    pytest.param(lambda x: x.repeat(2, 1), (2, 1), (2, 1), id="repeat"),
    pytest.param(lambda x: x.chunk(2, 1)[0], (2, 1), (2, 1), id="chunk"),
    pytest.param(lambda x: x.unbind(0)[2], (1,), (2, 1), id="unbind"),
    pytest.param(lambda x: x.tril(), (2, 1), (2, 1), id="tril"),
    pytest.param(lambda x: x.masked_select(torch.ones(3, 4, dtype=torch.bool)), (9,), (2, 1), id="masked_select"),
    pytest.param(lambda x: x.double(), (2, 1), (2, 1), id="cast"),
    pytest.param(lambda x: x.movedim(0, 1).reshape(-1).unflatten(0, (4, 3)), (1, 2), (2, 1), id="movedim"),
    pytest.param(lambda x: torch.einsum("ij->ji", x), (1, 2), (2, 1), id="einsum"),
    pytest.param(lambda x: x.narrow(0, 1, 2), (1, 1), (2, 1), id="narrow"),
    pytest.param(lambda x: x.amax(0), (1,), (2, 1), id="amax"),
    pytest.param(lambda x: x.sum(1), (2,), (2, 1), id="sum"),
    pytest.param(lambda x: x.cumsum(1)[:, 2], (2,), (2, 1), id="cumsum"),
    pytest.param(lambda x: F.max_pool2d(x[None, None], 1)[0, 0], (2, 1), (2, 1), id="max_pool2d"),
]


@pytest.mark.parametrize(("move", "moved_to", "source"), MOVERS)
def test_the_exact_source_of_a_moved_element(move: object, moved_to: tuple[int, ...], source: tuple[int, ...]) -> None:
    """An element is followed to the very element it came from, also where another bad one stands beside it."""
    w = torch.ones(3, 4)
    w[2, 1] = -7.0
    w[0, 0] = -1.0

    def forward(w: Tensor) -> Tensor:
        moved = move(torch.log(w))
        return moved[moved_to]

    report = report_on(forward, w)

    assert report.origin.op == "log"
    assert report.origin.example.index == source
    assert operand(report, "self").value == -7.0


def test_the_right_one_of_two_concatenated_tensors() -> None:
    """cat of two bad tensors: the one that the element came from."""

    def forward(w: Tensor) -> Tensor:
        return torch.cat([torch.log(w), torch.sqrt(w)])[3]

    report = report_on(forward, [-1.0, -2.0])

    assert (report.origin.op, report.origin.example.index) == ("sqrt", (1,))


def test_a_scatter_of_a_bad_element() -> None:
    """scatter: the element that was written there, not what it overwrote."""
    index = torch.tensor([2])

    def forward(w: Tensor) -> Tensor:
        return torch.log(w).scatter(0, index, torch.sqrt(w[:1]))

    report = report_on(lambda w: forward(w)[2], [-4.0, 1.0, -9.0])

    assert (report.origin.op, operand(report, "self").value) == ("sqrt", -4.0)


def test_layer_norm_reads_its_own_sample() -> None:
    """A NaN in another sample of the batch is not accused."""
    w = torch.ones(3, 4)
    w[0, 0], w[2, 3] = -1.0, -5.0
    report = report_on(lambda w: F.layer_norm(torch.log(w), (4,))[2, 0], w)

    assert report.origin.example.index == (2, 3)


def test_batch_norm_reads_its_own_channel() -> None:
    """Nor is one in another channel."""
    w = torch.ones(3, 4)
    w[0, 0], w[2, 3] = -1.0, -5.0
    report = report_on(lambda w: F.batch_norm(torch.log(w), None, None, training=True)[1, 3], w)

    assert report.origin.example.index == (2, 3)


def test_batch_norm_does_not_read_the_running_statistics_that_it_writes() -> None:
    """An infinity of the batch spoils the running mean: that is no parameter which was bad before the step."""
    mean, variance = torch.zeros(2), torch.ones(2)
    report = report_on(lambda w: F.batch_norm(torch.log(w), mean, variance, training=True), torch.zeros(3, 2))

    assert (report.phase, report.origin.op, report.cause) == ("forward", "log", "log-domain")


def test_running_statistics_lead_back_to_the_call_that_spoiled_them() -> None:
    """A later call that reads them is a consequence."""

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.norm = torch.nn.Parameter(torch.tensor([[0.0], [1.0]])), torch.nn.BatchNorm1d(1)

        def forward(self) -> Tensor:
            self.norm.train()(torch.log(self.w))
            return self.norm.eval()(self.w)

    model = Twice()
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model().sum().backward()
            optimizer.step()

    report = caught(run)

    assert (report.phase, report.origin.op, report.origin.module) == ("forward", "log", "")


def test_a_convolution_reads_its_own_sample() -> None:
    """Nor is one in another image."""
    w = torch.ones(2, 1, 3, 3)
    w[0, 0, 0, 0], w[1, 0, 1, 1] = -1.0, -5.0
    report = report_on(lambda w: F.conv2d(torch.log(w), torch.ones(1, 1, 2, 2))[1, 0, 0, 0], w)

    assert report.origin.example.index == (1, 0, 1, 1)


def test_nll_loss_reads_the_labelled_class() -> None:
    """A class that no label names cannot reach the loss."""
    w = torch.ones(2, 3)
    w[0, 0], w[1, 2] = -1.0, -5.0
    report = report_on(lambda w: F.nll_loss(torch.log(w), torch.tensor([1, 2])), w)

    assert (report.origin.op, report.origin.example.index) == ("log", (1, 2))


def test_an_unlabelled_bad_class_is_silent() -> None:
    """Where only such a class is bad, loss and gradients are finite: nothing is raised."""
    w = torch.ones(2, 3)
    w[0, 0] = 0.0
    tracer = stays_silent(lambda w: F.nll_loss(torch.log(w.detach()) + w, torch.tensor([1, 2])), w)

    assert tracer.reports == []


def test_attention_reads_its_own_batch() -> None:
    """scaled_dot_product_attention: the sample whose query is bad."""
    w = torch.ones(2, 1, 3, 4)
    w[1, 0, 2, 3] = -5.0
    report = report_on(lambda w: F.scaled_dot_product_attention(torch.log(w), w, w), w)

    assert (report.origin.op, report.origin.example.index) == ("log", (1, 0, 2, 3))


def test_a_reduction_shows_the_slice_it_read() -> None:
    """An overflowing sum along a dimension shows the values it added."""
    w = torch.ones(2, 3)
    w[1] = 3e38
    report = report_on(lambda w: w.sum(1), w)

    assert (report.origin.op, report.origin.example.index) == ("sum", (1,))
    assert operand(report, "self").kind == "slice"
    assert operand(report, "self").values == pytest.approx((3e38, 3e38, 3e38))


def test_broadcast_operands_are_read_where_they_belong() -> None:
    """Division of a matrix by a row: the element of the row."""
    divisor = torch.tensor([1.0, 2.0, 0.0])
    report = report_on(lambda w: w / divisor, torch.ones(2, 3))

    assert (report.origin.op, report.origin.example.index) == ("div", (0, 2))
    assert (operand(report, "self").value, operand(report, "other").value) == (1.0, 0.0)
    assert operand(report, "other").index == (2,)


def test_an_indexed_read_shows_index_and_value() -> None:
    """For an embedding, the index and what it read."""
    table = torch.ones(4, 2)
    table[3, 1] = NAN
    report = report_on(lambda w: F.embedding(torch.tensor([0, 3]), w), table)

    assert (report.origin.op, report.phase) == ("embedding", "parameters")
    assert operand(report, "indices").values == (3.0,)
    assert operand(report, "indices").kind == "index"
    assert math.isnan(operand(report, "weight").values[0])


def test_complex_values_are_followed_too() -> None:
    """A complex program is walked like a real one."""
    report = report_on(
        lambda w: torch.view_as_real(torch.reciprocal(w.to(torch.complex64))), [1.0, 0.0], loss=torch.sum
    )

    assert report.origin.op == "reciprocal"


def test_half_precision_overflow() -> None:
    """A cast that overflows is an origin of its own."""
    report = report_on(lambda w: (w * 1.0).half().float(), [1e6, 1.0])

    assert (report.origin.op, report.cause) == ("to_copy", "overflow")
    assert operand(report, "self").value == 1e6


def test_weight_norm_reads_its_own_row() -> None:
    """The zero row of v is what divides by its norm; the other rows are not shown."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    with torch.no_grad():
        layer.parametrizations.weight.original1[1] = 0
    optimizer = sgd(layer)

    def run() -> None:
        with nantrace.watch(layer):
            layer(torch.randn(5, 3)).mean().backward()
            optimizer.step()

    report = caught(run)

    assert (report.origin.op, report.cause) == ("weight_norm_interface", "zero-division")
    assert report.origin.example.index == (1, 0)
    assert report.origin.example.operand("v").summary.max == 0


def test_a_part_of_what_an_op_made_is_described_by_itself() -> None:
    """An op that read one bad column of a product is shown with that column, not with the whole."""

    report = report_on(lambda w: torch.log(torch.stack([w, w - w])[1]), [1.0, 2.0])
    log = next(op for op in report.snapshot.ops if op.name == "log")

    assert (log.inputs[0].min, log.inputs[0].max) == (0, 0)


@pytest.mark.parametrize(
    "reshape",
    [
        lambda made: made.unsqueeze_(0),
        lambda made: made.squeeze_(),
        lambda made: made.t_(),
        lambda made: made.transpose_(0, 1),
        lambda made: made.as_strided_((2,), (1,)),
    ],
    ids=["unsqueeze_", "squeeze_", "t_", "transpose_", "as_strided_"],
)
def test_a_shape_that_is_changed_in_place_is_followed(reshape: object) -> None:
    """`squeeze_` and its like write no element: the value belongs to the op that made it, under its shape there."""
    report = report_on(lambda w: reshape(torch.log(w)) * 2.0, [[1.0, -1.0]])

    assert (report.origin.op, report.origin.example.index) == ("log", (0, 1))
    assert operand(report, "self").value == -1.0
