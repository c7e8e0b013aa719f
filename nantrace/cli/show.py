"""Print the report of a dump.

In colour on a terminal, plain text elsewhere (NO_COLOR, FORCE_COLOR and COLUMNS are honoured).
"""

from __future__ import annotations

import argparse

from .printing import columns, print_report


def prepare(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    parser.add_argument("dump", metavar="DUMP", help="a file that nantrace wrote (.nantrace)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the report as JSON, for programs")
    form.add_argument("--width", metavar="N", type=columns, help="the most columns (default: the terminal's, or 100)")


def run(options: argparse.Namespace) -> int:
    """Print the report in the form that was asked for."""
    from ..dump import load

    report = load(options.dump)
    if options.json:
        from ..rendering.json import as_json

        print(as_json(report))
        return 0
    print_report(report, options.width)
    return 0
