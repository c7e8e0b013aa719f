"""A plain table: columns lined up with blanks, one row per line, so that it can be read, searched and cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..rendering.harmless import cells, harmless

_GAP = "  "


def lines(header: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> Iterator[str]:
    """The lines of a table; the columns named in `right` are lined up at their right end."""
    spelled = [list(header), *([harmless(cell) for cell in row] for row in rows)]
    columns = [
        _lined_up(column, to_the_right=name in right)
        for name, column in zip(header, zip(*spelled, strict=True), strict=True)
    ]
    for row in zip(*columns, strict=True):
        yield _GAP.join(row).rstrip()


def _lined_up(column: Sequence[str], *, to_the_right: bool) -> list[str]:
    width = max(map(cells, column))
    blanks = [" " * (width - cells(text)) for text in column]
    return [blank + text if to_the_right else text + blank for blank, text in zip(blanks, column, strict=True)]
