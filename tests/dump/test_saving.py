"""A dump is written whole or not at all, and a failure says what to do."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from nantrace import DumpError
from nantrace.dump import read_snapshot, save
from nantrace.model import Snapshot

from .builders import event, small


def test_missing_folders_are_made(tmp_path: Path) -> None:
    """The path comes back, and nothing else is left in the new folder."""
    path = tmp_path / "runs" / "today" / "a.nantrace"

    assert save(small(), path) == str(path)
    assert os.listdir(path.parent) == ["a.nantrace"]


def test_any_name_is_accepted(tmp_path: Path) -> None:
    """The suffix is a custom, not a rule."""
    assert read_snapshot(save(small(), str(tmp_path / "crash of monday"))) == small()


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    """A place that cannot be written is named with its reason."""
    (tmp_path / "file").write_text("")

    with pytest.raises(DumpError, match=r"cannot write the dump '.*a\.nantrace': .+; choose a folder"):
        save(small(), tmp_path / "file" / "a.nantrace")


def test_a_folder_in_the_place_of_the_file_leaves_no_half_file(tmp_path: Path) -> None:
    """What was written under the temporary name is removed when it cannot get its own."""
    (tmp_path / "a.nantrace").mkdir()

    with pytest.raises(DumpError, match="cannot write the dump"):
        save(small(), tmp_path / "a.nantrace")
    assert os.listdir(tmp_path) == ["a.nantrace"]


def test_an_interrupted_save_keeps_the_older_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C (or a full disk) while writing leaves the file that was there, and no other."""
    path = save(small(), tmp_path / "a.nantrace")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(replace(small(), step=2), path)

    assert os.listdir(tmp_path) == ["a.nantrace"]
    assert read_snapshot(path).step == 0


def test_a_path_that_no_system_has(tmp_path: Path) -> None:
    """A null byte in the path is a `DumpError` like every other bad place."""
    with pytest.raises(DumpError, match="cannot write the dump"):
        save(small(), f"{tmp_path}/a\0b")


@pytest.mark.parametrize(
    ("snapshot", "where"),
    [
        (replace(small(), history=replace(small().history, events=(event(step=2**70),))), "an event's step"),
        (replace(small(), phase=None, path=("a",)), r"path.*'a'"),  # type: ignore[arg-type]
    ],
    ids=["event", "type"],
)
def test_a_snapshot_that_does_not_fit_names_the_field(snapshot: Snapshot, where: str, tmp_path: Path) -> None:
    """A value that the format cannot hold is refused when it is saved, not when it is needed."""
    with pytest.raises(DumpError, match=where):
        save(snapshot, tmp_path / "a.nantrace")
    assert os.listdir(tmp_path) == []
