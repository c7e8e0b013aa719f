"""One-dimensional arrays as the bytes of a safetensors file, written and read with the standard library alone.

The layout: 8 bytes with the length of the header (little-endian), the header as JSON
{name: {"dtype", "shape", "data_offsets": [begin, end]}}, then the values, without gaps.
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from collections.abc import Mapping
from typing import Any

# The array type of each safetensors dtype that nantrace writes.
TYPECODES = {"F64": "d", "I64": "q", "U8": "B"}
_DTYPES = {typecode: dtype for dtype, typecode in TYPECODES.items()}

_MAX_HEADER = 1 << 20
_ALIGNMENT = 8


class TensorFileError(ValueError):
    """Bytes that are no safetensors file of the kind nantrace writes."""


def pack(columns: Mapping[str, array[Any]], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with these arrays (typecodes d, q and B)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    body = bytearray()
    for name, column in sorted(columns.items(), key=lambda item: -item[1].itemsize):  # widest first: all stay aligned
        begin = len(body)
        body += _little_endian(column).tobytes()
        header[name] = {
            "dtype": _DTYPES[column.typecode],
            "shape": [len(column)],
            "data_offsets": [begin, len(body)],
        }
    spelled = json.dumps(header, separators=(",", ":"), allow_nan=False).encode("ascii")
    spelled += b" " * (-len(spelled) % _ALIGNMENT)
    return struct.pack("<Q", len(spelled)) + spelled + bytes(body)


def unpack(data: bytes) -> dict[str, array[Any]]:
    """The arrays in the bytes of a safetensors file; tensors of other dtypes or more dimensions are passed over."""
    header, body = _split(data)
    _check_layout(header, len(body))
    return {
        name: _column(TYPECODES[entry["dtype"]], body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if entry["dtype"] in TYPECODES and len(entry["shape"]) == 1
    }


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    if len(data) < 8:
        raise TensorFileError(f"it has {len(data)} bytes, which is less than its header's length takes")
    (length,) = struct.unpack_from("<Q", data)
    if length > min(len(data) - 8, _MAX_HEADER):
        raise TensorFileError(f"its header claims {length} bytes of the {len(data) - 8} that are there")
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"its header is no JSON ({error})") from None
    if not isinstance(header, dict):
        raise TensorFileError("its header is no object")
    header.pop("__metadata__", None)
    return header, memoryview(data)[8 + length :]


def _check_layout(header: dict[str, Any], length: int) -> None:
    """Every tensor lies where the one before it ends, has the size that its shape says, and the last ends the file."""
    spans = []
    for name, entry in header.items():
        if not (
            isinstance(entry, dict)
            and isinstance(entry.get("dtype"), str)
            and _whole_numbers(entry.get("shape"))
            and _whole_numbers(entry.get("data_offsets"))
            and len(entry["data_offsets"]) == 2
        ):
            raise TensorFileError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
        begin, end = entry["data_offsets"]
        if not begin <= end <= length:
            raise TensorFileError(f"tensor {name!r} lies at bytes {begin} to {end} of {length}")
        if entry["dtype"] in TYPECODES and len(entry["shape"]) == 1:
            size = entry["shape"][0] * array(TYPECODES[entry["dtype"]]).itemsize
            if size != end - begin:
                raise TensorFileError(f"tensor {name!r} takes {size} bytes but has {end - begin}")
        spans.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            raise TensorFileError(f"tensor {name!r} begins at byte {begin}, the one before it ends at {reached}")
        reached = end
    if reached != length:
        raise TensorFileError(f"its tensors take {reached} bytes of the {length} that are there")


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _column(typecode: str, data: memoryview) -> array[Any]:
    column: array[Any] = array(typecode)
    column.frombytes(data)
    return _little_endian(column)


def _little_endian(column: array[Any]) -> array[Any]:
    if sys.byteorder == "little" or column.itemsize == 1:
        return column
    swapped = array(column.typecode, column)
    swapped.byteswap()
    return swapped
