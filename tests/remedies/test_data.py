"""What came in bad: the remedy stands in the line that reads it, or in the line that made it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nantrace.model import Change

from .applying import in_place, report_of, trains_on, written

_TEXT = """
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {init}

    def forward(self, x, *rest):
        {forward}


def make():
    torch.manual_seed(0)
    model = Net()
    optimizer = {optimizer}

    def step(i):
        x, y = torch.randn(6, 4){half}, torch.randn(6, 3)
        ids = torch.tensor([0, 1, 2, 3, 4, 0])
        {spoil}
        optimizer.zero_grad()
        {loss}
        loss.backward()
        optimizer.step()
        return loss

    return model, optimizer, step, 4
"""


def program(
    *,
    init: str = "self.fc = nn.Linear(4, 3)",
    forward: str = "return self.fc(x)",
    optimizer: str = "torch.optim.SGD(model.parameters(), lr=1e-3)",
    spoil: str = "pass",
    loss: str = "loss = F.mse_loss(model(x), y)",
    half: str = "",
) -> str:
    """A small training loop in which `spoil` may spoil the batch x, y, ids of step i."""
    return _TEXT.format(init=init, forward=forward, optimizer=optimizer, spoil=spoil, loss=loss, half=half)


@pytest.fixture
def empty_is_nan() -> Iterator[None]:
    """torch.empty is filled with NaN, as it may happen to be."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


MISSING = "y[2, 1] = float('nan') if i == 1 else 0.0"


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("loss = F.mse_loss(model(x), y)", "keep = y.isfinite()\nloss = F.mse_loss(model(x)[keep], y[keep])"),
        ("out = model(x); loss = ((out - y) ** 2).mean()", None),
        (
            "loss = ((model(x) - y) ** 2).mean()",
            "keep = y.isfinite()\nloss = ((model(x)[keep] - y[keep]) ** 2).mean()",
        ),
    ],
    ids=["loss", "two statements", "by hand"],
)
def test_missing_labels_leave_the_loss(loss: str, expected: str | None, tmp_path: Path) -> None:
    """The elements that have a label are selected before the loss, by torch's function or by hand."""
    path = written(tmp_path, program(spoil=MISSING, loss=loss))
    report = report_of(path)
    first = report.remedies[0]

    assert (report.cause, first.verified) == ("bad-label", True)
    assert first.change is not None and first.change.act == "select"
    if expected is not None:
        assert first.code == expected
    assert trains_on(path, first)


def test_missing_labels_agree_where_the_terms_stay_apart(tmp_path: Path) -> None:
    """A mask that comes after the loss has the shape of all elements: the missing ones stay, without a loss."""
    path = written(
        tmp_path,
        program(
            spoil=MISSING + "; out = model(x)",
            loss='terms = F.mse_loss(out, y, reduction="none"); loss = (terms * torch.ones(6, 3)).mean()',
        ),
    )
    first = report_of(path).remedies[0]

    assert first.code is not None and "F.mse_loss(out, torch.where(y.isfinite(), y, out.detach())" in first.code
    assert first.verified is True
    assert trains_on(path, first)


def test_bad_samples_leave_the_batch(tmp_path: Path) -> None:
    """Sample and target go together, in the line that calls the model inside the loss; or the value is filled."""
    path = written(tmp_path, program(spoil="x[3, 0] = float('inf') if i == 1 else 0.0"))
    samples, fill, *_ = report_of(path).remedies

    assert samples.code == ("keep = x.isfinite().flatten(1).all(dim=1)\nloss = F.mse_loss(model(x[keep]), y[keep])")
    assert fill.code == "return self.fc(x.nan_to_num(0.0, 0.0, 0.0))"
    for remedy in (samples, fill):
        assert remedy.verified is True
        assert trains_on(path, remedy)


@pytest.mark.usefixtures("empty_is_nan")
@pytest.mark.parametrize(
    ("init", "forward", "expected"),
    [
        (
            "self.w = nn.Parameter(torch.empty(4, 3))",
            "return x @ self.w",
            "self.w = nn.Parameter(0.02 * torch.randn(4, 3))",
        ),
        (
            "self.b = nn.Parameter(torch.empty(4))",
            "return (x + self.b)[:, :3]",
            "self.b = nn.Parameter(torch.zeros(4))",
        ),
        (
            'self.fc = nn.Linear(4, 3); self.register_buffer("mean", torch.empty(4))',
            "return self.fc(x - self.mean)",
            'self.fc = nn.Linear(4, 3); self.register_buffer("mean", torch.zeros(4))',
        ),
    ],
    ids=["matrix", "bias", "buffer"],
)  # fmt: skip
def test_what_was_never_initialised_is_initialised_where_it_was_made(
    init: str, forward: str, expected: str, tmp_path: Path
) -> None:
    """torch.empty gives way to random values for a matrix, to zeros for anything else."""
    path = written(tmp_path, program(init=init, forward=forward))
    first = report_of(path).remedies[0]

    assert (first.code, first.verified) == (expected, True)
    assert trains_on(path, first)


def test_a_mark_for_no_label_becomes_ignore_index(tmp_path: Path) -> None:
    """-1 among the classes is no class."""
    path = written(tmp_path, program(spoil="ids = ids % 3; ids[2] = -1", loss="loss = F.cross_entropy(model(x), ids)"))
    first = report_of(path).remedies[0]

    assert first.code == "loss = F.cross_entropy(model(x), ids, ignore_index=-1)"
    assert trains_on(path, first)


@pytest.mark.parametrize(("least", "shifted"), [(1, True), (0, False)], ids=["from 1", "from 0"])
def test_labels_are_shifted_only_where_none_is_0(least: int, shifted: bool, tmp_path: Path) -> None:
    """Labels 1..3 for 3 classes count from 1; labels 0..3 need a fourth class."""
    path = written(
        tmp_path,
        program(spoil=f"ids = torch.tensor([3, 1, 2, 3, 2, {least}])", loss="loss = F.cross_entropy(model(x), ids)"),
    )
    report = report_of(path)

    assert bool(in_place(report)) is shifted
    if shifted:
        assert report.remedies[0].code == "loss = F.cross_entropy(model(x), ids - 1)"
        assert trains_on(path, report.remedies[0])


def test_a_table_that_is_too_short_is_made_longer_where_it_was_made(tmp_path: Path) -> None:
    """The line of the module's class that made the embedding gets the rows that the batch asks for."""
    path = written(
        tmp_path,
        program(
            init="self.emb = nn.Embedding(3, 4); self.fc = nn.Linear(4, 3)",
            forward="return self.fc(self.emb(x))",
            loss="loss = model(ids).mean()",
        ),
    )
    longer, clamped, *_ = report_of(path).remedies

    assert longer.code == "self.emb = nn.Embedding(5, 4); self.fc = nn.Linear(4, 3)"
    assert clamped.code == "return self.fc(self.emb(x.clamp(0, 2)))"
    for remedy in (longer, clamped):
        assert trains_on(path, remedy)


def test_an_index_that_wraps_is_told_as_it_was_given(tmp_path: Path) -> None:
    """x[-1] reads the last row: the report names both."""
    path = written(
        tmp_path,
        program(
            init='self.fc = nn.Linear(4, 3); self.register_buffer("bank", torch.tensor([0.0, 1.0, float("nan")]))',
            forward="return self.fc(x) + self.bank[rest[0]][:, None]",
            loss="loss = model(x, torch.tensor([0, 1, 0, 1, -1, 0])).mean()",
        ),
    )

    assert report_of(path).evidence[0] == "index -1 (which wraps to row 2) reads bank[-1] = nan"


@pytest.mark.parametrize(
    ("optimizer", "half", "expected"),
    [
        (
            "torch.optim.Adam(model.half().parameters())",
            ".half()",
            "torch.optim.Adam(model.half().parameters(), eps=1e-4)",
        ),
        ("torch.optim.RMSprop(model.parameters(), eps=0)", "", "torch.optim.RMSprop(model.parameters(), eps=1e-8)"),
    ],
    ids=["added", "exchanged"],
)
def test_an_optimizers_eps_is_written_where_it_is_constructed(
    optimizer: str, half: str, expected: str, tmp_path: Path
) -> None:
    """The setting is exchanged, or added, in the one line that constructs the optimizer."""
    text = program(optimizer=optimizer, spoil="x[:, 1] = 0", half=half, loss="loss = model(x).float().pow(2).mean()")
    path = written(tmp_path, text)
    first = report_of(path).remedies[0]

    assert first.code == f"optimizer = {expected}"
    assert first.change == Change("setting", name="eps", values=(float(expected[-5:-1]),))
    assert first.verified is True
    assert trains_on(path, first)
