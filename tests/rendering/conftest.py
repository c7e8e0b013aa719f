"""Golden files: compared by default, rewritten when NANTRACE_GOLDEN=refresh is set."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """A check that a text equals the golden file of that name."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("NANTRACE_GOLDEN") == "refresh":
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"no {path}; write it with NANTRACE_GOLDEN=refresh and read what it says"
        assert text == path.read_text(encoding="utf-8")

    return check


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without Graphviz: an empty PATH, and no pygraphviz."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("nantrace.rendering.drawing.find_spec", lambda name: None)
