"""How a story looks: one record of roles and glyphs, with a plain twin."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The drawing characters; each twin has the same fields."""

    ellipsis: str
    caret: str
    bar: str
    pointer: str
    origin: str
    step: str
    end: str
    fold: str


ASCII = Glyphs(ellipsis="...", caret="^", bar="|", pointer=">", origin="*", step="|", end="=>", fold=":")
UNICODE = Glyphs(ellipsis="…", caret="^", bar="│", pointer="▸", origin="◉", step="│", end="➜", fold="┊")


@dataclass(frozen=True, slots=True)
class Style:
    """A terminal style (in rich's words) for every role that a piece of text can have."""

    glyphs: Glyphs
    body: str = ""
    dim: str = ""
    label: str = ""
    bad: str = ""
    name: str = ""
    code: str = ""
    caret: str = ""
    verified: str = ""
    rejected: str = ""


PLAIN = Style(ASCII)
COLOUR = Style(
    UNICODE,
    dim="dim",
    label="bold cyan",
    bad="bold red",
    name="bold",
    code="default",
    caret="bold red",
    verified="bold green",
    rejected="yellow",
)
COLOUR_ASCII = replace(COLOUR, glyphs=ASCII)
