"""The faces of a report: text, pictures, pages and data files. Imports no torch.

The suffix of the path says which face; every format has a file of its own here.
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RenderError

if TYPE_CHECKING:
    from ..report import Report


def render(report: Report, path: str | PathLike[str]) -> str:
    """Write the report to `path` and return the path that was written.

    A picture that nothing here can draw becomes a .dot file beside it, with a warning; a suffix
    that nobody knows, or a file that cannot be written, raises `RenderError`.
    """
    from .drawing import write

    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in _PICTURES:
        return _draw(report, path)
    writer = _WRITERS.get(suffix)
    if writer is None:
        allowed = ", ".join([*_PICTURES, *_WRITERS])
        raise RenderError(f"cannot render {path}: the suffix {suffix!r} is not known, use one of {allowed}")
    write(path, writer(report).encode("utf-8", "backslashreplace"))
    return str(path)


def _draw(report: Report, path: Path) -> str:
    from .dot import coarse_dot_source, dot_source
    from .drawing import draw

    return draw(dot_source(report), path, coarser=lambda: coarse_dot_source(report))


def _dot(report: Report) -> str:
    from .dot import dot_source

    return dot_source(report)


def _text(report: Report) -> str:
    from .text import plain

    return plain(report)


def _markdown(report: Report) -> str:
    from .markdown import markdown

    return markdown(report)


def _json(report: Report) -> str:
    from .json import as_json

    return as_json(report)


def _html(report: Report) -> str:
    from .html import page

    return page(report)


_PICTURES = (".svg", ".png", ".pdf")
_WRITERS: dict[str, Callable[[Report], str]] = {
    ".dot": _dot,
    ".gv": _dot,
    ".txt": _text,
    ".md": _markdown,
    ".json": _json,
    ".html": _html,
}
