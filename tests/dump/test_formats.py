"""A dump of every format version that was ever written can still be opened.

Each file in formats/ was written by the first nantrace with that version, and is never written anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import nantrace
from nantrace.dump.schema import SCHEMA_VERSION

FILES = sorted(Path(__file__).with_name("formats").glob("*.zip"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_old_dump_opens(path: Path) -> None:
    """What it said is still there, and it is diagnosed with today's rules."""
    report = nantrace.load(path)

    assert (report.step, report.phase) == (1, "loss")
    assert report.origin is not None
    assert (report.origin.op, report.origin.module) == ("log", "fc")
    assert [op.name for op in report.snapshot.ops] == ["mm", "log"]
    assert [event.module for event in report.history] == ["fc", "fc.\u03b2", ""]
    assert report.text()


def test_every_version_has_a_file() -> None:
    """A new version must leave a file behind for those who come later."""
    assert f"{SCHEMA_VERSION[0]}.{SCHEMA_VERSION[1]}" in {path.stem for path in FILES}
