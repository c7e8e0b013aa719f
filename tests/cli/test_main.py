"""Exit codes, messages, and what happens at the ends of pipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import nantrace
from nantrace.cli import COMMANDS, main

from .builders import python


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints name and version and ends with 0."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"nantrace {nantrace.__version__}\n"


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command stands in the help with the first line of its docstring."""
    with pytest.raises(SystemExit):
        main(["--help"])

    shown = " ".join(capsys.readouterr().out.split())
    for command in COMMANDS:
        first_line = (command.__doc__ or "").splitlines()[0].rstrip(".")
        assert f"{command.__name__.rpartition('.')[2]} {first_line}" in shown


@pytest.mark.parametrize("command", ["show", "history", "ops", "graph"])
def test_an_unreadable_file(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line on stderr, nothing on stdout."""
    more = ["-o", str(tmp_path / "x.dot")] if command == "graph" else []

    code = main([command, str(tmp_path / "none.nantrace"), *more])

    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("nantrace: there is no dump ")


@pytest.mark.parametrize("arguments", [[], ["fly"], ["show"], ["graph", "x"], ["show", "x", "--width", "ten"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and the usage on stderr."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert "usage: nantrace" in err


def test_python_m_nantrace(dump: str) -> None:
    """`python -m nantrace` is the command, traceback-free in its failures."""
    shown = python("-m", "nantrace", "show", dump)
    failed = python("-m", "nantrace", "show", dump + "x")

    assert (shown.returncode, shown.stderr) == (0, "")
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr


def test_a_reader_that_goes_away_is_no_error(dump: str) -> None:
    """`nantrace ops DUMP | head` says nothing about its broken pipe."""
    code = (
        "import os, sys; reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1);"
        f"from nantrace.cli import main; sys.exit(main(['ops', {dump!r}]))"
    )

    ended = python("-c", code)

    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_terminal_that_lacks_characters(dump: str) -> None:
    """What the encoding cannot show is spelled, not a crash."""
    ended = python("-m", "nantrace", "history", dump, "\u03b2*", PYTHONIOENCODING="ascii", PYTHONUTF8="1")

    assert ended.returncode == 2
    assert ended.stderr.startswith("nantrace: no recorded module matches '\\u03b2*'")


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_below_stdout(dump: str) -> None:
    """Output that cannot be written is an error with its reason."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "nantrace", "show", dump]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert ended.returncode == 2
    assert "No space left on device" in ended.stderr
