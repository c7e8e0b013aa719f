"""An index out of range: the user's own exception, with an explanation added."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nantrace

from ..builders import Mlp, notes_of


class Words(nn.Module):
    """An embedding of ten words, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids))


class Calls(nn.Module):
    """A model whose inner module calls a function on a table and an index."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.inner = Inner(function)

    def forward(self, index: Tensor) -> Any:
        return self.inner(index)


class Inner(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 5))
        self.function = function

    def forward(self, index: Tensor) -> Any:
        return self.function(self.table, index)


def explained(
    run: Callable[[], object], *models: nn.Module, error: type[Exception] = IndexError
) -> tuple[Exception, nantrace.Report]:
    """The exception that leaves the watched block, and its report."""
    with pytest.raises(error) as raised, nantrace.watch(*models):
        run()
    report = nantrace.report_of(raised.value)
    assert report is not None
    return raised.value, report


def test_an_embedding_index_out_of_range() -> None:
    """The report names the module, the line, the index and the range it had to be in."""
    model = Words()
    _, report = explained(lambda: model(torch.tensor([[1, 2], [10, 3]])), model)

    assert (report.cause, report.confidence, report.phase) == ("indexing", "certain", "forward")
    assert (report.origin.op, report.origin.module, report.origin.module_type) == ("embedding", "words", "Embedding")
    facts = report.snapshot.index
    assert (facts.value, facts.low, facts.high, facts.position, facts.count) == (10, 0, 10, (1, 0), 1)
    assert facts.table_shape == (10, 4)
    assert "self.words(ids)" in report.origin.source.code


def test_the_exception_keeps_its_type_message_and_traceback() -> None:
    """What leaves the block is the user's own exception, from the line that raised it."""
    model = Words()
    with pytest.raises(IndexError) as raised:
        model(torch.tensor([99]))
    plain = raised.value
    error, _ = explained(lambda: model(torch.tensor([99])), model)

    assert type(error) is type(plain)
    assert str(error) == str(plain)
    names = []
    trace = error.__traceback__
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert names[-1] == "embedding"


def test_the_explanation_is_a_note() -> None:
    """The note shows the index and the range where Python prints the exception."""
    model = Words()
    error, _ = explained(lambda: model(torch.tensor([99])), model)

    (note,) = notes_of(error)
    assert "99" in note
    assert "embedding" in note


def test_a_negative_embedding_index() -> None:
    """An embedding takes no negative index."""
    model = Words()
    _, report = explained(lambda: model(torch.tensor([3, -1])), model)

    assert (report.snapshot.index.value, report.snapshot.index.low) == (-1, 0)


INDEXING = [
    pytest.param(lambda t, i: t[i], "index", (7, -6, 6), id="x[idx]"),
    pytest.param(lambda t, i: t[:, i], "index", (7, -5, 5), id="x[:, idx]"),
    pytest.param(lambda t, i: torch.gather(t, 1, i[None]), "gather", (7, 0, 5), id="gather"),
    pytest.param(lambda t, i: torch.index_select(t, 0, i), "index_select", (7, 0, 6), id="index_select"),
    pytest.param(lambda t, i: F.embedding(i, t), "embedding", (7, 0, 6), id="embedding"),
    pytest.param(lambda t, i: t.scatter(1, i[None], 0.0), "scatter", (7, 0, 5), id="scatter"),
    pytest.param(lambda t, i: t.index_add(0, i, t[: len(i)]), "index_add", (7, 0, 6), id="index_add"),
    pytest.param(lambda t, i: torch.take(t, i + 40), "take", (41, -30, 30), id="take"),
]


@pytest.mark.parametrize(("function", "op", "expected"), INDEXING)
def test_indexing_inside_a_module(function: Callable[..., Any], op: str, expected: tuple[int, int, int]) -> None:
    """Every indexing op of a module is found by running the call again."""
    model = Calls(function)
    _, report = explained(lambda: model(torch.tensor([1, 7])), model, error=Exception)

    facts = report.snapshot.index
    assert (report.origin.op, report.origin.module, report.phase) == (op, "inner", "forward")
    assert (facts.value, facts.low, facts.high) == expected
    assert report.reproduced is True


@pytest.mark.parametrize(("function", "op", "expected"), INDEXING)
def test_indexing_in_the_loss(function: Callable[..., Any], op: str, expected: tuple[int, int, int]) -> None:
    """Outside the model the op is seen as it fails: no replay is needed."""
    model = nn.Linear(5, 5)
    _, report = explained(lambda: function(model(torch.randn(6, 5)), torch.tensor([1, 7])), model, error=Exception)

    facts = report.snapshot.index
    assert (report.origin.op, report.origin.module, report.phase) == (op, None, "loss")
    assert (facts.value, facts.low, facts.high) == expected
    assert Path(report.origin.source.file).name == Path(__file__).name


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class(label: int) -> None:
    """A label outside the classes is named with its position."""
    model = Mlp()
    target = torch.tensor([0, 1, label, 2])
    _, report = explained(lambda: F.cross_entropy(model(torch.randn(4, 4)), target), model)

    facts = report.snapshot.index
    assert (report.origin.op, report.origin.module, report.phase) == ("nll_loss", None, "loss")
    assert (facts.operand, facts.value, facts.position, facts.low, facts.high) == ("target", label, (2,), 0, 3)


def test_an_ignored_label_is_not_accused() -> None:
    """The bad label is named, not one that is ignored."""
    model = Mlp()
    target = torch.tensor([-100, 1, 7, 2])
    _, report = explained(lambda: F.cross_entropy(model(torch.randn(4, 4)), target), model)

    assert (report.snapshot.index.value, report.snapshot.index.count) == (7, 1)


def test_keyword_inputs_of_the_failing_call() -> None:
    """A call that was made with keywords is run again with them."""

    class Model(Words):
        def forward(self, *, ids: Tensor) -> Tensor:
            return super().forward(ids)

    model = Model()
    _, report = explained(lambda: model(ids=torch.tensor([4, 10])), model)

    assert (report.origin.module, report.snapshot.index.value) == ("words", 10)


def test_in_the_middle_of_a_training() -> None:
    """The step is the one that crashed."""
    model = Words()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def run() -> None:
        for step in range(5):
            optimizer.zero_grad()
            model(torch.tensor([step, 12 if step == 3 else 2])).sum().backward()
            optimizer.step()

    _, report = explained(run, model)

    assert report.step == 3
    assert report.snapshot.index.value == 12


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), RuntimeError("shapes"), IndexError("list index out of range"), KeyError("k"), StopIteration()],
)
def test_other_exceptions_pass_unchanged(error: Exception) -> None:
    """An exception that nantrace cannot explain gets no note and no report."""
    model = Mlp()
    with pytest.raises(type(error)) as raised, nantrace.watch(model):
        model(torch.randn(2, 4)).sum().backward()
        raise error

    assert raised.value is error
    assert not hasattr(error, "__notes__")
    assert nantrace.report_of(error) is None


def test_an_exception_inside_the_model_that_is_no_index() -> None:
    """A shape error inside the model passes unchanged too."""
    model = Mlp()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as raised, nantrace.watch(model):
        model(torch.randn(2, 5))

    assert not hasattr(raised.value, "__notes__")
    assert nantrace.report_of(raised.value) is None


def test_a_caught_index_error_is_forgotten() -> None:
    """An IndexError that the user handled has nothing to do with a later exception."""
    model = Words()
    with pytest.raises(ValueError, match="later") as raised, nantrace.watch(model):
        with pytest.raises(IndexError):
            model(torch.tensor([99]))
        raise ValueError("later")

    assert nantrace.report_of(raised.value) is None


def test_an_index_error_outside_the_block_is_not_ours() -> None:
    """Nothing is added to an exception that was raised before or after the block."""
    model = Words()
    with nantrace.watch(model):
        model(torch.tensor([1]))
    with pytest.raises(IndexError) as raised:
        model(torch.tensor([99]))

    assert nantrace.report_of(raised.value) is None
