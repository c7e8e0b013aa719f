"""What an op is called, whose it is, and which line of the user's called it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace
from nantrace.tracing.schema import plain_name

from ..builders import caught, kept, report_on, sgd

HERE = Path(__file__).name


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("aten::log", "log"),
        ("aten::log_", "log"),
        ("aten::_softmax", "softmax"),
        ("aten::_log_softmax", "log_softmax"),
        ("aten::native_layer_norm", "layer_norm"),
        ("aten::native_layer_norm_backward", "layer_norm"),
        ("aten::nll_loss_forward", "nll_loss"),
        ("aten::nll_loss2d_forward", "nll_loss2d"),
        ("aten::_to_copy", "to_copy"),
        ("aten::addmm", "addmm"),
        ("aten::index.Tensor", "index"),
        ("aten::_softmax_backward_data", "softmax"),
        ("aten::max_pool2d_with_indices", "max_pool2d"),
        ("aten::_native_batch_norm_legit", "batch_norm_legit"),
        ("aten::div.Tensor", "div"),
        ("aten::_foreach_add_", "add"),
    ],
)
def test_the_plain_name_of_an_op(raw: str, plain: str) -> None:
    """ATen's name without namespace, overload, underscores, `native_`, `_forward` and `_backward`."""
    assert plain_name(raw) == plain


def train(model: nn.Module, *args: Any, loss: Any = torch.sum) -> nantrace.Report:
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            loss(model(*args)).backward()
            optimizer.step()

    return caught(run)


class Scale(nn.Module):
    """A small module with a line of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor) -> Tensor:
        strength = torch.log(self.gain)
        return x * strength


class Nested(nn.Module):
    """Modules in modules."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Sequential(nn.ReLU(), Scale())])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_the_innermost_module_is_named() -> None:
    """The path of the innermost module, its type, and the line inside it."""
    report = train(Nested(), torch.randn(3, 2))

    origin = report.origin
    assert (origin.op, origin.module, origin.module_type) == ("log", "blocks.1.1", "Scale")
    assert (Path(origin.source.file).name, origin.source.function) == (HERE, "forward")
    assert origin.source.code == "strength = torch.log(self.gain)"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="sub-expressions need Python 3.11")
def test_the_exact_sub_expression() -> None:
    """Of a line with several calls, the one that ran."""
    report = report_on(lambda w: torch.exp(w) + torch.log(w - 5) + torch.sqrt(w), [1.0])

    assert report.origin.source.expression == kept("torch.log(w - 5)")


def test_a_module_of_torch_alone_falls_back_to_the_call() -> None:
    """Where no line of the user's lies below the entry call, the line that made the call is named."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1))
    with torch.no_grad():
        model[0].weight.fill_(1e38)
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            out = model(torch.full((2, 2), 100.0))
            out.sum().backward()
            optimizer.step()

    report = caught(run)

    assert (report.origin.op, report.origin.module, report.origin.module_type) == ("addmm", "0", "Linear")
    assert report.origin.source.code == "out = model(torch.full((2, 2), 100.0))"


def test_an_op_of_the_loss_has_no_module() -> None:
    """Outside every watched module: module None, and the line of the loss."""

    def my_loss(out: Tensor) -> Tensor:
        bad = torch.log(out - 1e6)
        return bad.mean()

    report = train(nn.Linear(2, 2), torch.randn(3, 2), loss=my_loss)

    assert (report.phase, report.origin.module, report.origin.module_type) == ("loss", None, None)
    assert (report.origin.source.code, report.origin.source.function) == ("bad = torch.log(out - 1e6)", "my_loss")


def test_a_functional_loss_of_torch_names_the_users_line() -> None:
    """A loss function of torch is named at the user's line that called it."""

    def my_loss(out: Tensor) -> Tensor:
        return F.cross_entropy(out, torch.full((3,), -100))

    report = train(nn.Linear(2, 2), torch.randn(3, 2), loss=my_loss)

    assert (report.origin.op, report.cause) == ("nll_loss", "empty-reduction")
    assert report.origin.source.code == "return F.cross_entropy(out, torch.full((3,), -100))"


def test_a_loss_module_that_is_not_watched_is_loss() -> None:
    """A criterion that is a module of its own, not watched, is glue."""

    class Criterion(nn.Module):
        def forward(self, out: Tensor) -> Tensor:
            return torch.log(out - 1e6).mean()

    report = train(nn.Linear(2, 2), torch.randn(3, 2), loss=Criterion())

    assert (report.phase, report.origin.module) == ("loss", None)
    assert report.origin.source.code == "return torch.log(out - 1e6).mean()"


def test_a_method_called_without_call_is_loss() -> None:
    """`model.loss(x)`, called without `__call__`, runs outside every entry call."""

    class Model(nn.Linear):
        def loss(self, out: Tensor) -> Tensor:
            return torch.log(out - 1e6).mean()

    model = Model(2, 2)
    report = train(model, torch.randn(3, 2), loss=lambda out: model.loss(out))

    assert (report.phase, report.origin.module) == ("loss", None)
    assert report.origin.source.function == "loss"


def test_the_stack_of_a_line_leaves_torch_out() -> None:
    """From the outermost frame to the line: the user's frames, none of torch's."""
    report = train(Nested(), torch.randn(3, 2))

    names = [frame.function for frame in report.origin.source.stack]
    assert names[-1] == "forward"
    assert "run" in names
    assert not any("site-packages/torch/" in frame.file for frame in report.origin.source.stack)


def test_the_lines_around_the_line_are_kept() -> None:
    """A dump that is read elsewhere still shows the code."""
    report = train(Nested(), torch.randn(3, 2))

    lines = dict(report.origin.source.context)
    assert "strength = torch.log(self.gain)" in lines[report.origin.source.line]
    assert len(lines) >= 5


def test_operands_say_whose_they_are() -> None:
    """A parameter, and an argument of the call, are labelled."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor([0.0, 1.0]))

        def forward(self, pixels: Tensor) -> Tensor:
            return pixels / self.gain

    report = train(Model(), torch.ones(3, 2))

    labels = {summary.name: summary.label for summary in report.origin.inputs}
    assert labels == {"self": "input pixels", "other": "parameter gain"}


def test_two_watched_models_are_told_apart_by_type() -> None:
    """With several models the owner of the op is named."""
    first, second = nn.Linear(2, 2), Nested()
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], 0.1)

    def run() -> None:
        with nantrace.watch(first, second):
            second(first(torch.randn(3, 2))).sum().backward()
            optimizer.step()

    report = caught(run)

    assert (report.origin.op, report.origin.module, report.origin.module_type) == ("log", "blocks.1.1", "Scale")


def test_a_module_added_after_the_start_is_known() -> None:
    """A module that was put in while the watch ran has its path too."""
    model = nn.Sequential(nn.Linear(2, 2))
    optimizer = sgd(model)

    def run() -> None:
        with nantrace.watch(model):
            model(torch.randn(3, 2)).sum().backward()
            optimizer.step()
            model.append(Scale())
            model(torch.randn(3, 2)).sum().backward()
            optimizer.step()

    report = caught(run)

    assert (report.origin.op, report.origin.module) == ("log", "1")
