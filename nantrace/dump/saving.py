"""Writes a snapshot as a dump: whole or not at all."""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import zipfile
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from os import PathLike
from typing import Any

from ..errors import DumpError
from ..model import History, Snapshot
from .bounds import OutOfBounds, check_items, check_ratio, check_size
from .codec import Writer, record_codec
from .columns import to_columns
from .scalars import Mismatch
from .schema import FORMAT, HISTORY, MANIFEST, SCHEMA_VERSION, TENSORS, TRACE
from .tensorfile import pack


def save(snapshot: Snapshot, path: str | PathLike[str]) -> str:
    """Save a snapshot as a dump and return its path; missing folders are made.

    The file appears under its name only when it is complete. Raises `DumpError`, and leaves no half
    file, when the place cannot be written or the snapshot holds something that a dump cannot.
    """
    name = os.fsdecode(path)
    data = _encode(snapshot, name)
    try:
        _write_whole(name, data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DumpError(f"cannot write the dump {name!r}: {reason}; choose a folder that can be written") from error
    return name


def _encode(snapshot: Snapshot, name: str) -> bytes:
    try:
        members = _members(snapshot)
        for member, content in members.items():
            check_size(member, len(content))
            if member != TENSORS:
                check_items(member, content)
        return _zipped(members)
    except (Mismatch, OutOfBounds, ValueError, RecursionError) as error:
        raise DumpError(f"cannot save the dump {name!r}: the snapshot does not fit the format: {error}") from error


def _zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for member, content in members.items():
            stored = member == TENSORS  # raw numbers hardly shrink, and other programs can map them
            archive.writestr(member, content, zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)
        for info in archive.infolist():
            check_ratio(info.filename, info.file_size, info.compress_size)
    return file.getvalue()


def _members(snapshot: Snapshot) -> dict[str, bytes]:
    writer = Writer()
    spelled = record_codec(Snapshot).write(replace(snapshot, history=History()), writer)
    page, columns = to_columns(snapshot.history)
    manifest = _manifest(snapshot)
    return {
        MANIFEST: _json(manifest, indent=2),
        TRACE: _json({"tables": writer.tables, "snapshot": spelled}),
        HISTORY: _json(page),
        TENSORS: pack(columns, {"format": FORMAT, "schema_version": json.dumps(manifest["schema_version"])}),
    }


def _manifest(snapshot: Snapshot) -> dict[str, Any]:
    from .. import __version__

    environment = snapshot.environment
    torch = environment.get("torch") or getattr(sys.modules.get("torch"), "__version__", None)
    rank = environment.get("rank", os.environ.get("RANK"))
    return {
        "format": FORMAT,
        "schema_version": list(SCHEMA_VERSION),
        "nantrace": __version__,
        "torch": None if torch is None else str(torch),
        "python": platform.python_version(),
        "rank": None if rank is None else str(rank),
        "step": snapshot.step,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _json(value: Any, indent: int | None = None) -> bytes:
    separators = (",", ": ") if indent else (",", ":")
    return json.dumps(value, allow_nan=False, indent=indent, separators=separators).encode("ascii")


def _write_whole(name: str, data: bytes) -> None:
    folder = os.path.dirname(name)
    if folder:
        os.makedirs(folder, exist_ok=True)
    part = f"{name}.part-{os.getpid()}"
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, name)
    except BaseException:
        with suppress(OSError, ValueError):
            os.remove(part)
        raise
