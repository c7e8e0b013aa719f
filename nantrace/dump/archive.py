"""Reads the members of a dump's zip file, trusting nothing that the file says about itself."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib

from ..errors import DumpError
from .bounds import OutOfBounds, check_ratio, check_size
from .schema import MANIFEST, MEGABYTE, MEMBER_BYTES, TENSORS, TOTAL_BYTES

_MAX_INDEX_BYTES = 64 << 10  # the zip file's index; four members take a few hundred bytes

# What zipfile raises for damaged files, beside its own error: it reads numbers and names before it checks them.
_ZIP_ERRORS = (OutOfBounds, zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)

_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
_ZIP64_SIGNATURE = b"PK\x06\x07"
_ZIP64_SIZE = 20


def read_members(path: str) -> dict[str, bytes]:
    """The known members of the dump at `path`; everything that is wrong with it is a `DumpError`."""
    data = _read_file(path)
    try:
        _check_index(data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = _known(archive.infolist())
            return {info.filename: _read_member(archive, info) for info in infos}
    except _ZIP_ERRORS as error:
        raise DumpError(_refusal(path, data, error)) from error


def _read_file(path: str) -> bytes:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise DumpError(f"{path!r} is a folder; give the path of one dump{_example_in(path)}")
        if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device has no end
            raise DumpError(f"{path!r} is no regular file; give the path of a dump")
        if status.st_size > TOTAL_BYTES:
            raise DumpError(
                f"{path!r} has {status.st_size:,} bytes, and no dump has more than {TOTAL_BYTES // MEGABYTE} MB;"
                " it is not opened"
            )
        with open(path, "rb") as file:
            return file.read(TOTAL_BYTES + 1)
    except FileNotFoundError as error:
        raise DumpError(f"there is no dump {path!r}; check the path (dumps usually end in .nantrace)") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DumpError(f"cannot read the dump {path!r}: {reason}; check the path and its permissions") from error


def _check_index(data: bytes) -> None:
    """Refuse an index of very many members, each of which `zipfile` would make objects for before it can be asked."""
    place = len(data) - _END.size  # found as `zipfile` finds it, so that both read the same index
    if place < 0 or data[place : place + 4] != _END_SIGNATURE or data[-2:] != b"\0\0":
        place = data.rfind(_END_SIGNATURE, max(0, len(data) - _END.size - (1 << 16)))
    if place < 0 or place + _END.size > len(data):
        raise zipfile.BadZipFile("it has no index")
    size = _END.unpack_from(data, place)[5]
    zip64 = data[max(0, place - _ZIP64_SIZE) : place].startswith(_ZIP64_SIGNATURE)
    if size > _MAX_INDEX_BYTES or zip64:
        raise OutOfBounds("its index is larger than that of any dump")


def _known(infos: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """The members that a dump consists of, each checked; others are ignored, for a newer minor version may add some."""
    names = [info.filename for info in infos]
    for name in names:
        if "/" in name or "\\" in name or "\0" in name:
            raise OutOfBounds(f"its member {name!r} names a place outside the dump")
        if names.count(name) > 1:
            raise OutOfBounds(f"its member {name!r} is there more than once")
    known = [info for info in infos if info.filename in MEMBER_BYTES]
    for info in known:
        _check_member(info)
    if sum(info.file_size for info in known) > TOTAL_BYTES:
        raise OutOfBounds(f"its members take more than {TOTAL_BYTES // MEGABYTE} MB")
    return known


def _check_member(info: zipfile.ZipInfo) -> None:
    check_size(info.filename, info.file_size)
    if info.flag_bits & 1:
        raise OutOfBounds(f"{info.filename} is encrypted")
    methods = (zipfile.ZIP_STORED,) if info.filename == TENSORS else (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if info.compress_type not in methods:
        raise OutOfBounds(f"{info.filename} is compressed in a way that dumps are not")
    check_ratio(info.filename, info.file_size, info.compress_size)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        content = file.read(info.file_size + 1)
    if len(content) != info.file_size:
        raise zipfile.BadZipFile(f"{info.filename} has {len(content)} bytes where {info.file_size} were announced")
    return content


def _refusal(path: str, data: bytes, error: Exception) -> str:
    if isinstance(error, OutOfBounds):
        return f"{path!r} is no dump that nantrace wrote: {error}; it is not opened"
    if not data:
        return f"the dump {path!r} is empty; save it again"
    if data.startswith(b"PK"):
        return f"the dump {path!r} is torn or damaged ({error}); copy it again, or save it again"
    return f"{path!r} is no dump: it is not a zip file with a {MANIFEST}; give a file that nantrace wrote"


def _example_in(folder: str) -> str:
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".nantrace"))
    except OSError:
        names = []
    return f" in it, such as {os.path.join(folder, names[0])!r}" if names else ""
