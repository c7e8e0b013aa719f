"""The report as text: plain for files and exceptions, coloured for a terminal.

Both print the same lines (layout.py) of the same story (telling.py); they differ in the Style.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .harmless import encodable
from .layout import Line, lay_out
from .limits import ROOMY, TIGHT, TIGHTEST, Limits
from .story import Story
from .style import COLOUR, COLOUR_ASCII, PLAIN, Glyphs
from .telling import tell

if TYPE_CHECKING:
    from ..report import Report

_SCREEN = 40  # lines


def plain(report: Report, width: int = 100, *, encoding: str = "utf-8") -> str:
    """The report as plain text without colours, framed in ASCII.

    Only what the user wrote (names, code) can hold other characters; those that `encoding`
    lacks are spelled as escapes.
    """
    return plain_lines(_screen(report, width, PLAIN.glyphs), encoding=encoding)


def plain_lines(lines: Iterable[Line], *, encoding: str = "utf-8") -> str:
    """Lines as plain text without colours; what `encoding` lacks is spelled as escapes."""
    text = "\n".join("".join(span.text for span in line).rstrip() for line in lines)
    return encodable(text.rstrip(), encoding) + "\n"


def rich_parts(report: Report, width: int) -> Iterator[Any]:
    """The report as rich renderables: one screen, in colour where the console has it."""
    yield Page(lambda columns, glyphs: _screen(report, columns, glyphs), width)


def story_of(report: Report, limits: Limits = ROOMY) -> Story:
    """The display data of a report."""
    return tell(report.snapshot, report.diagnosis, report.path, limits)


def _screen(report: Report, width: int, glyphs: Glyphs) -> list[Line]:
    """The lines of the report; with less of everything where they would not fit one screen."""
    lines: list[Line] = []
    for limits in (ROOMY, TIGHT, TIGHTEST):
        lines = list(lay_out(story_of(report, limits), width, glyphs))
        if len(lines) <= _SCREEN:
            break
    return lines


@dataclass(frozen=True, slots=True)
class Page:
    """Lines that print themselves on a rich console, whatever characters that can show."""

    lines: Callable[[int, Glyphs], Iterable[Line]]  # of a width, with these drawing characters
    width: int

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        style = COLOUR_ASCII if options.ascii_only else COLOUR
        encoding = "ascii" if options.ascii_only else "utf-8"
        for line in self.lines(min(self.width, options.max_width), style.glyphs):
            yield Text.assemble(*_styled(line, style, encoding), no_wrap=True, overflow="crop", end="\n")


def _styled(line: Line, style: Any, encoding: str) -> Iterator[tuple[str, str]]:
    # Text.assemble takes text and style apart: brackets in a name are no markup.
    return ((encodable(span.text, encoding), getattr(style, span.role)) for span in line)
