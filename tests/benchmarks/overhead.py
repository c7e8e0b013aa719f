"""What watching costs: `python tests/benchmarks/overhead.py`.

Blocks of plain and of observed steps run in turns in one process, and each observed block is compared with the plain
block beside it; the table shows the median of these ratios and their quartiles. CPU time of the process, one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from workloads import Work, all_works

import nantrace

Observer = Callable[[torch.nn.Module], AbstractContextManager[object]]

OBSERVERS: dict[str, Observer] = {
    "module": lambda model: nantrace.watch(model),
    "loss": lambda model: nantrace.watch(model, level="loss"),
    "op": lambda model: nantrace.watch(model, level="op"),
    "detect_anomaly": lambda model: torch.autograd.set_detect_anomaly(True),
}


def measure(work: Work, seconds: float) -> dict[str, list[float]]:
    """Paired ratios (observed / plain) per observer."""
    for _ in range(3):
        work.step()
    per_block = max(4, int(0.3 / _block(work, contextlib.nullcontext, 3)))
    ratios: dict[str, list[float]] = {name: [] for name in OBSERVERS}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(ratios["module"]) < 5:
        for name, observe in OBSERVERS.items():
            plain = _block(work, contextlib.nullcontext, per_block)
            observed = _block(work, lambda observe=observe: observe(work.model), per_block)
            ratios[name].append(observed / plain)
    return ratios


def _block(work: Work, context: Callable[[], AbstractContextManager[object]], steps: int) -> float:
    """CPU seconds per step; entering and three warm-up steps are not counted."""
    with context():
        for _ in range(3):
            work.step()
        started = time.process_time()
        for _ in range(steps):
            work.step()
        return (time.process_time() - started) / steps


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="per workload")
    parser.add_argument("--only", default="", help="a part of a workload's name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| work | plain | {' | '.join(OBSERVERS)} |\n|---|---|{'---|' * len(OBSERVERS)}")
    for make in all_works():
        work = make()
        if arguments.only not in work.name:
            continue
        plain = _block(work, contextlib.nullcontext, 5)
        cells = []
        for ratios in measure(work, arguments.seconds).values():
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells.append(f"{middle:.3f}x ({low:.2f} to {high:.2f})")
        print(f"| {work.name} | {plain * 1e3:.1f} ms | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
