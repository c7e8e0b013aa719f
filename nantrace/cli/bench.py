"""Measure what watching costs on this machine, beside the other ways to look for a NaN.

Blocks of plain and of watched training steps run in turns; the tables show medians of paired ratios. MEASURE is one
or more of overhead, memory, report, start, growth (default: all). Takes some minutes; --quick less than one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..bench.plan import DTYPES, FULL, LEVELS, MEASURES, OURS, QUICK, TOOLS, WORKS, Plan
from ..errors import OptionError
from .table import lines

if TYPE_CHECKING:
    from ..bench.results import Results


def prepare(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    parser.add_argument("measures", metavar="MEASURE", nargs="*", help=f"what to measure: {', '.join(MEASURES)}")
    parser.add_argument("--quick", action="store_true", help="fewer works, sizes and repeats: a first look")
    parser.add_argument("--all", action="store_true", help="every work, the large ones (GPT-2 124M) too")
    parser.add_argument(
        "--work", action="append", choices=WORKS, metavar="NAME", help=f"of overhead and memory: {', '.join(WORKS)}"
    )
    parser.add_argument("--tool", action="append", choices=TOOLS, metavar="NAME", help=f"one of {', '.join(TOOLS)}")
    parser.add_argument("--level", action="append", choices=LEVELS, metavar="LEVEL", help=f"one of {', '.join(LEVELS)}")
    parser.add_argument("--seconds", type=_positive, metavar="S", help="of training per work, over all tools")
    parser.add_argument("--steps", type=_count, metavar="N", help="of a block (default: as many as take 0.3 s)")
    parser.add_argument("--compiled", action="store_true", help="train models that torch.compile has compiled")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of weights and data (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (%(default)s)")
    parser.add_argument("--threads", type=_count, default=1, metavar="N", help="of torch (%(default)s)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print every figure as JSON, for programs")
    form.add_argument("--markdown", action="store_true", help="print the tables as Markdown")


def run(options: argparse.Namespace) -> int:
    """Measure, and print the form that was asked for; stderr says meanwhile what is being measured."""
    plan = plan_of(options)
    from ..bench.measuring import run as measure

    results = measure(plan, _say)
    if options.json:
        from ..bench.writing import as_json

        print(as_json(results))
    elif options.markdown:
        from ..bench.writing import markdown

        print(markdown(results))
    else:
        for line in _page(results):
            print(line)
    return 0


def plan_of(options: argparse.Namespace) -> Plan:
    """What the options ask for; those that contradict each other are an error."""
    for measure in options.measures:
        if measure not in MEASURES:
            raise OptionError(f"there is no measure {measure!r}; there is {', '.join(MEASURES)}")
    if options.all and (options.work or options.quick):
        raise OptionError("--all is every work at full length: leave out --work and --quick")
    if options.level and options.tool and not set(options.tool) & set(OURS):
        raise OptionError(f"--level is of nantrace alone, and --tool leaves it out: add --tool {OURS[0]}")
    pace = QUICK if options.quick else FULL
    if options.seconds is not None:
        pace = replace(pace, seconds=options.seconds)
    return Plan(
        pace=pace,
        measures=_in_order(options.measures, MEASURES),
        works=tuple(WORKS) if options.all else tuple(dict.fromkeys(options.work or ())),
        tools=_in_order(options.tool, TOOLS),
        levels=_in_order(options.level, LEVELS),
        steps=options.steps,
        compiled=options.compiled,
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
    )


def _in_order(chosen: Sequence[str] | None, known: Sequence[str] | dict[str, str]) -> tuple[str, ...]:
    return tuple(name for name in known if not chosen or name in chosen)


def _page(results: Results) -> list[str]:
    from ..bench.tables import machine_in_words, tables

    page = [machine_in_words(results.machine)]
    for table in tables(results):
        page += ["", table.title, "", *lines(table.header, table.rows, right=table.header[1:]), "", *table.notes]
    return [line.replace("`", "") for line in page]


def _say(what: str) -> None:
    print(f"measuring {what}", file=sys.stderr, flush=True)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; give seconds above 0")
    return value


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count; give 1 or more")
    return value
