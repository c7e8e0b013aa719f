"""One dump for the commands to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from nantrace.dump import save

from .builders import negative_logarithm


@pytest.fixture
def dump(tmp_path: Path) -> str:
    """A dump of a log of zero in the loss, with three recorded steps."""
    return save(negative_logarithm(), tmp_path / "a.nantrace")


@pytest.fixture(autouse=True)
def _no_width_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """COLUMNS of whoever runs the tests (a terminal, a parallel run) says nothing of what a pipe gets."""
    monkeypatch.delenv("COLUMNS", raising=False)
