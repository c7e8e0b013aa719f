"""Values without a type of their own: an op's arguments, an optimizer's settings, the environment.

JSON's types and tuples come back as they were: a tuple is tagged as {"$tuple": [...]}, and an object whose
own keys look like tags as {"$dict": {...}}. Everything else (a dtype, a device, a slice) becomes its text.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from numbers import Integral, Real
from typing import Any

from .scalars import Mismatch, of_kind, read_float, write_float, write_str
from .schema import MAX_DEPTH


def write_any(value: Any, depth: int = MAX_DEPTH) -> Any:
    """The value in JSON's types; what lies deeper than `depth` is left out as "..."."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return write_str(value)
    if isinstance(value, (Integral, Real)):
        return write_float(value)
    if isinstance(value, str):
        return write_str(value)
    if depth <= 0:
        return "..."
    if isinstance(value, Mapping):
        spelled = {write_str(k): write_any(v, depth - 1) for k, v in value.items()}
        return {"$dict": spelled} if any(key.startswith("$") for key in spelled) else spelled
    if isinstance(value, tuple):
        return {"$tuple": [write_any(item, depth - 1) for item in value]}
    if isinstance(value, list):
        return [write_any(item, depth - 1) for item in value]
    try:
        return str(value)  # a dtype, a device, a slice: as it prints itself
    except Exception:  # an object of the user's that cannot be printed must not cost the dump
        return f"<{type(value).__name__}>"


def read_any(value: Any, depth: int = 2 * MAX_DEPTH + 2) -> Any:
    """The value again; a tag takes a level of its own, so twice the depth can come back."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth <= 0:
        raise Mismatch("nested too deeply")
    if isinstance(value, list):
        return [read_any(item, depth - 1) for item in value]
    if "$float" in value:
        return read_float(value)
    if "$tuple" in value:
        return tuple(read_any(item, depth - 1) for item in of_kind(list, value["$tuple"]))
    inner = of_kind(dict, value["$dict"]) if "$dict" in value else value
    return {key: read_any(item, depth - 1) for key, item in inner.items()}
