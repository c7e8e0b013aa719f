"""Opening a dump needs no torch and no networkx, and answers at once."""

from __future__ import annotations

import json
import os

import pytest

from .builders import python

_HEAVY = ("torch", "networkx", "numpy", "safetensors")


def heavy_modules_of(code: str) -> list[str]:
    """Which heavy packages a child Python has imported after running this code."""
    ended = python("-c", f"{code}\nimport json, sys\nprint(json.dumps([m for m in {_HEAVY!r} if m in sys.modules]))")
    found: list[str] = json.loads(ended.stdout.splitlines()[-1])
    return found


def running(*arguments: str) -> str:
    """Code that runs a command and goes on."""
    return f"from nantrace.cli import main\ntry:\n    main({list(arguments)!r})\nexcept SystemExit:\n    pass"


@pytest.mark.parametrize("command", ["show", "history", "ops"])
def test_reading_a_dump_imports_nothing_heavy(command: str, dump: str) -> None:
    """A dump opens on a machine that has no torch."""
    assert heavy_modules_of(running(command, dump)) == []


def test_the_json_form_imports_nothing_heavy(dump: str) -> None:
    """Nor does the form for programs."""
    assert heavy_modules_of(running("show", "--json", dump)) == []


@pytest.mark.parametrize("form", [(), ("--json",), ("--example",), ("--fixed",)])
def test_explaining_imports_nothing_heavy(form: tuple[str, ...]) -> None:
    """A cause is explained on a machine that has no torch."""
    assert heavy_modules_of(running("explain", "overflow", *form)) == []


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("demo", "--help"), ("bench", "--help")])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    """Help is for people who wait for it."""
    assert heavy_modules_of(running(*arguments)) == []


def test_the_check_can_fail() -> None:
    """The tests above would notice an import."""
    assert heavy_modules_of("import networkx") == ["networkx"]
    assert heavy_modules_of("import nantrace; nantrace.watch")[0] == "torch"


@pytest.mark.skipif(os.name != "posix", reason="only POSIX counts the processor time of a child")
@pytest.mark.parametrize("arguments", [["--help"], ["show"], ["explain"], ["explain", "overflow"]])
def test_the_answer_comes_at_once(arguments: list[str], dump: str) -> None:
    """Within 0.4 s of processor time, the best of some runs: other programs share the machine."""
    if arguments == ["show"]:
        arguments = ["show", dump]

    assert min(_processor_s(*arguments) for _ in range(3)) < 0.4


def _processor_s(*arguments: str) -> float:
    before = os.times()
    python("-m", "nantrace", *arguments)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system
