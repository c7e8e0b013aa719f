"""Every file that is no sound dump is a `DumpError` that names the file and says what to do."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import nantrace
from nantrace import DumpError
from nantrace.dump import read_snapshot, save

from .builders import edited, full, members_of, put_together


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """A sound dump."""
    return Path(save(full(), tmp_path / "sound.nantrace"))


def refusal(path: Path | str) -> str:
    """The message that opening this file gives."""
    with pytest.raises(DumpError) as refused:
        nantrace.load(path)
    assert str(path) in str(refused.value).replace("\\\\", "\\")
    return str(refused.value)


def test_a_missing_file(tmp_path: Path) -> None:
    """The message says that there is none, and to check the path."""
    assert "there is no dump" in refusal(tmp_path / "none.nantrace")


def test_a_folder_names_a_dump_in_it(dump: Path) -> None:
    """A folder of dumps is a likely mistake: one of its dumps is named."""
    assert str(dump) in refusal(dump.parent)


def test_what_is_no_file() -> None:
    """A device is not read: it may have no end."""
    assert "no regular file" in refusal(os.devnull)


def test_a_text_file(tmp_path: Path) -> None:
    """Something else altogether is called that."""
    path = tmp_path / "notes.txt"
    path.write_text("loss is nan since tuesday")

    assert "is no dump" in refusal(path)


def test_an_empty_file(tmp_path: Path) -> None:
    """A file of no bytes is what a full disk leaves."""
    path = tmp_path / "a.nantrace"
    path.touch()

    assert "is empty; save it again" in refusal(path)


def test_another_zip_file(tmp_path: Path) -> None:
    """A zip file without our manifest is no dump."""
    assert "without a manifest.json" in refusal(put_together(tmp_path / "a.zip", {"data": b"1"}))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_torn_file(dump: Path, share: float) -> None:
    """A file that was cut off while it was copied is called torn."""
    dump.write_bytes(dump.read_bytes()[: int(dump.stat().st_size * share)])

    assert "torn or damaged" in refusal(dump)


def test_every_flipped_byte_is_refused_or_harmless(dump: Path) -> None:
    """Damage anywhere never ends in another exception than `DumpError`."""
    sound = dump.read_bytes()
    for place in range(0, len(sound), 7):
        dump.write_bytes(sound[:place] + bytes([sound[place] ^ 0xFF]) + sound[place + 1 :])
        with suppress(DumpError):
            nantrace.load(dump)


@pytest.mark.parametrize("name", ["trace.json", "history.json", "tensors.safetensors"])
def test_a_missing_member(dump: Path, name: str) -> None:
    """A member that is not there is named."""
    members = members_of(dump)
    del members[name]

    assert f"has no {name}" in refusal(put_together(dump, members))


def test_a_newer_major_version_says_to_upgrade(dump: Path) -> None:
    """The version found, the version read, and the way out."""
    members = members_of(dump)
    members["manifest.json"] = edited(members["manifest.json"], schema_version=[2, 1], nantrace="9.9")

    message = refusal(put_together(dump, members))

    assert "has format version 2.1 (written by nantrace 9.9)" in message
    assert "reads version 1; upgrade with `pip install -U nantrace`" in message


def test_a_newer_minor_version_is_read(dump: Path) -> None:
    """Fields, members and columns that a newer minor version added are passed over."""
    members = members_of(dump)
    members["manifest.json"] = edited(members["manifest.json"], schema_version=[1, 9], colour="blue")
    trace = json.loads(members["trace.json"])
    trace["snapshot"]["mood"] = {"$new": [[[]]]}
    members["trace.json"] = json.dumps(trace).encode()
    members["thoughts.json"] = b"{"

    assert repr(nantrace.load(put_together(dump, members)).snapshot) == repr(full())


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (b"[]", "does not say 'nantrace-dump'"),
        (b"{", "manifest.json"),
        (b'{"format": "nantrace-dump"}', "does not say its version"),
        (b'{"format": "nantrace-dump", "schema_version": ["1", 0]}', "does not say its version"),
        (b'{"format": "nantrace-dump", "schema_version": NaN}', "NaN is no JSON"),
        (b"\xff\xfe", "manifest.json"),
    ],
)
def test_a_bad_manifest(dump: Path, manifest: bytes, expected: str) -> None:
    """The manifest is checked before anything else is looked at."""
    assert expected in refusal(put_together(dump, {**members_of(dump), "manifest.json": manifest}))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("step", "3", "trace.json: snapshot.step: expected a whole number, found '3'"),
        ("step", True, "snapshot.step: expected a whole number, found True"),
        ("phase", None, "snapshot.phase: expected text, found null"),
        ("path", [1, 2.5], "snapshot.path[1]: expected a whole number, found 2.5"),
        ("path", {}, "snapshot.path: expected a list, found an object of 0"),
        ("modules", {"fc": 3}, "snapshot.modules['fc']: expected text, found 3"),
        ("origin", {"op": "log"}, "snapshot.origin.module: it is missing"),
        ("origin", {"op": "log", "module": None, "source": 4}, "snapshot.origin.source: refers to number 4 of the 1"),
        ("replay", {"seconds": {"$float": "big"}}, "snapshot.replay.seconds: expected a number"),
        ("ops", [{"id": 0, "name": "a", "aten": "a", "phase": "x", "status": "odd"}], "ops[0].status: expected one of"),
        ("environment", {"a": {"$tuple": 3}}, "snapshot.environment['a']: expected a list, found 3"),
    ],
)
def test_a_value_of_the_wrong_type(dump: Path, field: str, value: Any, expected: str) -> None:
    """The message names the member, the field, what was expected and what was found."""
    members = members_of(dump)
    trace = json.loads(members["trace.json"])
    trace["snapshot"][field] = value
    members["trace.json"] = json.dumps(trace).encode()

    assert expected in refusal(put_together(dump, members))


def test_a_missing_field(dump: Path) -> None:
    """A required field that is not there is named."""
    members = members_of(dump)
    trace = json.loads(members["trace.json"])
    del trace["snapshot"]["symptom"]
    members["trace.json"] = json.dumps(trace).encode()

    assert "trace.json: snapshot.symptom: it is missing" in refusal(put_together(dump, members))


@pytest.mark.parametrize("nested", [b"[" * 100_000, b"[" * 900 + b"]" * 900])
def test_json_that_is_nested_too_deeply(dump: Path, nested: bytes) -> None:
    """Deep nesting does not end the process."""
    members = {**members_of(dump)}
    deep = members["trace.json"].replace(b'"environment":{', b'"environment":{"deep":' + nested + b",", 1)

    assert "trace.json" in refusal(put_together(dump, {**members, "trace.json": deep}))


def test_json_of_very_many_values(dump: Path) -> None:
    """Values are counted before they are made: each takes far more memory than bytes in the file."""
    many = b"[" + b"[]," * 6_000_000 + b"[]]"

    assert "holds 12,000,002 values" in refusal(put_together(dump, {**members_of(dump), "trace.json": many}))


def test_a_zip_bomb(dump: Path) -> None:
    """A member that grows a thousandfold is not unpacked."""
    members = members_of(dump)
    with zipfile.ZipFile(dump, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, b" " * (30 << 20) if name == "trace.json" else content)

    assert "-fold when unpacked; it is not opened" in refusal(dump)


def test_a_member_that_claims_too_much(dump: Path) -> None:
    """The size that the index announces is checked before memory is taken."""
    data = bytearray(dump.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"history.json"))
    struct.pack_into("<L", data, entry + 24, 0xF0000000)
    dump.write_bytes(data)

    assert "history.json takes 4,026,531,840 bytes, more than 32 MB" in refusal(dump)


@pytest.mark.parametrize("name", ["../evil", "a/b", "..\\evil", "/etc/passwd"])
def test_member_names_with_separators(dump: Path, name: str) -> None:
    """A dump has no folders; a name that leads out of it is not ours."""
    assert "names a place outside" in refusal(put_together(dump, {**members_of(dump), name: b""}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice(dump: Path) -> None:
    """Two readers could read two different dumps."""
    with zipfile.ZipFile(dump, "a") as archive:
        archive.writestr("trace.json", b"{}")

    assert "more than once" in refusal(dump)


def test_an_index_of_very_many_members(dump: Path) -> None:
    """The index is measured before it is read."""
    names = {f"{number:05}": b"" for number in range(2000)}

    assert "index is larger" in refusal(put_together(dump, {**members_of(dump), **names}))


def test_a_file_larger_than_any_dump(tmp_path: Path) -> None:
    """The file itself is measured before it is read."""
    path = tmp_path / "huge.nantrace"
    with path.open("wb") as file:
        file.truncate(600 << 20)  # a sparse file: takes no room on the disk

    assert "no dump has more than 512 MB" in refusal(path)


def test_columns_that_do_not_belong_to_their_tables(dump: Path) -> None:
    """A module number past the table of modules is refused."""
    members = members_of(dump)
    page = json.loads(members["history.json"])
    page["names"]["module"] = []
    members["history.json"] = json.dumps(page).encode()

    assert "history.json: tensor 'history.module' refers to a name past the 0" in refusal(put_together(dump, members))


@pytest.mark.parametrize("member", ["manifest.json", "trace.json", "history.json"])
def test_any_value_in_the_place_of_any_other(dump: Path, member: str) -> None:
    """Whatever stands wherever in the JSON, the dump is read or refused; nothing else happens."""
    members = members_of(dump)
    page = json.loads(members[member])
    odds = (None, True, -1, 10**30, 0.5, "x", [], [[]], {}, {"$float": "nan"}, {"$tuple": [1]}, {"$dict": 1})
    for turn, keys in enumerate(_places(page)):
        for odd in (odds[turn % 12], odds[(turn + 5) % 12]):
            changed = json.loads(members[member])
            inner = changed
            for key in keys[:-1]:
                inner = inner[key]
            inner[keys[-1]] = odd
            with suppress(DumpError):
                read_snapshot(put_together(dump, {**members, member: json.dumps(changed).encode()}))


def _places(value: Any, *keys: Any) -> Iterator[tuple[Any, ...]]:
    if keys:
        yield keys
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, *keys, key)
