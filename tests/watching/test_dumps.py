"""`dump_dir`: one dump per anomaly, and never a lost report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import nantrace

from ..builders import Mlp, caught, sgd


def spoiled(model: nn.Module, steps: tuple[int, ...], **options: object) -> nantrace.Tracer:
    """Train; in these steps the loss is the logarithm of 0, and the weights are put back afterwards."""
    optimizer = sgd(model, 0.01)
    with nantrace.watch(model, **options) as tracer:
        for step in range(8):
            kept = {name: value.clone() for name, value in model.state_dict().items()}
            optimizer.zero_grad()
            loss = model(torch.randn(5, 4)).square().mean()
            if step in steps:
                loss = loss + torch.log(loss * 0)
            loss.backward()
            optimizer.step()
            model.load_state_dict(kept)
    return tracer


def test_an_anomaly_is_dumped(tmp_path: Path) -> None:
    """The folder gets a file that `load` opens as an equal report."""
    report = caught(lambda: spoiled(Mlp(), (3,), dump_dir=tmp_path / "dumps"))
    (path,) = (tmp_path / "dumps").iterdir()
    loaded = nantrace.load(path)

    assert repr(loaded.snapshot) == repr(report.snapshot)  # a NaN in the history equals no other
    assert loaded.text() == report.text()
    assert (loaded.step, loaded.phase, loaded.cause) == (3, "loss", "log-domain")
    assert loaded.origin == report.origin


def test_the_name_of_a_dump_says_what_it_is(tmp_path: Path) -> None:
    """Step, cause and rank stand in the name."""
    caught(lambda: spoiled(Mlp(), (3,), dump_dir=tmp_path))

    assert [path.name for path in tmp_path.iterdir()] == ["step000003-log-domain-rank0.nantrace"]


def test_one_dump_per_anomaly(tmp_path: Path) -> None:
    """Each anomaly has its own file, and the tracer lists them."""
    with pytest.warns(nantrace.NumericalAnomalyWarning):
        tracer = spoiled(Mlp(), (1, 5), dump_dir=tmp_path, on_anomaly="warn")

    assert sorted(tracer.dumps) == sorted(str(path) for path in tmp_path.iterdir())
    assert [nantrace.load(path).step for path in tracer.dumps] == [1, 5]


def test_a_dump_is_not_overwritten(tmp_path: Path) -> None:
    """Two runs into the same folder keep both dumps."""
    for _ in range(2):
        caught(lambda: spoiled(Mlp(), (3,), dump_dir=tmp_path))

    assert len(list(tmp_path.iterdir())) == 2


def test_no_anomaly_no_file(tmp_path: Path) -> None:
    """A healthy run writes nothing, not even the folder."""
    spoiled(Mlp(), (), dump_dir=tmp_path / "dumps")

    assert not (tmp_path / "dumps").exists()


def test_a_string_is_a_folder(tmp_path: Path) -> None:
    """The folder may be given as a string."""
    caught(lambda: spoiled(Mlp(), (3,), dump_dir=str(tmp_path)))

    assert len(list(tmp_path.iterdir())) == 1


def test_an_unwritable_folder_costs_only_the_file(tmp_path: Path) -> None:
    """Where the dump cannot be written there is a warning, and the anomaly is raised all the same."""
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.warns(nantrace.NumericalAnomalyWarning, match="could not write its dump"):
        report = caught(lambda: spoiled(Mlp(), (3,), dump_dir=tmp_path / "taken"))

    assert report.origin.op == "log"


def test_an_explained_exception_is_dumped(tmp_path: Path) -> None:
    """A crash that nantrace can explain leaves a dump too."""
    model = nn.Embedding(4, 2)
    with pytest.raises(IndexError), nantrace.watch(model, dump_dir=tmp_path):
        model(torch.tensor([1, 9]))
    (path,) = tmp_path.iterdir()

    assert nantrace.load(path).cause == "indexing"
