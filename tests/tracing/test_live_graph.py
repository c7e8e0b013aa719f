"""`nantrace.trace`: no watch was on; the live autograd graph with its saved tensors tells what it can, and no more."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

from ..builders import Attention, Mlp

NAN, INF = math.nan, math.inf


def batch() -> Tensor:
    return torch.randn(5, 4)


# Which op

KINDS: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    # what is done with the hidden activations (0 or more): the op, the cause
    "log-of-zero": (torch.log, "log", "log-domain"),
    "division-by-zero": (lambda h: h / h, "div", "zero-division"),
    "exp-overflow": (lambda h: torch.exp(h * 1000), "exp", "overflow"),
    "reciprocal": (lambda h: 1 / h, "reciprocal", "zero-division"),
    "negative-power": (lambda h: h.pow(-1), "pow", "zero-division"),
    "fractional-power": (lambda h: (h - 9).pow(0.5), "pow", "pow-domain"),
    "arc-cosine": (lambda h: torch.acos(h + 1.5), "acos", "domain"),
    "masked-softmax": (lambda h: h.masked_fill(h > -1, -INF).softmax(-1), "softmax", "masked-softmax"),
    "normalized-zeros": (lambda h: F.normalize(h * 0, eps=0), "div", "zero-division"),
    "inf-before-nan": (lambda h: (h * 2e38) * 50 - (h * 2e38) * 50, "mul", "overflow"),
    "mean-of-nothing": (lambda h: h * h[:0].mean(), "mean", "empty-reduction"),
    "through-views": (lambda h: torch.log(h).t()[:, 1:].reshape(-1)[:5].expand(8, 5).t(), "log", "log-domain"),
    "in-place": (lambda h: torch.log(h - 9).relu_(), "log", "log-domain"),
}


@pytest.mark.parametrize(("fault", "op", "cause"), KINDS.values(), ids=KINDS)
def test_the_op_is_found_from_saved_operands(fault: Callable[[Tensor], Tensor], op: str, cause: str) -> None:
    """The op that made the value of finite operands is named, though many ops later the loss is all that is seen."""
    model = Mlp(fault)

    report = nantrace.trace(model(batch()).square().mean(), model)

    assert (report.origin.op, report.cause, report.phase) == (op, cause, "forward")
    assert report.reproduced is None
    assert report.path[0].name == op
    assert str(report)


def test_the_operands_are_shown() -> None:
    """What the operand held at the failing element is read from the saved tensor."""
    report = nantrace.trace(torch.log(torch.tensor([1.0, 0.0], requires_grad=True)).sum())

    assert report.origin.example.index == (1,)
    assert report.origin.example.operand("self").value == 0
    assert report.confidence == "certain"
    assert report.origin.autograd_node == "LogBackward0"


def test_a_loss_outside_the_model() -> None:
    """What comes after the last op with a parameter, and ends in a scalar, is taken for the loss."""
    model = Mlp()

    report = nantrace.trace(torch.log(model(batch()).softmax(-1) - 1).mean(), model)

    assert (report.phase, report.origin.op, report.origin.module) == ("loss", "log", None)


def test_an_output_that_is_no_scalar() -> None:
    """A model's output can be traced as well as a loss."""
    model = Mlp(torch.log)

    report = nantrace.trace(model(batch()), model)

    assert (report.phase, report.origin.op) == ("forward", "log")


def test_an_unselected_branch_is_not_blamed() -> None:
    """The log under `where` is bad, but another op is what reached the loss."""
    model = Mlp(lambda h: torch.where(h > 0, torch.log(h), h) + (h - h) / (h - h))

    report = nantrace.trace(model(batch()).mean(), model)

    assert report.origin.op == "div"


def test_an_operand_that_is_not_saved_lowers_the_confidence() -> None:
    """`sqrt` saves its result alone: that its operand was negative, and not NaN, is an inference."""
    model = Mlp(lambda h: torch.sqrt(h - 1))

    report = nantrace.trace(model(batch()).mean(), model)

    assert report.origin.op == "sqrt"
    assert report.confidence != "certain"
    assert "not saved" in str(report)


# Where it came from outside


def test_a_bad_input() -> None:
    """A NaN in the batch that the first layer has saved."""
    model, x = Mlp(), batch()
    x[1, 2] = NAN

    report = nantrace.trace(model(x).mean(), model)

    assert (report.phase, report.cause) == ("input", "bad-input")
    assert (report.origin.op, report.origin.module) == ("addmm", "first")
    assert report.snapshot.source_value.index == (1, 2)


def test_a_bad_parameter() -> None:
    """A parameter that is not finite is named."""
    model = Mlp()
    with torch.no_grad():
        model.second.weight[2, 1] = INF

    report = nantrace.trace(model(batch()).mean(), model)

    assert (report.phase, report.cause) == ("parameters", "bad-parameter")
    assert (report.snapshot.source_value.name, report.snapshot.source_value.index) == ("second.weight", (2, 1))
    assert report.origin.module == "second"


def test_a_bad_label_that_was_not_saved() -> None:
    """Nobody saves what is subtracted: that it was bad follows from a finite operand and a bad result."""
    model, target = Mlp(), torch.tensor([1.0, NAN, 2.0])

    report = nantrace.trace((model(batch()) - target).square().mean(), model)

    assert (report.phase, report.origin.op) == ("input", "sub")
    assert report.confidence != "certain"


def test_a_parameter_that_is_bad_itself() -> None:
    """Nothing that autograd knows has made a leaf."""
    parameter = nn.Parameter(torch.tensor([1.0, NAN]))

    report = nantrace.trace(parameter)

    assert (report.phase, report.snapshot.source_value.index) == ("parameters", (1,))


# Gradients


def test_a_bad_gradient_names_the_first_layer_of_the_backward() -> None:
    """From a parameter no graph leads on: the gradients of the others tell how far the backward came."""
    model = Mlp(lambda h: torch.sqrt(h - h))
    model(batch()).mean().backward()

    report = nantrace.trace(model.first.weight, model)

    assert (report.phase, report.origin.module, report.confidence) == ("backward", "first", "undetermined")
    assert "second.weight, which comes before it in the backward, has a finite gradient" in str(report).replace(
        "\n       ", " "
    )
    assert nantrace.trace(model.first.weight.grad, model).origin.module == "first"


def test_a_gradient_with_a_graph_is_walked() -> None:
    """A gradient that `create_graph` has made is a tensor like any other."""
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(x.pow(0.5).sum(), x, create_graph=True)

    report = nantrace.trace(gradient)

    assert report.origin.op == "pow"


# Lines


def test_anomaly_mode_has_kept_the_line() -> None:
    """Where `detect_anomaly` was on in the forward, the graph knows the line."""
    model = Mlp(lambda h: torch.log(h - h))
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        loss = model(batch()).mean()

    source = nantrace.trace(loss, model).origin.source

    assert source.code == "model = Mlp(lambda h: torch.log(h - h))"
    assert source.file == __file__


def test_without_it_no_line_is_invented() -> None:
    """The graph itself holds no lines."""
    assert nantrace.trace(Mlp(torch.log)(batch()).mean()).origin.source is None


# Without a model


def test_without_a_model_there_are_no_modules() -> None:
    """The op is found all the same; where it ran is not known."""
    report = nantrace.trace(Mlp(torch.log)(batch()).mean())

    assert (report.origin.op, report.origin.module) == ("log", None)


def test_a_module_in_between_is_called_a_guess() -> None:
    """Ops with parameters are placed by them; what lies between is under the modules that both share."""
    model = nn.ModuleDict({"block": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))})
    hidden = torch.log(model["block"][1](model["block"][0](batch())))

    report = nantrace.trace(model["block"][2](hidden).mean(), model)

    assert report.origin.module == "block"
    assert "a guess" in str(report)


# Graphs that keep nothing


def test_after_a_backward_only_the_shape_of_the_graph_is_left() -> None:
    """The saved tensors are freed: the one op that can make a NaN is named as a guess, and the report says why."""
    model = Mlp(lambda h: torch.log(h - 1))
    loss = model(batch()).mean()
    loss.backward()

    report = nantrace.trace(loss, model)

    assert report.origin.op == "log"
    assert report.confidence == "undetermined"
    assert "freed" in str(report)


def test_several_ops_that_could_are_listed_and_none_is_blamed() -> None:
    """Without values there is no telling them apart."""
    model = Mlp(lambda h: torch.log(h - 1) / torch.exp(h))
    loss = model(batch()).mean()
    loss.backward()

    report = nantrace.trace(loss, model)

    assert report.origin is None
    assert "log, exp, div" in str(report)


def test_a_checkpoint_is_not_run_again() -> None:
    """Unpacking a checkpoint's tensors would run the model: batch norm's counters would move."""
    from torch.utils.checkpoint import checkpoint

    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    loss = torch.log(checkpoint(model, batch(), use_reentrant=False) * 0 - 1).sum()
    before = model[1].num_batches_tracked.clone()

    report = nantrace.trace(loss, model)

    assert report.origin.op == "log"
    assert torch.equal(model[1].num_batches_tracked, before)


def test_a_deep_graph_needs_no_recursion() -> None:
    """A recurrence of thousands of steps is walked without Python's stack."""
    w = torch.tensor(1.5, requires_grad=True)
    state = w
    for _ in range(5000):
        state = state * w

    report = nantrace.trace(state)

    assert (report.origin.op, report.cause) == ("mul", "overflow")


# Nothing is changed


def test_tracing_changes_nothing() -> None:
    """Gradients, buffers, random streams and the graph are as before: the backward still runs."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    loss = torch.log(model(batch()) - 9).mean()
    state, random = [value.clone() for value in model.state_dict().values()], torch.get_rng_state()

    nantrace.trace(loss, model)

    assert all(torch.equal(a, b) for a, b in zip(state, model.state_dict().values()))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    loss.backward()


@pytest.mark.parametrize("model", [Attention, lambda: nn.LSTM(16, 8, batch_first=True)], ids=["attention", "lstm"])
def test_whole_models(model: Callable[[], nn.Module]) -> None:
    """The log in the loss is found behind layers that save what they like."""
    network = model()
    out = network(torch.randn(2, 5, 16))
    out = out[0] if isinstance(out, tuple) else out

    report = nantrace.trace(torch.log(out - 99).mean(), network)

    assert (report.phase, report.origin.op) == ("loss", "log")


def test_a_report_of_a_trace_can_be_kept(tmp_path: Any) -> None:
    """It is saved, loaded and drawn like any other."""
    report = nantrace.trace(Mlp(torch.log)(batch()).mean())

    path = report.save(tmp_path / "one.nantrace")

    assert nantrace.load(path).text() == report.text()
    assert "step" not in report.text().splitlines()[0]
    assert report.render(tmp_path / "one.dot")


# Misuse


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param((3.0,), "takes a tensor .* not float", id="no-tensor"),
        pytest.param((torch.ones(3),), "all 3 values of the tensor are finite", id="finite"),
        pytest.param((torch.tensor([NAN]),), "no autograd graph leads back from it", id="no-graph"),
        pytest.param((torch.ones(3, dtype=torch.int64),), "int64 cannot hold NaN", id="integers"),
        pytest.param((torch.ones(3, device="meta"),), "meta device", id="meta"),
    ],
)
def test_misuse_is_explained(arguments: tuple[Any, ...], sentence: str) -> None:
    """Every mistake has its sentence, in one error class."""
    with pytest.raises(nantrace.TraceError, match=sentence):
        nantrace.trace(*arguments)


def test_a_model_that_is_none() -> None:
    """The second argument is a module, or nothing."""
    with pytest.raises(nantrace.NotAModuleError, match="must be a torch"):
        nantrace.trace(torch.tensor(NAN, requires_grad=True) * 2, 3)  # type: ignore[arg-type]
