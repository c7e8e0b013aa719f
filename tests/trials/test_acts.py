"""Each act of a change, tried in a replay of a failing step."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nantrace.model import Change

from .trying import outcomes, verdicts


class Applies(nn.Module):
    """A linear layer and a function of its result."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        with torch.no_grad():
            self.layer.weight.mul_(scale)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.layer(x))


def on_ones(model: nn.Module) -> torch.Tensor:
    return model(torch.ones(8, 4)).sum()


def zeros(x: torch.Tensor) -> torch.Tensor:
    return (x * 0) ** 2


def masked(x: torch.Tensor) -> torch.Tensor:
    return x.masked_fill(torch.ones(4, dtype=torch.bool), -inf)


def equal(x: torch.Tensor) -> torch.Tensor:
    """A matrix whose eigenvalues are all the same."""
    return x[:4] * 0 + torch.eye(4)


@pytest.mark.parametrize(
    ("function", "change", "helps"),
    [
        (lambda x: torch.log(zeros(x)), Change("clamp", operand="self", values=(1e-6, inf)), True),
        (lambda x: torch.log(zeros(x)), Change("clamp", operand="self", values=(-1.0, inf)), False),
        (lambda x: torch.log(zeros(x)), Change("add", operand="self", values=(1e-6,)), True),
        (lambda x: torch.log(zeros(x)), Change("scale", operand="self", values=(2.0,)), False),
        (lambda x: torch.sqrt(zeros(x)), Change("add", operand="self", values=(1e-6,)), True),
        (lambda x: torch.sqrt(zeros(x)), Change("fill", operand="self", values=(0.0, inf, 1.0)), True),
        (lambda x: torch.sqrt(zeros(x)), Change("dtype", name="float64"), False),
        (lambda x: zeros(x) ** 0.5, Change("clamp", operand="self", values=(1e-6, inf)), True),
        (lambda x: 1.0 / zeros(x), Change("nonzero", operand="self", values=(1e-3,)), True),
        (lambda x: x / zeros(x), Change("nonzero", operand="other", values=(1e-3,)), True),
        (lambda x: x / zeros(x), Change("nonzero", operand="self", values=(1e-3,)), False),
        (lambda x: torch.exp(x * 0 + 1e4), Change("subtract-max", operand="self", values=(-1.0,)), True),
        (lambda x: torch.exp(x * 0 + 1e4), Change("tanh", operand="self", values=(10.0,)), True),
        (lambda x: torch.exp(x * 0 + 100).sum() * 1e-30, Change("dtype", name="float64"), True),
        (lambda x: F.layer_norm(x * 0, (4,), eps=0.0), Change("argument", operand="eps", values=(1e-5,)), True),
        (lambda x: x * 0 * masked(x), Change("where-zero", operand="other", values=(0.0,)), True),
        (lambda x: masked(x) - masked(x), Change("clamp", values=(-1e4, inf)), True),
        (lambda x: masked(x) - masked(x), Change("clamp", operand="self", values=(-1e4, inf)), False),
        (lambda x: torch.softmax(masked(x), -1), Change("unmask", operand="self", values=(-1.0,)), True),
        (lambda x: torch.linalg.eigh(equal(x))[1], Change("spread", operand="A", values=(1e-3,)), True),
        (lambda x: torch.linalg.eigh(equal(x))[1], Change("jitter", operand="A", values=(1e-3,)), False),
    ],
)
def test_an_operand_is_changed_where_an_edit_of_the_line_would(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[torch.Tensor], torch.Tensor], change: Change, helps: bool
) -> None:
    """What the change does is seen by autograd, so loss and gradients are those of the edited program."""
    assert verdicts(monkeypatch, Applies(function), on_ones, change) == [helps]


@pytest.mark.parametrize("name", ["log_softmax", "logsigmoid", "logsumexp", "nonsense"])
def test_two_ops_become_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A logarithm and what made its operand are tried as the one op that torch has for both, and only as that."""
    function = {
        "log_softmax": lambda x: torch.log(torch.softmax(x * 1e3 + torch.arange(4.0) * 1e3, -1)),
        "logsigmoid": lambda x: torch.log(torch.sigmoid(x * 0 - 1e4)),
        "logsumexp": lambda x: torch.log(torch.exp(x * 0 - 1e4).sum(-1)),
    }
    model = Applies(function.get(name, function["log_softmax"]))

    assert verdicts(monkeypatch, model, on_ones, Change("fused", operand="self", name=name)) == [
        None if name == "nonsense" else True
    ]


@pytest.mark.parametrize(
    "taken",
    [
        lambda p: p[range(8), [0] * 8],
        lambda p: p.gather(1, torch.zeros(8, 1, dtype=torch.long)).squeeze(1),
        lambda p: p.transpose(0, 1).reshape(-1),
    ],
)
@pytest.mark.parametrize("where", ["the module", "the loss"])
def test_a_logarithm_of_some_elements_of_a_softmax(
    monkeypatch: pytest.MonkeyPatch, taken: Callable[[torch.Tensor], torch.Tensor], where: str
) -> None:
    """Which elements are taken does not matter: the same are taken of the log_softmax."""

    def scores(x: torch.Tensor) -> torch.Tensor:
        return torch.log(taken(torch.softmax(x * 0 + torch.arange(4.0) * 1e3, -1)))

    model = Applies(scores if where == "the module" else lambda x: x)
    loss = on_ones if where == "the module" else lambda model: scores(model(torch.ones(8, 4))).sum()

    assert verdicts(monkeypatch, model, loss, Change("fused", operand="self", name="log_softmax")) == [True]


def test_one_minus_a_sigmoid_is_a_logsigmoid_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """log(1 - sigmoid(x)) is logsigmoid(-x)."""
    model = Applies(lambda x: torch.log(1 - torch.sigmoid(x * 0 + 1e4)))

    assert verdicts(monkeypatch, model, on_ones, Change("fused", operand="self", name="logsigmoid")) == [True]


def test_ops_of_the_loss_are_changed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside the model the ops are played from the tape, and changed there."""
    model = Applies(lambda x: x)

    assert verdicts(
        monkeypatch,
        model,
        lambda model: -torch.log(torch.sigmoid(model(torch.ones(8, 4)) * 0 - 1e4)).mean(),
        Change("clamp", operand="self", values=(1e-6, inf)),
        Change("fused", operand="self", name="logsigmoid"),
    ) == [True, True]


def test_every_execution_of_the_line_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit of a line in a loop changes all its rounds: one round alone would leave the others to fail."""

    def three_times(x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = torch.log(torch.relu(x))
        return x

    change = Change("clamp", operand="self", values=(1e-3, inf))

    assert verdicts(monkeypatch, Applies(three_times), on_ones, change) == [True]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoints_second_run_is_changed_too(monkeypatch: pytest.MonkeyPatch, reentrant: bool) -> None:
    """The forward that a checkpoint runs again in the backward is the same line."""
    from torch.utils.checkpoint import checkpoint

    model = Applies(lambda x: checkpoint(lambda x: torch.sqrt(zeros(x)), x, use_reentrant=reentrant))

    assert verdicts(monkeypatch, model, on_ones, Change("add", operand="self", values=(1e-6,))) == [True]


def test_a_layer_of_a_sequence_is_changed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the line is a library's, the module that is meant is changed: the layer after it keeps its dtype."""
    model = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 1))
    with torch.no_grad():
        model[1].weight.fill_(200.0)

    def loss(model: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return model(torch.full((8, 4), 50.0)).float().mean()

    assert verdicts(monkeypatch, model, loss, Change("dtype", name="float32"), Change("dtype", name="bfloat16")) == [
        True,
        True,
    ]


@pytest.mark.parametrize(("name", "helps"), [("float32", True), ("bfloat16", True), ("float16", None)])
def test_a_half_model_is_tried_in_another_dtype(monkeypatch: pytest.MonkeyPatch, name: str, helps: bool | None) -> None:
    """Weights, batches and casts in the model's code change for the trial alone; in float16 nothing would change."""
    model = Applies(lambda x: torch.exp((x * 0 + 30).half()) @ torch.ones(4, 1).half()).half()
    weight = model.layer.weight
    x = torch.ones(8, 4).half()

    found = verdicts(monkeypatch, model, lambda model: model(x).float().mean(), Change("dtype", name=name), at_op=False)

    assert found == [helps]
    assert model.layer.weight is weight


@pytest.mark.parametrize(("name", "helps"), [("float32", True), ("bfloat16", True)])
def test_autocast_is_tried_in_another_dtype(monkeypatch: pytest.MonkeyPatch, name: str, helps: bool) -> None:
    """float32 is autocast switched off."""

    def loss(model: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return model(torch.ones(4, 4)).float().mean()

    model = Applies(lambda x: torch.ones(4, 4) @ (x * 0 + 1e5))

    assert verdicts(monkeypatch, model, loss, Change("dtype", name=name), at_op=False) == [helps]


def test_the_backward_of_a_custom_function_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of the user's own that runs in the backward is a line like any other."""

    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x)
            return x.sqrt()

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            return gradient / (2 * ctx.saved_tensors[0].sqrt())

    (trial,) = outcomes(
        monkeypatch,
        Applies(lambda x: Root.apply(zeros(x))),
        on_ones,
        Change("clamp", operand="other", values=(1e-3, inf)),
        of_derivative=True,
    )
    assert trial.finite is True


def test_a_row_that_is_masked_as_a_whole_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The softmax inside torch's own attention is reached too."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1] = True

    def loss(model: nn.Module) -> torch.Tensor:
        x = torch.ones(3, 5, 8)
        return model(x, x, x, key_padding_mask=padding)[0].sum()

    assert verdicts(monkeypatch, attention, loss, Change("unmask", operand="self", values=(-1.0,))) == [True]


def test_a_line_of_a_block_is_changed_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit of the line that calls the attention mends all blocks of its kind, not the one that failed first."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
            return x + self.attention(x, x, x, key_padding_mask=padding)[0]

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])

        def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x, padding)
            return x

    padding = torch.tensor([[False] * 5, [True] * 5])

    def loss(model: nn.Module) -> torch.Tensor:
        return model(torch.ones(2, 5, 8), padding).sum()

    assert verdicts(monkeypatch, Blocks(), loss, Change("unmask", operand="self", values=(-1.0,))) == [True]


def test_nothing_to_reduce_counts_as_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss in which every label is ignored is left out, and the step goes on with zero gradients."""
    assert verdicts(
        monkeypatch,
        nn.Linear(4, 3),
        lambda model: F.cross_entropy(model(torch.ones(8, 4)), torch.full((8,), -100)),
        Change("zero"),
    ) == [True]


@pytest.mark.parametrize("field", ["input", "label"])
def test_bad_samples_leave_the_batch(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    """Input and label of a bad sample are both left out."""
    x, y = torch.ones(8, 4), torch.ones(8, 3)
    (x if field == "input" else y)[2, 1] = nan

    def loss(model: nn.Module) -> torch.Tensor:
        return F.mse_loss(model(x), y)

    assert verdicts(monkeypatch, nn.Linear(4, 3), loss, Change("samples")) == [True]


def test_a_batch_of_bad_samples_cannot_be_mended_by_leaving_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so instead of trying."""
    (trial,) = outcomes(
        monkeypatch, nn.Linear(4, 3), lambda model: model(torch.full((8, 4), nan)).sum(), Change("samples")
    )

    assert trial.finite is None
    assert trial.said == "not tried: every sample of the batch is bad"


def test_a_parameter_is_mended_for_the_trial_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy stands in its place during the trial; the parameter itself keeps what it held."""
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.bias[1] = inf
    bias = model.bias

    assert verdicts(monkeypatch, model, on_ones, Change("parameter", values=(0.0,), name="bias")) == [True]
    assert model.bias is bias
    assert bias[1] == inf


def test_an_update_is_tried_with_another_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's eps of 1e-8 is 0 in half precision; a larger one is tried on a copy of the parameter."""
    model = nn.Linear(4, 3).half()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    assert verdicts(
        monkeypatch,
        model,
        lambda model: (model(torch.ones(8, 4).half()).float() * 1e-6).sum(),
        Change("setting", values=(1e-4,), name="eps"),
        Change("setting", values=(1e-5,), name="lr"),
        Change("setting", values=(1.0,), name="nonsense"),
        optimizer=optimizer,
    ) == [True, False, None]


def test_gradients_are_clipped_before_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite gradients whose update overflows are tried clipped."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e20)

    assert verdicts(
        monkeypatch,
        model,
        lambda model: model(torch.full((8, 4), 1e20)).sum(),
        Change("clip", values=(1.0,)),
        Change("setting", values=(1.0,), name="lr"),
        optimizer=optimizer,
    ) == [True, True]


def test_an_operand_in_place_is_changed_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """An op in place still writes into its tensor."""

    def in_place(x: torch.Tensor) -> torch.Tensor:
        y = x * 0
        y.log_()
        return y

    assert verdicts(monkeypatch, Applies(in_place), on_ones, Change("clamp", operand="self", values=(1e-3, inf))) == [
        True
    ]
