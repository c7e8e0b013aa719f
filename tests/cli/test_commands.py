"""What each command prints of a dump."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import nantrace
from nantrace.cli import main
from nantrace.dump import save

from .builders import negative_logarithm, python


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints; it must succeed and say nothing on stderr."""
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


# show


def test_show_prints_the_report(dump: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal it is the plain text of the report."""
    assert printed(capsys, "show", dump) == nantrace.load(dump).text()


def test_show_in_columns(dump: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No line is longer than --width."""
    lines = printed(capsys, "show", dump, "--width", "60").splitlines()

    assert 40 < max(map(len, lines)) <= 60


def test_show_honours_columns(dump: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """COLUMNS says the width where no terminal does."""
    monkeypatch.setenv("COLUMNS", "60")

    assert max(map(len, printed(capsys, "show", dump).splitlines())) <= 60


def test_show_as_json(dump: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A program can read the cause and the whole snapshot."""
    page = json.loads(printed(capsys, "show", dump, "--json"))

    assert page["diagnosis"]["cause"] == "log-domain"
    assert page["snapshot"]["step"] == 3


def test_colour_is_asked_for_by_the_environment(dump: str) -> None:
    """FORCE_COLOR colours a pipe, NO_COLOR takes the colours away, and a pipe has none by itself."""
    plain = python("-m", "nantrace", "show", dump, FORCE_COLOR="", NO_COLOR="")
    forced = python("-m", "nantrace", "show", dump, FORCE_COLOR="1", NO_COLOR="", TERM="xterm")
    refused = python("-m", "nantrace", "show", dump, FORCE_COLOR="1", NO_COLOR="1", TERM="xterm")

    assert "\x1b" not in plain.stdout
    assert "\x1b[1;31m" in forced.stdout or "\x1b[31m" in forced.stdout
    assert "31m" not in refused.stdout


# graph


def test_graph_writes_the_picture(dump: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what it wrote."""
    picture = tmp_path / "x.dot"

    assert printed(capsys, "graph", dump, "-o", str(picture)) == f"wrote {picture}\n"
    assert "digraph" in picture.read_text(encoding="utf-8")


def test_graph_without_an_engine_says_so(
    dump: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nothing here can draw is written as .dot, and stderr says what to install."""
    monkeypatch.setattr("nantrace.rendering.drawing._engines", lambda _: iter(()))

    assert main(["graph", dump, "-o", str(tmp_path / "x.svg")]) == 0
    out, err = capsys.readouterr()
    assert out == f"wrote {tmp_path / 'x.dot'}\n"
    assert err.startswith("nantrace: x.svg could not be drawn")


def test_graph_refuses_a_suffix_it_does_not_know(dump: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The suffix and the allowed ones are named."""
    assert main(["graph", dump, "-o", "x.gif"]) == 2
    assert "suffix '.gif' is none of .svg, .png, .pdf, .dot" in capsys.readouterr().err


# history


def test_history_prints_steps_and_modules(dump: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line per step, one per module with its last values and its extremes, and what was left out."""
    expected = """\
step  loss  grad norm   lr  events
   2   1.5       0.25  0.1       2
   3   inf             0.1       3

module    values of  step  last min  last max  last rms  min ever  max ever
fc        output        3      -2.0       0.5       0.5      -2.0       1.0
fc.inner  output        3       nan       nan       0.5       nan       nan
(root)    output        3         0       3.0       0.5         0       3.0

left out: 2 older steps; watch(..., capacity=N) keeps more than 2
left out: 7 values past the bound on events per step
"""

    assert printed(capsys, "history", dump) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("fc", ["fc", "fc.inner"]), ("fc.*", ["fc.inner"]), ("*", ["fc", "fc.inner", "(root)"]), ("", ["(root)"])],
)
def test_history_of_some_modules(
    pattern: str, expected: list[str], dump: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name means the module and what is in it; wildcards work as in a shell."""
    table = printed(capsys, "history", dump, pattern).split("\n\n")[1].splitlines()

    assert [line.split()[0] for line in table[1:]] == expected


def test_history_of_a_module_that_is_not_there(dump: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names those that are."""
    assert main(["history", dump, "encoder"]) == 2
    assert "no recorded module matches 'encoder'" in capsys.readouterr().err


def test_history_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dump without a ring buffer says so."""
    path = save(nantrace.model.Snapshot(0, "loss", nantrace.model.Symptom("loss")), tmp_path / "a.nantrace")

    assert printed(capsys, "history", path) == "no steps were recorded\n"


# ops


def test_ops_prints_a_table(dump: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of execution, with the number of ops that are not there."""
    expected = """\
id  status     op     module     phase    output
 1  clean      addmm  fc         forward  float32[8, 10]
 2  generated  log    (outside)  loss     float32[8, 10]
 3  clean      relu   (root)     forward  float32[8, 10]
left out: 40 ops of the replay
"""

    assert printed(capsys, "ops", dump) == expected


def test_only_bad_ops(dump: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--bad leaves those that a non-finite value went through."""
    lines = printed(capsys, "ops", dump, "--bad").splitlines()

    assert [line.split()[0] for line in lines[1:-1]] == ["2"]


def test_names_cannot_repaint_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An escape sequence in a mailed dump is spelled out."""
    from dataclasses import replace

    snapshot = negative_logarithm()
    hostile = replace(snapshot.ops[0], module="fc\x1b[2J\n")
    path = save(replace(snapshot, ops=(hostile,)), tmp_path / "a.nantrace")

    assert "\x1b" not in printed(capsys, "ops", path)
