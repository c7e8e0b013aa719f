"""Results as Markdown, for the README, and as JSON, for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ..rendering.json import jsonable
from .results import Results
from .tables import Table, machine_in_words, tables

FORMAT = "nantrace-bench"
VERSION = 1


def markdown(results: Results) -> str:
    """The machine and every table."""
    parts = [f"*{machine_in_words(results.machine)}*"]
    for table in tables(results):
        parts += [f"**{table.title}**", "\n".join(_rows(table)), *table.notes]
    return "\n\n".join(parts)


def as_json(results: Results) -> str:
    """Every figure, in seconds, bytes and ratios."""
    content = {"format": FORMAT, "version": VERSION, "results": jsonable(results)}
    return json.dumps(content, allow_nan=False, indent=1)


def _rows(table: Table) -> Iterator[str]:
    yield _row(table.header)
    yield _row(["---"] * len(table.header))
    yield from map(_row, table.rows)


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
