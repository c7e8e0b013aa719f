"""The report as strict JSON: the whole snapshot and what was concluded from it.

JSON has no NaN: numbers that are not finite become the strings "nan", "inf" and "-inf". This is
for other programs to read; to open a report again, save a dump.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from math import isfinite
from typing import TYPE_CHECKING, Any

from .numbers import number

if TYPE_CHECKING:
    from ..report import Report

FORMAT = "nantrace-report"
VERSION = 1


def as_json(report: Report) -> str:
    """The report as JSON text."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "diagnosis": jsonable(report.diagnosis),
        "snapshot": jsonable(report.snapshot),
    }
    return json.dumps(content, allow_nan=False, indent=1) + "\n"


def jsonable(value: Any) -> Any:
    """The value in JSON's types; what JSON does not know becomes its text."""
    match value:
        case Enum():
            return jsonable(value.value)
        case None | bool() | int() | str():
            return value
        case float():
            return value if isfinite(value) else number(value)
        case Mapping():
            return {str(key): jsonable(item) for key, item in value.items()}
        case tuple() | list() | set() | frozenset():
            return [jsonable(item) for item in value]
        case _ if is_dataclass(value):
            return {field.name: jsonable(getattr(value, field.name)) for field in fields(value)}
        case _:
            return str(value)
