"""Draw the graph of a dump as a picture.

The suffix of FILE says what is written: .svg, .png, .pdf, or .dot for the source of the picture.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RenderError

if TYPE_CHECKING:
    from ..report import Report

_SUFFIXES = (".svg", ".png", ".pdf", ".dot")


def prepare(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    parser.add_argument("dump", metavar="DUMP", help="a file that nantrace wrote (.nantrace)")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the picture to write")


def run(options: argparse.Namespace) -> int:
    """Draw, and say what was written."""
    from ..dump import load

    suffix = Path(options.output).suffix
    if suffix.lower() not in _SUFFIXES:
        raise RenderError(f"cannot draw {options.output!r}: the suffix {suffix!r} is none of {', '.join(_SUFFIXES)}")
    written = draw(load(options.dump), options.output)
    print(f"wrote {written}")
    return 0


def draw(report: Report, path: str) -> str:
    """Write the picture and return the path written; what could not be drawn here is said on stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        written = report.render(path)
    for warning in caught:
        print(f"nantrace: {warning.message}", file=sys.stderr)
    return written
