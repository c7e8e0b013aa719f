"""The ring buffer as columns: one array per field of an event, and tables of the names they refer to."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..model import Event, History
from .codec import Reader, Writer, codec_of
from .scalars import Mismatch
from .schema import MAX_EVENTS

PREFIX = "history."

# Field of `Event`, in its order -> typecode of its column.
COLUMNS = {
    "step": "q",
    "order": "q",
    "kind": "q",
    "module": "q",
    "output": "q",
    "numel": "q",
    "dtype": "q",
    "min": "d",
    "max": "d",
    "mean": "d",
    "rms": "d",
    "finite": "B",
}
NAMED = ("kind", "module", "dtype")  # their columns hold the number of the name in the table of that field

_HISTORY = codec_of(History)
_NAMES = codec_of(tuple[str, ...])


def to_columns(history: History) -> tuple[dict[str, Any], dict[str, array[Any]]]:
    """What history.json says (everything but the events, and the tables of names), and the events as columns."""
    if len(history.events) > MAX_EVENTS:
        raise Mismatch(f"{len(history.events):,} events are more than the {MAX_EVENTS:,} that a dump holds")
    names: dict[str, dict[str, int]] = {field: {} for field in NAMED}
    columns = {PREFIX + field: _column(field, history.events, names.get(field)) for field in COLUMNS}
    page = {
        "history": _HISTORY.write(replace(history, events=()), Writer()),
        "names": {field: list(table) for field, table in names.items()},
    }
    return page, columns


def from_columns(page: Any, columns: Mapping[str, array[Any]]) -> History:
    """The ring buffer again; `Mismatch` where page and columns do not belong together."""
    if not isinstance(page, dict) or not isinstance(page.get("names"), dict):
        raise Mismatch("expected an object with `history` and `names`")
    history: History = _HISTORY.read(page.get("history"), Reader())
    found: dict[str, Iterable[Any]] = {}
    lengths = set()
    for field, typecode in COLUMNS.items():
        column = columns.get(PREFIX + field)
        if column is None or column.typecode != typecode:
            raise Mismatch(f"tensor {PREFIX + field!r} is missing or has another dtype")
        lengths.add(len(column))
        found[field] = _named(field, column, page["names"].get(field)) if field in NAMED else column
    if len(lengths) != 1 or max(lengths) > MAX_EVENTS:
        raise Mismatch(f"the columns have {', '.join(map(str, sorted(lengths)))} rows")
    found["finite"] = map(bool, found["finite"])
    return replace(history, events=tuple(map(Event, *found.values())))


def _column(field: str, events: Iterable[Event], table: dict[str, int] | None) -> array[Any]:
    values: Iterable[Any] = (getattr(event, field) for event in events)
    if table is not None:
        values = (table.setdefault(str(value), len(table)) for value in values)
    try:
        return array(COLUMNS[field], values)
    except (TypeError, ValueError, OverflowError) as error:
        raise Mismatch(f"an event's {field} does not fit its column ({error})") from error


def _named(field: str, column: array[Any], table: Any) -> Iterable[str]:
    try:
        names = _NAMES.read(table, Reader())
    except Mismatch as mismatch:
        raise mismatch.inside(f".names.{field}") from None
    if len(column) and not 0 <= min(column) <= max(column) < len(names):
        raise Mismatch(f"tensor {PREFIX + field!r} refers to a name past the {len(names)} in its table")
    return map(names.__getitem__, column)
