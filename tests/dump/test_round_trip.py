"""What was saved is what is loaded, to the last bit."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import nantrace
from nantrace.dump import read_snapshot, save
from nantrace.dump.codec import ENUMS, RECORDS
from nantrace.dump.schema import SCHEMA_VERSION
from nantrace.model import History, Origin, Snapshot

from .builders import INF, NAN, event, full, members_of, small


@pytest.mark.parametrize("snapshot", [small(), full()], ids=["small", "full"])
def test_a_snapshot_comes_back_exactly(snapshot: Snapshot, tmp_path: Path) -> None:
    """Every field comes back with its value and its type, NaN and -0.0 and tuples included."""
    loaded = read_snapshot(save(snapshot, tmp_path / "a.nantrace"))

    assert repr(loaded) == repr(snapshot)  # equality would stumble over NaN


def test_the_full_snapshot_uses_every_class_and_field() -> None:
    """The round trip above covers the whole model: a new class or field must be added to `full`."""
    used = {
        (type(record).__name__, field.name)
        for record in _records_in(full())
        for field in dataclasses.fields(record)
        if _differs(record, field)
    }
    every_field = {(cls.__name__, field.name) for cls in RECORDS for field in dataclasses.fields(cls)}

    assert every_field - used == set()


def test_the_codec_knows_exactly_the_classes_that_a_snapshot_can_hold() -> None:
    """A class that is added to the model must be entered in the codec; one that is removed must leave it."""
    assert _classes_below(Snapshot) == {*RECORDS, *ENUMS}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1, (2, [3])), (1, (2, [3]))),
        ({"a": NAN}, {"a": NAN}),
        ({"$float": "inf"}, {"$float": "inf"}),
        ({"$tuple": [1]}, {"$tuple": [1]}),
        ({3: "x"}, {"3": "x"}),
        (2**80, 2**80),
        (complex(1, 2), "(1+2j)"),
        (slice(1, None), "slice(1, None, None)"),
        ("caf\u00e9 \udc80 \x00", "caf\u00e9 \udc80 \x00"),
    ],
    ids=repr,
)
def test_free_form_arguments(given: Any, expected: Any, tmp_path: Path) -> None:
    """JSON's types and tuples come back as they were; everything else comes back as its text."""
    snapshot = replace(small(), origin=Origin("log", None, arguments={"given": given}))

    loaded = read_snapshot(save(snapshot, tmp_path / "a.nantrace"))

    assert loaded.origin is not None
    assert repr(loaded.origin.arguments["given"]) == repr(expected)


def test_numbers_and_dtypes_of_other_libraries(tmp_path: Path) -> None:
    """A numpy number is a number, a torch dtype is its name."""
    numpy = pytest.importorskip("numpy")
    torch = pytest.importorskip("torch")
    given = {"count": numpy.int64(3), "scale": numpy.float32(0.5), "dtype": torch.float16}

    loaded = read_snapshot(save(replace(small(), environment=given), tmp_path / "a.nantrace"))

    assert loaded.environment == {"count": 3, "scale": 0.5, "dtype": "torch.float16"}


def test_an_argument_that_cannot_be_printed(tmp_path: Path) -> None:
    """A user's object whose `str()` raises is named by its type."""

    class Shy:
        def __str__(self) -> str:
            raise RuntimeError

    save(replace(small(), environment={"who": Shy()}), tmp_path / "a.nantrace")

    assert read_snapshot(tmp_path / "a.nantrace").environment == {"who": "<Shy>"}


def test_a_deep_argument_is_cut_not_refused(tmp_path: Path) -> None:
    """An argument nested a thousand deep (or in itself) does not prevent the dump."""
    endless: list[Any] = []
    endless.append(endless)

    save(replace(small(), environment={"endless": endless}), tmp_path / "a.nantrace")

    assert "..." in repr(read_snapshot(tmp_path / "a.nantrace").environment)


def test_extreme_events(tmp_path: Path) -> None:
    """The columns hold every double and every 64-bit whole number."""
    events = (event(2**62, min=-INF, max=1.7976931348623157e308, mean=5e-324, rms=-0.0), event(-1, numel=0))
    snapshot = replace(small(), history=History(events=events, capacity=1))

    loaded = read_snapshot(save(snapshot, tmp_path / "a.nantrace"))

    assert repr(loaded.history) == repr(snapshot.history)


def test_load_gives_a_report(tmp_path: Path) -> None:
    """`nantrace.load` opens what `Report.save` wrote, and diagnoses it anew."""
    path = nantrace.Report(full()).save(tmp_path / "a.nantrace")

    report = nantrace.load(path)

    assert isinstance(report, nantrace.Report)
    assert report.step == 1
    assert isinstance(report.cause, nantrace.Cause)


def test_the_json_is_strict_and_the_manifest_says_what_it_is(tmp_path: Path) -> None:
    """Any JSON reader can read the members; none of them holds a bare NaN."""
    members = members_of(Path(save(full(), tmp_path / "a.nantrace")))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for name in ("manifest.json", "trace.json", "history.json"):
        json.loads(members[name], parse_constant=refuse)
    manifest = json.loads(members["manifest.json"])
    assert manifest["format"] == "nantrace-dump"
    assert manifest["schema_version"] == list(SCHEMA_VERSION)
    assert manifest["nantrace"] == nantrace.__version__
    assert (manifest["torch"], manifest["rank"], manifest["step"]) == ("2.13.0", "0", 1)


def test_equal_sources_are_stored_once(tmp_path: Path) -> None:
    """A line that thousands of ops share stands once in the file, and is one object after loading."""
    path = Path(save(full(), tmp_path / "a.nantrace"))

    assert len(json.loads(members_of(path)["trace.json"])["tables"]["Source"]) == 1
    first, second = read_snapshot(path).ops
    assert first.source is second.source


def _records_in(value: Any) -> list[Any]:
    if dataclasses.is_dataclass(value):
        inner = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return [value, *(record for item in inner for record in _records_in(item))]
    if isinstance(value, tuple):
        return [record for item in value for record in _records_in(item)]
    return []


def _differs(record: Any, field: dataclasses.Field[Any]) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return bool(getattr(record, field.name) != field.default_factory())
    return field.default is dataclasses.MISSING or repr(getattr(record, field.name)) != repr(field.default)


def _classes_below(annotation: Any) -> set[type]:
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        hints = get_type_hints(annotation).values()
        return {annotation}.union(*map(_classes_below, hints))
    found = set().union(*map(_classes_below, get_args(annotation))) if get_args(annotation) else set()
    return found | ({annotation} if isinstance(annotation, type) and annotation in ENUMS else set())
