"""Print the recorded steps of a dump as two tables.

The first has one line per step: loss, gradient norm, learning rate. The second has one line per module:
its last values, and the smallest and largest over all recorded steps. MODULE-PATTERN chooses modules:
`encoder` means that module and everything in it, `*.attention` is matched as the shell does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from math import isnan

from ..errors import NantraceError
from ..model import Event, History
from ..rendering.numbers import counted, number
from .table import lines

_STEP_HEADER = ("step", "loss", "grad norm", "lr", "events")
_MODULE_HEADER = ("module", "values of", "step", "last min", "last max", "last rms", "min ever", "max ever")


def prepare(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    parser.add_argument("dump", metavar="DUMP", help="a file that nantrace wrote (.nantrace)")
    parser.add_argument("pattern", metavar="MODULE-PATTERN", nargs="?", help="only these modules")


def run(options: argparse.Namespace) -> int:
    """Print both tables, and what the ring buffer no longer holds."""
    from ..dump import load

    history = load(options.dump).history
    chosen = [module for module in history.modules() if _matches(module, options.pattern)]
    if options.pattern is not None and not chosen:
        known = ", ".join(repr(module) for module in history.modules()[:8]) or "none"
        raise NantraceError(f"no recorded module matches {options.pattern!r}; {options.dump!r} has {known}")
    for line in _page(history, chosen):
        print(line)
    return 0


def _page(history: History, chosen: Sequence[str]) -> Iterator[str]:
    if not history.steps and not history.events:
        yield "no steps were recorded"
        return
    rows = [
        (record.step, *map(_known, (record.loss, record.grad_norm, record.lr)), record.events)
        for record in history.steps
    ]
    yield from lines(_STEP_HEADER, rows, right=_STEP_HEADER)
    yield ""
    yield from lines(_MODULE_HEADER, list(_module_rows(history, chosen)), right=_MODULE_HEADER[2:])
    left_out = sum(record.dropped for record in history.steps)
    if history.evicted_steps or left_out:
        yield ""
    if history.evicted_steps:
        older = counted(history.evicted_steps, "older step")
        yield f"left out: {older}; watch(..., capacity=N) keeps more than {history.capacity}"
    if left_out:
        yield f"left out: {counted(left_out, 'value')} past the bound on events per step"


def _module_rows(history: History, chosen: Sequence[str]) -> Iterator[tuple[object, ...]]:
    groups: dict[tuple[str, str, int], list[Event]] = {}
    for event in history:
        groups.setdefault((event.module, event.kind, event.output), []).append(event)
    for module in chosen:
        for kind, output in sorted(key[1:] for key in groups if key[0] == module):  # its outputs, then their gradients
            events = groups[module, kind, output]
            last = events[-1]
            what = {"forward": "output", "gradient": "gradient"}.get(kind, kind) + (f" {output}" if output else "")
            least, most = _extremes(events)
            numbers = map(number, (last.min, last.max, last.rms, least, most))
            yield (module or "(root)", what, last.step, *numbers)


def _extremes(events: Sequence[Event]) -> tuple[float, float]:
    bad = [event.min for event in events if isnan(event.min)] + [event.max for event in events if isnan(event.max)]
    if bad:
        return bad[0], bad[0]
    return min(event.min for event in events), max(event.max for event in events)


def _known(value: float | None) -> str:
    return "" if value is None else number(value)


def _matches(module: str, pattern: str | None) -> bool:
    if pattern is None:
        return True
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(module, pattern)
    return module == pattern or module.startswith(pattern + ".")
