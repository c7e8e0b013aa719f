"""Lays a story out in lines of a given width; each line is spans of text with a role.

The lines know nothing of colours or files: the faces in text.py print them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .breaking import broken
from .harmless import cells, cut, shorten, wrapped
from .numbers import counted
from .story import (
    CodeBlock,
    CodeLine,
    Fix,
    Fold,
    Headline,
    OperandLine,
    Operands,
    PathLine,
    Row,
    Section,
    Sentence,
    Story,
    Trail,
)
from .style import Glyphs

if sys.version_info >= (3, 11):
    from typing import assert_never
else:
    from typing_extensions import assert_never  # torch depends on it

_GUTTER = 7  # columns of the section labels
_NARROWEST = 40
_STATE = 21  # columns for "3 inf 1 -inf of 8,192"; more where the screen is wide
_TRIED = {True: ("[verified] ", "verified"), False: ("[tried, did not help] ", "rejected"), None: ("", "body")}


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a line. `role` is the name of a field of Style."""

    text: str
    role: str = "body"


Line = tuple[Span, ...]


def lay_out(story: Story, width: int, glyphs: Glyphs) -> Iterator[Line]:
    """All lines of the story, none wider than `width` (60 and more look well)."""
    width = max(width, _NARROWEST)
    yield from _headline(story.headline, width)
    yield ()
    for section in story.sections:
        yield from _section(section, width, glyphs)


def rows_as_lines(rows: Iterable[Row], width: int, glyphs: Glyphs) -> Iterator[Line]:
    """The lines of some rows alone, without a label."""
    for row in rows:
        yield from _row(row, width, glyphs)


def _headline(headline: Headline, width: int) -> Iterator[Line]:
    """One line where it fits; else the sentence, and the place on a line of its own."""
    lead = f"{headline.value}: "
    whole = f"{lead}{headline.text} - {headline.place}" if headline.place else lead + headline.text
    lines = [whole] if cells(whole) <= width else wrapped(lead + headline.text, width)
    yield (Span(lines[0][: len(lead)], "bad"), Span(lines[0][len(lead) :], "name"))
    yield from ((Span(line, "name"),) for line in lines[1:])
    if cells(whole) > width and headline.place:
        yield from ((Span("  " + line, "name"),) for line in wrapped(headline.place, width - 2))


def _section(section: Section, width: int, glyphs: Glyphs) -> Iterator[Line]:
    label = Span(section.label.ljust(_GUTTER), "label")
    blank = Span(" " * _GUTTER)
    for position, line in enumerate(rows_as_lines(section.rows, width - _GUTTER, glyphs)):
        yield (blank if position else label, *line)
    if section.label in ("Code", "Path", "Fix", "Why"):
        yield ()


def _row(row: Row, width: int, glyphs: Glyphs) -> Iterator[Line]:
    match row:
        case Sentence():
            yield from ((Span(text, row.role),) for text in wrapped(row.text, width))
        case CodeBlock():
            yield from _code(row, width, glyphs)
        case Operands():
            yield from _operands(row, width, glyphs)
        case Trail():
            yield from _trail(row, width, glyphs)
        case Fix():
            yield from _fix(row, width, glyphs)
        case _:
            assert_never(row)


def _code(block: CodeBlock, width: int, glyphs: Glyphs) -> Iterator[Line]:
    yield (Span(shorten(block.place, width, glyphs.ellipsis), "name"),)
    digits = max((len(str(line.number)) for line in block.lines), default=0)
    for line in block.lines:
        pointer = glyphs.pointer if line.current else " "
        lead = f"{pointer} {line.number:>{digits}} {glyphs.bar} "
        shown = _window(line, width - len(lead), glyphs.ellipsis)
        yield (Span(lead, "dim"), Span(shown.text, "code" if line.current else "dim"))
        if shown.marks:
            underlined = [" "] * max(end for _, end in shown.marks)
            for start, end in shown.marks:
                underlined[start:end] = [glyphs.caret] * (end - start)
            under = "".join(mark * cells(character) for mark, character in zip(underlined, shown.text, strict=False))
            yield (Span(" " * (digits + 3) + f"{glyphs.bar} ", "dim"), Span(under.rstrip(), "caret"))


def _window(line: CodeLine, room: int, ellipsis: str) -> CodeLine:
    """The part of the line that holds the expression; a line that fits stays as it is."""
    if cells(line.text) <= room:
        return line
    start = 0
    if line.marks and line.marks[0][1] > room - len(ellipsis):
        start = max(0, min(line.marks[0][0] - 8, len(line.text) - room + len(ellipsis)))
    head = ellipsis if start else ""
    text = cut(head + line.text[start:], room, ellipsis)
    shift = start - len(head)
    last = len(text)
    marks = tuple((max(0, begin - shift), min(last, end - shift)) for begin, end in line.marks if begin - shift < last)
    return CodeLine(line.number, text, marks, line.current)


def _operands(operands: Operands, width: int, glyphs: Glyphs) -> Iterator[Line]:
    """`name = value   facts` in columns; facts go below where the columns leave no room."""
    lefts = [_left(line) for line in operands.lines]
    most = width * 9 // 20
    column = max((cells(left) for left in lefts if cells(left) <= most), default=0)
    for line, left in zip(operands.lines, lefts, strict=True):
        room = width - column - 4
        if line.facts and cells(left) <= column and cells(line.facts) <= room:
            yield (Span(f"  {left}{' ' * (column - cells(left))}  ", line.role), Span(line.facts, "dim"))
            continue
        first, *rest = wrapped(left, width - 4)
        yield (Span(f"  {first}", line.role),)
        yield from ((Span(f"    {text}", line.role),) for text in rest)
        yield from ((Span(f"      {text}", "dim"),) for text in (wrapped(line.facts, width - 6) if line.facts else ()))


def _left(line: OperandLine) -> str:
    return f"{line.name} = {line.value}" if line.value else line.name


def _trail(trail: Trail, width: int, glyphs: Glyphs) -> Iterator[Line]:
    """The stops in three columns: what, what it held, and where."""
    steps = [stop for stop in trail.stops if isinstance(stop, PathLine) and stop.kind != "end"]
    what = min(max((cells(stop.what) for stop in steps), default=0), width // 3)
    state = min(max((cells(stop.state) for stop in steps), default=0), max(_STATE, width * 27 // 100))
    for stop in trail.stops:
        if isinstance(stop, Fold):
            text = f"{glyphs.ellipsis} {counted(stop.count, 'more op')}, {stop.note} {glyphs.ellipsis}"
            yield (Span(f"{glyphs.fold}  {cut(text, width - 3, glyphs.ellipsis)}", "dim"),)
        elif stop.kind == "end":
            for position, text in enumerate(wrapped(stop.what, width - 3)):
                yield (Span(("   " if position else glyphs.end.ljust(3)) + text, "bad"),)
        else:
            yield _stop(stop, (what, state, width - what - state - 7), glyphs)


def _stop(stop: PathLine, columns: tuple[int, int, int], glyphs: Glyphs) -> Line:
    what, state = (
        shorten(text, column, glyphs.ellipsis) + " " * (column - cells(text))
        for text, column in zip((stop.what, stop.state), columns, strict=False)
    )
    origin = stop.kind == "origin"
    return (
        Span(glyphs.origin.ljust(3), "bad") if origin else Span(glyphs.step.ljust(3), "dim"),
        Span(f"{what}  {state}  ", "bad" if origin else "body"),
        Span(_where(stop, columns[2], glyphs.ellipsis), "dim"),
    )


def _where(stop: PathLine, room: int, ellipsis: str) -> str:
    """The module, its type and the place, as much of it as there is room for, in that order."""
    if not stop.module:
        return shorten(stop.place, room, ellipsis)
    typed = f"{stop.module} ({stop.module_type})" if stop.module_type else stop.module
    for text in (f"{typed}  {stop.place}", typed):
        if cells(text) <= room:
            return text
    return shorten(stop.module, room, ellipsis)


def _fix(fix: Fix, width: int, glyphs: Glyphs) -> Iterator[Line]:
    lead = f"{fix.number}. "
    mark, role = _TRIED[fix.verified]
    first, *rest = wrapped(mark + fix.text, width - 3)
    yield (Span(lead), Span(first[: len(mark)], role), Span(first[len(mark) :]))
    yield from ((Span(f"   {text}"),) for text in rest)
    if fix.place:
        yield (Span(f"       {cut(fix.place, width - 7, glyphs.ellipsis)}", "dim"),)
    for code in fix.code:
        # Code is there to be taken over: it is broken where Python lets a line end, and cut only where it does not.
        for line in broken(code, width - 7):
            yield (Span(f"       {cut(line, width - 7, glyphs.ellipsis)}", "code"),)
