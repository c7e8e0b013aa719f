"""How a type of the model is spelled in JSON, and how that is read back with every type checked.

A codec is made from a type annotation, so writer and reader cannot disagree. The file never names
a class: which class a value becomes follows from the annotation of the field it stands in, and only
the classes listed in `RECORDS` and `ENUMS` are ever made.

Records that many others share (lines of source) stand once in a table of their own, and are referred to
by their number. A field that has its default is left out, floats excepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .. import model
from .freeform import read_any, write_any
from .scalars import (
    Mismatch,
    of_kind,
    read_bool,
    read_float,
    read_int,
    read_str,
    spell,
    write_bool,
    write_float,
    write_int,
    write_str,
)

RECORDS: tuple[type, ...] = (
    model.BadSource,
    model.Change,
    model.Edge,
    model.Event,
    model.Example,
    model.ExceptionFacts,
    model.Expected,
    model.Frame,
    model.History,
    model.IndexFacts,
    model.LossTerm,
    model.Op,
    model.OperandValue,
    model.OptimizerFacts,
    model.Origin,
    model.ReplayFacts,
    model.Snapshot,
    model.Source,
    model.StepRecord,
    model.Symptom,
    model.TensorSummary,
    model.Trial,
)
ENUMS: tuple[type[Enum], ...] = (model.Status,)
SHARED: tuple[type, ...] = (model.Frame, model.Source)


class Writer:
    """Collects the tables of shared records while values are written."""

    def __init__(self) -> None:
        self.tables: dict[str, list[Any]] = {cls.__name__: [] for cls in SHARED}
        self._numbers: dict[Any, int] = {}

    def number_of(self, record: Any, write: Callable[[Any, Writer], Any]) -> int:
        """The number of a shared record in its table, entered there when it is new."""
        number = self._numbers.get(record)
        if number is None:
            spelled = write(record, self)
            table = self.tables[type(record).__name__]
            number = self._numbers[record] = len(table)
            table.append(spelled)
        return number


class Reader:
    """Holds the tables of shared records while values are read."""

    def __init__(self) -> None:
        self.tables: dict[str, list[Any]] = {cls.__name__: [] for cls in SHARED}


@dataclass(frozen=True, slots=True)
class Codec:
    """One type's spelling in JSON: `write` makes it, `read` checks it and makes the value again."""

    write: Callable[[Any, Writer], Any]
    read: Callable[[Any, Reader], Any]


@cache
def codec_of(annotation: Any) -> Codec:
    """The codec of a type annotation of the model."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType) and NoneType in arguments and len(arguments) == 2:
        return _optional(codec_of(next(argument for argument in arguments if argument is not NoneType)))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _sequence(codec_of(arguments[0]))
    if origin is tuple:
        return _row(tuple(codec_of(argument) for argument in arguments))
    if origin is Mapping and arguments[0] is str:
        return _mapping(codec_of(arguments[1]))
    if annotation in ENUMS:
        return _enumeration(annotation)
    if annotation in SHARED:
        return _shared(annotation, record_codec(annotation))
    if annotation in RECORDS:
        return record_codec(annotation)
    raise TypeError(f"a dump cannot hold {annotation!r}; enter it in nantrace/dump/codec.py")


_PLAIN: dict[Any, Codec] = {
    int: Codec(lambda value, writer: write_int(value), lambda value, reader: read_int(value)),
    float: Codec(lambda value, writer: write_float(value), lambda value, reader: read_float(value)),
    str: Codec(lambda value, writer: write_str(value), lambda value, reader: read_str(value)),
    bool: Codec(lambda value, writer: write_bool(value), lambda value, reader: read_bool(value)),
    Any: Codec(lambda value, writer: write_any(value), lambda value, reader: read_any(value)),
}


# Types made of others


def _optional(inner: Codec) -> Codec:
    return Codec(
        lambda value, writer: None if value is None else inner.write(value, writer),
        lambda value, reader: None if value is None else inner.read(value, reader),
    )


def _sequence(inner: Codec) -> Codec:
    def write(value: Sequence[Any], writer: Writer) -> list[Any]:
        return [inner.write(item, writer) for item in value]

    def read(value: Any, reader: Reader) -> tuple[Any, ...]:
        items: list[Any] = []
        for item in of_kind(list, value):
            try:
                items.append(inner.read(item, reader))
            except Mismatch as mismatch:
                raise mismatch.inside(f"[{len(items)}]") from None
        return tuple(items)

    return Codec(write, read)


def _row(inner: tuple[Codec, ...]) -> Codec:
    def write(value: Sequence[Any], writer: Writer) -> list[Any]:
        return [codec.write(item, writer) for codec, item in zip(inner, value, strict=True)]

    def read(value: Any, reader: Reader) -> tuple[Any, ...]:
        items = of_kind(list, value)
        if len(items) != len(inner):
            raise Mismatch(f"expected {len(inner)} items, found {len(items)}")
        return tuple(codec.read(item, reader) for codec, item in zip(inner, items, strict=True))

    return Codec(write, read)


def _mapping(inner: Codec) -> Codec:
    def write(value: Mapping[str, Any], writer: Writer) -> dict[str, Any]:
        return {write_str(key): inner.write(item, writer) for key, item in value.items()}

    def read(value: Any, reader: Reader) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in of_kind(dict, value).items():
            try:
                found[key] = inner.read(item, reader)
            except Mismatch as mismatch:
                raise mismatch.inside(f"[{spell(key)}]") from None
        return found

    return Codec(write, read)


def _enumeration(cls: type[Enum]) -> Codec:
    members = {member.value: member for member in cls}

    def read(value: Any, reader: Reader) -> Enum:
        if not isinstance(value, str) or value not in members:
            raise Mismatch(f"expected one of {', '.join(members)}, found {spell(value)}")
        return members[value]

    return Codec(lambda value, writer: cls(value).value, read)


@cache
def record_codec(cls: type) -> Codec:
    """The codec of a class itself, also where values of it are normally referred to by number."""
    hints = get_type_hints(cls)
    plan = [(field.name, codec_of(hints[field.name]), _default(field)) for field in fields(cls)]

    def write(value: Any, writer: Writer) -> dict[str, Any]:
        spelled: dict[str, Any] = {}
        for name, codec, default in plan:
            item = getattr(value, name)
            if not _is_default(item, default):
                try:
                    spelled[name] = codec.write(item, writer)
                except Mismatch as mismatch:
                    raise mismatch.inside(f".{name}") from None
                except (TypeError, ValueError, OverflowError, AttributeError) as error:
                    raise Mismatch(f"{spell(item)} does not fit ({error})").inside(f".{name}") from error
        return spelled

    def read(value: Any, reader: Reader) -> Any:
        given = of_kind(dict, value)
        found: dict[str, Any] = {}
        for name, codec, default in plan:
            if name in given:
                try:
                    found[name] = codec.read(given[name], reader)
                except Mismatch as mismatch:
                    raise mismatch.inside(f".{name}") from None
            elif default is MISSING:
                raise Mismatch("it is missing").inside(f".{name}")
        return cls(**found)

    return Codec(write, read)


def _shared(cls: type, inner: Codec) -> Codec:
    table = cls.__name__

    def write(value: Any, writer: Writer) -> int:
        return writer.number_of(value, inner.write)

    def read(value: Any, reader: Reader) -> Any:
        known = reader.tables[table]
        number = read_int(value)
        if not 0 <= number < len(known):
            raise Mismatch(f"refers to number {number} of the {len(known)} in table {table}")
        return known[number]

    return Codec(write, read)


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _is_default(value: Any, default: Any) -> bool:
    # Floats are always written: 0.0 == -0.0, and NaN equals nothing.
    return type(value) is type(default) and not isinstance(value, float) and bool(value == default)
