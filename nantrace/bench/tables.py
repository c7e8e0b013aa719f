"""Results as tables of text: what `nantrace bench` prints, and the README shows.

The rows and columns follow from what was asked for, the cells from what was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from . import spelling
from .fitting import line_through, power_of
from .plan import GROWTH_IN_WORDS, WORKS, Column
from .results import Growth, Machine, Memory, Missing, Overhead, Peak, Reported, Results, Start


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table of text, with notes below it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def tables(results: Results) -> Iterator[Table]:
    """One table for each measure that there is."""
    if results.overhead:
        yield _overhead(results.overhead)
    if results.memory:
        yield _memory(results.memory)
    if results.report:
        yield _report(results.report)
    if results.start:
        yield _start(results.start)
    if results.growth:
        yield _growth(results.growth)


def machine_in_words(machine: Machine) -> str:
    """Where and with what it was measured."""
    load = "" if machine.load is None else f", load {machine.load:.1f}"
    device = "" if machine.device == "cpu" else f"; {machine.device}"
    how = f"{machine.dtype}, {'compiled' if machine.compiled else 'eager'}"
    threads = f"{machine.threads} thread" + ("" if machine.threads == 1 else "s")
    return (
        f"{machine.processor}, {machine.cores} cores{load}{device}; Python {machine.python}, torch {machine.torch}, "
        f"nantrace {machine.nantrace}, {threads}, {how}. C kernel {machine.kernel}. Clock: {machine.clock}."
    )


def _overhead(found: Sequence[Overhead]) -> Table:
    columns = [Column.of(key) for key in found[0].ratios]
    rows = [
        (WORKS[one.work], spelling.seconds_of(one.plain_s), *map(spelling.ratio_of, one.ratios.values()))
        for one in found
    ]
    missing = [
        (columns[i].label, WORKS[one.work], cell.reason)
        for one in found
        for i, cell in enumerate(one.ratios.values())
        if isinstance(cell, Missing)
    ]
    return Table(
        "The time of a training step, as a multiple of the plain step",
        ("work", "plain", *(column.label for column in columns)),
        tuple(rows),
        ("Medians of paired ratios, with quartiles.", *_reasons(missing, len(found))),
    )


def _memory(found: Sequence[Memory]) -> Table:
    columns = [Column.of(key) for key in found[0].watched]
    rows = []
    missing = []
    for one in found:
        rows.append(_memory_row(one, "resident"))
        rows.append(_memory_row(one, "tensors"))
        missing += [
            (Column.of(key).label, WORKS[one.work], peak.reason)
            for key, peak in one.watched.items()
            if isinstance(peak, Missing)
        ]
    note = "Peaks over the first steps, less what was there before: of the process, and of what torch has allocated."
    return Table(
        "The peak memory of a training step, plain and what each tool adds",
        ("work", "of", "plain", *(column.label for column in columns)),
        tuple(rows),
        (note, *_reasons(missing, len(found))),
    )


def _memory_row(one: Memory, what: str) -> tuple[str, ...]:
    def figure(peak: Peak) -> float:
        return (peak.resident if what == "resident" else peak.tensors).middle

    plain = one.plain
    if isinstance(plain, Missing):
        return (WORKS[one.work], what, spelling.NONE, *(spelling.NONE for _ in one.watched))
    cells = (
        spelling.NONE if isinstance(peak, Missing) else spelling.added_bytes(figure(peak), figure(plain))
        for peak in one.watched.values()
    )
    return (WORKS[one.work], what, spelling.bytes_of(figure(plain)), *cells)


def _report(found: Sequence[Reported]) -> Table:
    rows = []
    for one in found:
        taken = [failure.report_s for failure in one.failures]
        rows.append(
            (
                f"{one.born}, {one.blocks} blocks",
                str(one.nodes),
                spelling.seconds(one.step_s),
                spelling.seconds(statistics.median(taken)),
                spelling.seconds(max(taken)),
                f"{statistics.median(taken) / one.step_s:.1f}",
                spelling.seconds(statistics.median(failure.save_s for failure in one.failures)),
                spelling.bytes_of(statistics.median(failure.dump_bytes for failure in one.failures)),
                spelling.seconds(statistics.median(failure.load_s for failure in one.failures)),
            )
        )
    return Table(
        "From the alarm to the report, and its dump",
        ("fault born in", "nodes", "step", "report", "worst", "in steps", "write", "dump", "load"),
        tuple(rows),
        tuple(_lines_of_reports(found)),
    )


def _lines_of_reports(found: Sequence[Reported]) -> Iterator[str]:
    for born in dict.fromkeys(one.born for one in found):
        points = [(one.nodes, failure.report_s) for one in found if one.born == born for failure in one.failures]
        line = line_through(points)
        if line is not None:
            start, slope = spelling.seconds(line.start), spelling.seconds(line.slope)
            yield f"Born in {born}: report = {start} + {slope} per node (R² {line.r_squared:.3f})."


def _start(found: Sequence[Start]) -> Table:
    rows = tuple((one.command, spelling.seconds_of(one.cpu_s), spelling.seconds_of(one.wall_s)) for one in found)
    return Table("The start of the command line, whole process", ("command", "CPU time", "wall time"), rows)


def _growth(found: Sequence[Growth]) -> Table:
    return Table(
        "How the costs grow",
        ("with", "what", "from", "to", "smallest", "largest", "each more", "R²", "power"),
        tuple(_growth_row(one) for one in found),
        (
            '"Each more" is the slope of the least-squares line, "power" is p of y ~ x**p, fitted to the logarithms; '
            "of a step, what the level adds to it.",
        ),
    )


def _growth_row(one: Growth) -> tuple[str, ...]:
    spell = {"s": spelling.seconds, "B": spelling.bytes_of}[one.unit]
    (first, small), *_, (last, large) = one.points
    line, power = line_through(one.points), power_of(one.points)
    return (
        GROWTH_IN_WORDS[one.over],
        one.quantity,
        f"{first:g}",
        f"{last:g}",
        spell(small),
        spell(large),
        spelling.NONE if line is None else spell(line.slope),
        spelling.NONE if line is None else f"{line.r_squared:.2f}",
        spelling.NONE if power is None else f"{power.slope:.2f}",
    )


def _reasons(missing: Iterable[tuple[str, str, str]], works: int) -> Iterator[str]:
    """Why cells are empty; a reason that holds for every work is said without their names."""
    names: dict[tuple[str, str], list[str]] = {}
    for label, work, reason in missing:
        names.setdefault((label, reason), []).append(work)
    for (label, reason), concerned in names.items():
        where = "" if len(concerned) == works else f" ({', '.join(concerned)})"
        yield f"{label}{where}: {reason}."
