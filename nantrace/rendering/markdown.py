"""The report as Markdown, to paste into an issue or a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .layout import Line, rows_as_lines
from .story import CodeBlock, Fix, Operands, Section, Sentence, Trail
from .style import ASCII
from .text import story_of

if TYPE_CHECKING:
    from ..report import Report

_WIDTH = 100
_SPECIAL = "\\`*_{}[]<>#|~!&"


def markdown(report: Report) -> str:
    """The same story as the terminal's, with its code and tables in fences."""
    story = story_of(report)
    lines = [f"# {escaped(f'{story.headline.value}: {story.headline.text}')}", ""]
    if story.headline.place:
        lines += [code(story.headline.place), ""]
    for section in story.sections:
        lines += [f"## {section.label}", "", *_section(section)]
    return "\n".join(lines).rstrip() + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join("\\" + one if one in _SPECIAL else one for one in text)


def code(text: str) -> str:
    """An inline code span, whatever backticks the text holds."""
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _section(section: Section) -> Iterator[str]:
    for row in section.rows:
        match row:
            case Sentence():
                yield from (escaped(row.text), "")
            case Fix():
                mark = {True: "**verified:** ", False: "*tried, did not help:* ", None: ""}[row.verified]
                yield f"{row.number}. {mark}{escaped(row.text)}"
                if row.place:
                    yield from ("", f"   {escaped(row.place)}")
                yield from ("   " + line if line else "" for line in ("", *_fenced(row.code, "python")) if row.code)
                yield ""
            case CodeBlock() | Operands() | Trail():
                yield from (*_fenced(_texts(rows_as_lines((row,), _WIDTH, ASCII)), "text"), "")


def _texts(lines: Iterable[Line]) -> tuple[str, ...]:
    return tuple("".join(span.text for span in line).rstrip() for line in lines)


def _fenced(lines: tuple[str, ...], language: str) -> tuple[str, ...]:
    fence = "`" * max(3, _longest_run("\n".join(lines)) + 1)
    return (f"{fence}{language}", *lines, fence)


def _longest_run(text: str) -> int:
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    return longest
