"""Run every draw and print the table: `python -m tests.injection.table [ARCHITECTURE ...]`."""

from __future__ import annotations

import sys

import torch

from .architectures import ARCHITECTURES
from .draws import draws_for
from .results import table
from .running import run


def main() -> int:
    """Exit code 1 where a draw is not exact."""
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or list(ARCHITECTURES)
    outcomes = [run(draw) for name in chosen for draw in draws_for(name)]
    print(table(outcomes))
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
