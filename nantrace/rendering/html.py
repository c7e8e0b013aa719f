"""The report as one self-contained page: the story, the picture, nothing from the network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .layout import rows_as_lines
from .story import Fix, Row, Sentence
from .style import UNICODE
from .text import story_of

if TYPE_CHECKING:
    from ..report import Report

_WIDTH = 110


def page(report: Report) -> str:
    """The page as HTML text."""
    import jinja2

    template = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    story = story_of(report)
    return environment.from_string(template).render(
        headline=story.headline,
        sections=[(section.label, [_shown(row) for row in section.rows]) for section in story.sections],
        picture=_picture(report),
    )


def _shown(row: Row) -> dict[str, object]:
    match row:
        case Sentence():
            return {"kind": "sentence", "text": row.text, "role": row.role}
        case Fix():
            mark = {True: "verified", False: "tried, did not help", None: ""}[row.verified]
            return {"kind": "fix", "text": row.text, "code": "\n".join(row.code), "mark": mark, "place": row.place}
        case _:
            return {"kind": "lines", "lines": list(rows_as_lines((row,), _WIDTH, UNICODE))}


def _picture(report: Report) -> object:
    """The drawn graph as markup, or None where nothing here can draw."""
    from markupsafe import Markup

    from .dot import coarse_dot_source, dot_source
    from .drawing import drawn_svg

    svg = drawn_svg(dot_source(report), coarser=lambda: coarse_dot_source(report))
    if svg is None or "<svg" not in svg:
        return None
    # Without the XML declaration and doctype, which may not stand inside a page. The text in the
    # SVG was escaped by Graphviz, and none of its attributes come from the user.
    return Markup(svg[svg.index("<svg") :])
