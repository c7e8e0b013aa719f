"""The demo fails by itself, explains why, and trains on with the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

import nantrace
from nantrace.cli import main

from ..builders import kept
from .builders import python


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    """It finds the log of the hand-written loss, in the file that it names, and leaves what it promises."""
    pytest.importorskip("sklearn")
    folder = tmp_path / "demo"

    ended = python("-m", "nantrace", "demo", "--dir", str(folder))

    assert (ended.returncode, ended.stderr) == (0, "")
    (dump,) = folder.glob("*.nantrace")
    assert {path.name for path in folder.iterdir()} >= {"train.py", dump.name}
    assert list(folder.glob("graph.*"))
    report = nantrace.load(dump)
    assert report.origin is not None
    assert report.origin.source is not None
    assert (report.cause, report.phase, report.origin.op) == (nantrace.Cause.LOG_DOMAIN, "loss", "log")
    assert report.origin.source.file == str((folder / "train.py").resolve())
    assert report.origin.source.expression == kept("torch.log(1 - p)")
    assert report.step > 100  # healthy before
    assert report.text() in ended.stdout
    assert "all 38,282 weights are finite" in ended.stdout
    assert "With the loss computed from the logits it trains on" in ended.stdout
    assert f"nantrace show {dump}" in ended.stdout


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence says what to install; nothing is written."""
    monkeypatch.setattr("nantrace.cli.demo.find_spec", lambda _: None)

    assert main(["demo", "--dir", "never-made"]) == 2
    assert not Path("never-made").exists()
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "pip install nantrace[demo]" in err


def test_another_program_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A train.py of the user's own is left as it is."""
    pytest.importorskip("sklearn")
    (tmp_path / "train.py").write_text("mine = True\n")

    assert main(["demo", "--dir", str(tmp_path)]) == 2
    assert "train.py is another program; remove it, or choose another folder" in capsys.readouterr().err
    assert (tmp_path / "train.py").read_text() == "mine = True\n"


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The path, the reason, and the option that changes it."""
    pytest.importorskip("sklearn")
    (tmp_path / "file").write_text("")

    assert main(["demo", "--dir", str(tmp_path / "file" / "demo")]) == 2
    assert "choose another folder with --dir" in capsys.readouterr().err
