"""Arrays as safetensors bytes, written and read without numpy and torch."""

from __future__ import annotations

import json
import struct
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest

from nantrace.dump import save
from nantrace.dump.tensorfile import TensorFileError, pack, unpack

from .builders import full, members_of


def spelled(header: Any, body: bytes = b"") -> bytes:
    """The bytes of a file with this header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(begin: int, end: int, shape: int = 1, dtype: str = "U8") -> dict[str, Any]:
    """One tensor's place."""
    return {"dtype": dtype, "shape": [shape], "data_offsets": [begin, end]}


def test_arrays_come_back() -> None:
    """Whatever the order of their widths, and when empty."""
    columns = {"a": array("B", [1, 2, 3]), "b": array("d", [1.5, float("inf")]), "c": array("q", [-(2**63)])}
    columns["d"] = array("q")

    assert unpack(pack(columns, {"made": "here"})) == columns


def test_safetensors_reads_a_dump(tmp_path: Path) -> None:
    """The member is a file that the safetensors library opens, with the same numbers in it."""
    safetensors = pytest.importorskip("safetensors")
    pytest.importorskip("numpy")
    path = tmp_path / "tensors.safetensors"
    path.write_bytes(members_of(Path(save(full(), tmp_path / "a.nantrace")))["tensors.safetensors"])

    with safetensors.safe_open(path, framework="numpy") as tensors:
        assert tensors.get_tensor("history.step").tolist() == [0, 0, 1]
        assert tensors.get_tensor("history.rms").tolist() == [0.75, 0.75, float("inf")]
        assert tensors.get_tensor("history.finite").tolist() == [1, 0, 1]
        assert tensors.metadata()["format"] == "nantrace-dump"


def test_we_read_what_safetensors_writes() -> None:
    """The reader follows the format, not only our writer; what it does not know it passes over."""
    numpy = pytest.importorskip("numpy")
    save_numpy = pytest.importorskip("safetensors.numpy").save
    tensors = {"x": numpy.arange(3.0), "matrix": numpy.zeros((2, 2)), "half": numpy.zeros(3, dtype="float16")}

    assert unpack(save_numpy(tensors)) == {"x": array("d", [0.0, 1.0, 2.0])}


def test_the_other_byte_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a big-endian machine the file is little-endian all the same."""
    columns = {"a": array("d", [1.5, -2.0])}
    monkeypatch.setattr(sys, "byteorder", "big")

    assert unpack(pack(columns, {})) == columns
    assert pack(columns, {}).endswith(struct.pack(">2d", 1.5, -2.0))  # swapped, seen from a little-endian machine


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\0\0", "less than its header's length takes"),
        (struct.pack("<Q", 2**63), "header claims 9223372036854775808 bytes of the 0"),
        (struct.pack("<Q", 2) + b"[]", "header is no object"),
        (struct.pack("<Q", 2) + b"{]", "header is no JSON"),
        (spelled({"a": 3}), "tensor 'a' is not described"),
        (spelled({"a": {**entry(0, 1), "shape": [True]}}, b"1"), "tensor 'a' is not described"),
        (spelled({"a": {**entry(0, 1), "shape": [-1]}}, b"1"), "tensor 'a' is not described"),
        (spelled({"a": entry(0, 9, 9)}, b"12"), "lies at bytes 0 to 9 of 2"),
        (spelled({"a": entry(2, 1, 1)}, b"12"), "lies at bytes 2 to 1 of 2"),
        (spelled({"a": entry(0, 2, 3)}, b"12"), "takes 3 bytes but has 2"),
        (spelled({"a": entry(0, 2, 2**60, "F64")}, b"12"), "but has 2"),
        (spelled({"a": entry(0, 2, 2), "b": entry(1, 2)}, b"12"), "begins at byte 1, the one before it ends at 2"),
        (spelled({"a": entry(1, 2)}, b"12"), "begins at byte 1, the one before it ends at 0"),
        (spelled({"a": entry(0, 1)}, b"12"), "take 1 bytes of the 2"),
    ],
)
def test_bytes_that_are_no_such_file(data: bytes, expected: str) -> None:
    """Sizes, places and overlaps are checked before any array is made."""
    with pytest.raises(TensorFileError, match=expected):
        unpack(data)
