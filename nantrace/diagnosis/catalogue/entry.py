"""One entry of the catalogue: what a cause is, how it arises, a program that has it, and how that program is mended.

The text stands in entries/<cause>.md, one file per cause, under fixed headings:

    # <cause>                 and what it is, in one or more paragraphs
    ## How it arises          a list
    ## Example                one complete program
    ## Fixes                  paragraphs; below one, a `diff` of the example that mends it

How the cause is recognised is not written there: the rules say it themselves (see recognition.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from ...model import Cause
from .meanings import meaning
from .recognition import Recognition, recognitions

_HEADINGS = ("How it arises", "Example", "Fixes")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class CataloguedFix:
    """What to change and why. `change` is a diff of the example, one line per item; () where no line can say it."""

    text: str
    change: tuple[str, ...] = ()

    def applied_to(self, program: str) -> str:
        """The program with the change made."""
        old, new = (_lines(self.change, sign) for sign in "-+")
        if not old or program.count(old) != 1:
            raise ValueError(f"the lines to be changed stand {program.count(old)} times in the example:\n{old}")
        return program.replace(old, new)


@dataclass(frozen=True, slots=True)
class Entry:
    """All that the catalogue says about one cause."""

    cause: Cause
    meaning: str
    what: tuple[str, ...]  # paragraphs
    arises: tuple[str, ...]
    example: str
    fixes: tuple[CataloguedFix, ...]
    recognised: tuple[Recognition, ...]

    @property
    def fixed(self) -> str:
        """The example with the first of the fixes."""
        return next(fix for fix in self.fixes if fix.change).applied_to(self.example)


@cache
def entry(cause: Cause) -> Entry:
    """What the catalogue says about a cause."""
    text = (files(__package__) / "entries" / f"{cause}.md").read_text(encoding="utf-8")
    return parsed(cause, text)


def parsed(cause: Cause, text: str) -> Entry:
    """The entry that a file of the catalogue holds."""
    first, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    title, _, what = first.partition("\n")
    headings = tuple(part.partition("\n")[0] for part in parts)
    if title != f"# {cause}" or headings != _HEADINGS:
        raise ValueError(f"the entry of {cause} has the headings {title!r}, {headings}; it needs {_HEADINGS}")
    arises, example, fixes = (part.partition("\n")[2] for part in parts)
    return Entry(
        cause,
        meaning(cause),
        what=tuple(_paragraphs(what)),
        arises=tuple(_items(arises)),
        example=_only_fence(example),
        fixes=tuple(_fixes(fixes)),
        recognised=recognitions(cause),
    )


def _paragraphs(text: str) -> list[str]:
    return [" ".join(block.split()) for block in text.split("\n\n") if block.strip()]


def _items(text: str) -> list[str]:
    return [" ".join(item.split()) for item in re.split(r"^- ", text, flags=re.MULTILINE) if item.strip()]


def _only_fence(text: str) -> str:
    (program,) = (body for language, body in _FENCE.findall(text) if language == "python")
    return str(program)


def _fixes(text: str) -> list[CataloguedFix]:
    """Each paragraph is a fix; a diff belongs to the paragraph above it."""
    found: list[CataloguedFix] = []
    at = 0
    for fence in _FENCE.finditer(text):
        found += [CataloguedFix(paragraph) for paragraph in _paragraphs(text[at : fence.start()])]
        found[-1] = CataloguedFix(found[-1].text, tuple(fence[2].splitlines()))
        at = fence.end()
    return found + [CataloguedFix(paragraph) for paragraph in _paragraphs(text[at:])]


def _lines(change: tuple[str, ...], sign: str) -> str:
    """The lines before ("-") or after ("+") the change; an empty one is the same in both."""
    return "".join(f"{line[1:]}\n" for line in change if line[:1] in (sign, " ", ""))
