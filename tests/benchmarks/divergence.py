"""What is told of trainings that diverge, from healthy to hopeless: `python -m tests.benchmarks.divergence`."""

from __future__ import annotations

import argparse
from collections import Counter

import torch

from tests.divergence.running import Ended, run
from tests.divergence.series import Case, learning_rates, recurrences

SEEDS = (0, 1, 2)
STEPS = 150


def cell(runs: list[tuple[Case, Ended]]) -> str:
    """How the runs of one setting ended; what is wrong stands out."""
    counts = Counter(
        f"{'**' if case.verdict(ended) else ''}{ended.cause}{'**' if case.verdict(ended) else ''}"
        for case, ended in runs
    )
    return ", ".join(name if count == len(runs) else f"{count} {name}" for name, count in counts.items())


def table(cases: list[Case], head: str) -> list[tuple[Case, int, Ended]]:
    """Print a table with a row per series; returns every run."""
    settings = dict.fromkeys(case.setting for case in cases)
    found: list[tuple[Case, int, Ended]] = []
    if cases:
        print(f"\n| {head} | {' | '.join(settings)} |\n|---{'|---' * len(settings)}|")
    for series in dict.fromkeys(case.series for case in cases):
        cells = []
        for case in (case for case in cases if case.series == series):
            runs = [(case, seed, run(case.make, STEPS, seed)) for seed in SEEDS]
            cells.append(cell([(case, ended) for case, _, ended in runs]))
            found += runs
        print(f"| {series} | {' | '.join(cells)} |", flush=True)
    return found


def main() -> None:
    """Print the tables, and each run that is told wrongly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of a series' name")
    parser.add_argument("--why", action="store_true", help="print evidence of each run that is told wrongly")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for head, cases in (("learning rate, from", learning_rates()), ("recurrent gain", recurrences())):
        chosen = [case for case in cases if arguments.only in case.series]
        found += table(chosen, head)
    caught = [(case, ended) for case, _, ended in found if ended.report is not None]
    wrong = [(case, seed, ended) for case, seed, ended in found if case.verdict(ended)]
    print(f"\n{len(found)} runs, {len(found) - len(caught)} silent, {len(caught)} caught, {len(wrong)} told wrongly")
    for case, seed, ended in wrong:
        step = f" at step {ended.report.step}, {ended.report.phase}" if ended.report is not None else ""
        print(f"- {case.series}, {case.setting}, seed {seed}{step}: {case.verdict(ended)}")
        if arguments.why and ended.report is not None:
            print("\n".join(f"    {sentence}" for sentence in (ended.report.headline, *ended.report.evidence)))


if __name__ == "__main__":
    main()
