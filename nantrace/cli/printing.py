"""Prints as the reader can take it: in colour on a terminal, as plain text elsewhere."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..rendering.layout import Line
    from ..rendering.style import Glyphs
    from ..report import Report

_DEFAULT_COLUMNS = 100
_LEAST_COLUMNS = 40  # below this a line of code and its operands cannot be shown


def print_report(report: Report, columns: int | None = None) -> None:
    """Print the report, at most `columns` wide (default: as wide as the terminal or COLUMNS, else 100)."""
    from rich.console import Console

    console = Console(width=columns)
    if console.is_terminal:
        console.print(report)
    else:
        from ..rendering.text import plain

        sys.stdout.write(plain(report, columns or _columns_of_environment(), encoding=sys.stdout.encoding or "utf-8"))


def print_lines(lines: Callable[[int, Glyphs], Iterable[Line]], columns: int | None = None) -> None:
    """Print laid-out lines in the same way."""
    from rich.console import Console

    from ..rendering.style import PLAIN
    from ..rendering.text import Page, plain_lines

    console = Console(width=columns)
    if console.is_terminal:
        console.print(Page(lines, console.width))
    else:
        laid_out = lines(columns or _columns_of_environment(), PLAIN.glyphs)
        sys.stdout.write(plain_lines(laid_out, encoding=sys.stdout.encoding or "utf-8"))


def columns(text: str) -> int:
    """The value of --width; argparse turns the error into usage and exit code 2."""
    number = int(text) if text.isdecimal() else 0
    if number < _LEAST_COLUMNS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of columns; give {_LEAST_COLUMNS} or more")
    return number


def _columns_of_environment() -> int:
    text = os.environ.get("COLUMNS", "")
    return max(_LEAST_COLUMNS, int(text)) if text.isdecimal() else _DEFAULT_COLUMNS
