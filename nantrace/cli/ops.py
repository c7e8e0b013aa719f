"""Print the ops of a dump as a table, in the order in which they ran.

--bad leaves only those that made, passed on or stopped a non-finite value.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ..model import Op, Snapshot, Status
from ..rendering.numbers import counted, shape
from .table import lines

_HEADER = ("id", "status", "op", "module", "phase", "output")
_BAD = frozenset({Status.GENERATED, Status.PROPAGATED, Status.KILLED})


def prepare(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    parser.add_argument("dump", metavar="DUMP", help="a file that nantrace wrote (.nantrace)")
    parser.add_argument("--bad", action="store_true", help="only ops that a non-finite value went through")


def run(options: argparse.Namespace) -> int:
    """Print the table, and how many ops the dump does not hold."""
    from ..dump import load

    snapshot = load(options.dump).snapshot
    for line in _page(snapshot, [op for op in snapshot.ops if not options.bad or op.status in _BAD]):
        print(line)
    return 0


def _page(snapshot: Snapshot, chosen: list[Op]) -> Iterator[str]:
    if not chosen:
        yield f"none of {counted(len(snapshot.ops), 'op')} is bad" if snapshot.ops else "no ops were recorded"
    else:
        yield from lines(_HEADER, [_row(op) for op in chosen], right=("id",))
    if snapshot.ops_left_out:
        yield f"left out: {counted(snapshot.ops_left_out, 'op')} of the replay"


def _row(op: Op) -> tuple[object, ...]:
    module = "(outside)" if op.module is None else op.module or "(root)"
    return op.id, op.status, op.name, module, op.phase, " ".join(map(shape, op.outputs))
