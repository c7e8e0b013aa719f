"""An entry of the catalogue of causes as lines, for `nantrace explain`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from .harmless import cells, cut, wrapped
from .layout import Line, Span
from .style import Glyphs

if TYPE_CHECKING:
    from ..diagnosis.catalogue import CataloguedFix, Entry, Recognition
    from ..model import Cause

_WIDEST = 100  # a longer line of prose is hard to read
_CHANGED = {"+": "verified", "-": "rejected"}


def explanation(entry: Entry, width: int, glyphs: Glyphs) -> Iterator[Line]:
    """The whole entry; no line is wider than `width`."""
    width = min(width, _WIDEST)
    yield from _titled(f"{entry.cause}: ", entry.meaning, width)
    yield ()
    for paragraph in entry.what:
        yield from (*_prose(paragraph, width), ())
    yield from _heading("How it arises")
    for item in entry.arises:
        yield from _listed("- ", item, width)
    yield ()
    yield from _heading("Example")
    yield from _code((("    ", line) for line in entry.example.splitlines()), width, glyphs)
    yield ()
    yield from _heading("Fixes")
    for number, fix in enumerate(entry.fixes, start=1):
        yield from _fix(number, fix, width, glyphs)
    yield from _heading("How nantrace recognises it")
    for recognition in entry.recognised:
        yield from _recognition(recognition, width)
    yield ()
    yield from _runs(entry.cause)


def contents(meanings: Mapping[Cause, str], width: int) -> Iterator[Line]:
    """All causes, each with its meaning beside it."""
    width = min(width, _WIDEST)
    column = max(cells(str(cause)) for cause in meanings) + 2
    for cause, meaning in meanings.items():
        first, *rest = wrapped(meaning, width - column)
        yield (Span(str(cause).ljust(column), "name"), Span(first))
        yield from ((Span(" " * column + text),) for text in rest)
    yield ()
    yield (Span("nantrace explain CAUSE explains one of them.", "dim"),)


def _titled(lead: str, meaning: str, width: int) -> Iterator[Line]:
    first, *rest = wrapped(lead + meaning, width)
    yield (Span(first[: len(lead)], "bad"), Span(first[len(lead) :], "name"))
    yield from ((Span(text, "name"),) for text in rest)


def _heading(text: str) -> Iterator[Line]:
    yield (Span(text, "label"),)


def _prose(text: str, width: int) -> Iterator[Line]:
    yield from ((Span(line),) for line in wrapped(text, width))


def _listed(lead: str, text: str, width: int) -> Iterator[Line]:
    first, *rest = wrapped(text, width - len(lead) - 2)
    yield (Span(f"  {lead}"), Span(first))
    yield from ((Span("  " + " " * len(lead)), Span(line)) for line in rest)


def _code(lines: Iterable[tuple[str, str]], width: int, glyphs: Glyphs) -> Iterator[Line]:
    """Lines of a program with what stands before each; what is too long for the screen is cut."""
    for lead, text in lines:
        yield (Span(cut(lead + text, width, glyphs.ellipsis), _CHANGED.get(lead.strip(), "code")),)


def _fix(number: int, fix: CataloguedFix, width: int, glyphs: Glyphs) -> Iterator[Line]:
    yield from _listed(f"{number}. ", fix.text, width)
    yield from _code(((f"  {line[:1]} ", line[1:]) for line in fix.change), width, glyphs)
    yield ()


def _recognition(recognition: Recognition, width: int) -> Iterator[Line]:
    yield from _listed("", recognition.sees, width)
    for label, text in (("certain: ", recognition.certain), ("likely:  ", recognition.likely)):
        if text:
            yield from _listed("  " + label, text, width)


def _runs(cause: Cause) -> Iterator[Line]:
    """How to run the example; two lines, for one would not fit a narrow screen."""
    yield (Span(f"nantrace explain {cause} --example > try.py", "dim"),)
    yield (Span("python try.py", "dim"),)
