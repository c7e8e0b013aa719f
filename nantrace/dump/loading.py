"""Opens a dump: checks the manifest, then makes the snapshot again with every type checked."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import DumpError
from ..model import Snapshot
from .archive import read_members
from .bounds import OutOfBounds, check_items
from .codec import SHARED, Reader, record_codec
from .columns import from_columns
from .scalars import Mismatch
from .schema import FORMAT, HISTORY, MANIFEST, SCHEMA_VERSION, TENSORS, TRACE
from .tensorfile import TensorFileError, unpack

if TYPE_CHECKING:
    from ..report import Report


def load(path: str | PathLike[str]) -> Report:
    """Open a dump and diagnose it with the rules of this version.

    Raises `DumpError` for everything that can be wrong with the file, naming the file and the way out.
    """
    from ..report import Report

    return Report(read_snapshot(path))


def read_snapshot(path: str | PathLike[str]) -> Snapshot:
    """The snapshot in a dump. Raises `DumpError` as `load` does."""
    name = os.fsdecode(path)
    members = read_members(name)
    _check_manifest(name, members)
    for member in (TRACE, HISTORY, TENSORS):
        if member not in members:
            raise DumpError(f"the dump {name!r} has no {member}; save it again")
    try:
        return _snapshot(members)
    except _Damaged as damage:
        raise DumpError(f"the dump {name!r} is damaged, or was edited: {damage}; save it again") from damage


class _Damaged(Exception):
    """What is wrong in which member."""


def _check_manifest(name: str, members: dict[str, bytes]) -> None:
    """Refuse what is no dump, and dumps of a major version that this nantrace does not know."""
    if MANIFEST not in members:
        raise DumpError(f"{name!r} is no dump: it is a zip file without a {MANIFEST}; give a file that nantrace wrote")
    try:
        manifest = _parse(MANIFEST, members)
    except _Damaged as damage:
        raise DumpError(f"the dump {name!r} cannot be read: {damage}; save it again") from damage
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DumpError(f"{name!r} is no dump: its {MANIFEST} does not say {FORMAT!r}; give a file that nantrace wrote")
    version = manifest.get("schema_version")
    if not (isinstance(version, list) and len(version) == 2 and all(type(part) is int for part in version)):
        raise DumpError(f"the dump {name!r} does not say its version ({MANIFEST}: schema_version); save it again")
    if version[0] != SCHEMA_VERSION[0]:
        from .. import __version__

        writer = manifest.get("nantrace")
        way_out = (
            "upgrade with `pip install -U nantrace`" if version[0] > SCHEMA_VERSION[0] else "open it with that version"
        )
        raise DumpError(
            f"the dump {name!r} has format version {version[0]}.{version[1]} (written by nantrace {writer}), but"
            f" nantrace {__version__} reads version {SCHEMA_VERSION[0]}; {way_out}"
        )


def _snapshot(members: dict[str, bytes]) -> Snapshot:
    try:
        snapshot = _trace(_parse(TRACE, members))
    except (Mismatch, RecursionError) as error:
        raise _Damaged(f"{TRACE}: {error}") from error
    try:
        columns = unpack(members[TENSORS])
    except TensorFileError as error:
        raise _Damaged(f"{TENSORS}: {error}") from error
    try:
        history = from_columns(_parse(HISTORY, members), columns)
    except (Mismatch, RecursionError) as error:
        raise _Damaged(f"{HISTORY}: {error}") from error
    return replace(snapshot, history=history)


def _trace(page: Any) -> Snapshot:
    if not isinstance(page, dict) or not isinstance(page.get("tables"), dict):
        raise Mismatch("expected an object with `tables` and `snapshot`")
    reader = Reader()
    for cls in SHARED:  # in this order: a source refers to frames
        codec, table = record_codec(cls), page["tables"].get(cls.__name__, [])
        if not isinstance(table, list):
            raise Mismatch(f"the table {cls.__name__} is no list")
        for number, row in enumerate(table):
            try:
                reader.tables[cls.__name__].append(codec.read(row, reader))
            except Mismatch as mismatch:
                raise mismatch.inside(f"tables.{cls.__name__}[{number}]") from None
    try:
        snapshot: Snapshot = record_codec(Snapshot).read(page.get("snapshot"), reader)
    except Mismatch as mismatch:
        raise mismatch.inside("snapshot") from None
    return snapshot


def _parse(member: str, members: dict[str, bytes]) -> Any:
    content = members[member]
    try:
        check_items(member, content)
        return json.loads(content.decode("utf-8"), parse_constant=_no_constant)
    except OutOfBounds as error:
        raise _Damaged(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"{member}: {error}") from error


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")
