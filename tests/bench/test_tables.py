"""Results as tables, Markdown and JSON."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from dataclasses import replace

from nantrace.bench.plan import TOOLS, Column, Plan
from nantrace.bench.results import Missing, Overhead, Results
from nantrace.bench.tables import Table, tables
from nantrace.bench.writing import as_json, markdown
from nantrace.cli import bench
from nantrace.cli.bench import plan_of

from ..benchmarks.readme import MARKED, README
from .builders import MACHINE, ONE_AND_A_HALF, results_of


def only_overhead(**ratios: object) -> Results:
    """One work, with these cells."""
    cells = {key.replace("_", "-"): cell for key, cell in ratios.items()}
    return Results(MACHINE, (Overhead("tiny-mlp", ONE_AND_A_HALF, cells),))  # type: ignore[arg-type]


def only_table(results: Results) -> Table:
    """The table that there is."""
    (table,) = tables(results)
    return table


def test_a_ratio_is_spelled_with_its_quartiles() -> None:
    """The columns of ours are their levels; a plain step has its time."""
    table = only_table(only_overhead(nantrace_module=ONE_AND_A_HALF, detect_anomaly=ONE_AND_A_HALF))

    assert table.header == ("work", "plain", '`level="module"`', "`detect_anomaly`")
    assert table.rows == (("tiny MLP", "1.5 s", "1.500x (1.250 to 1.750)", "1.500x (1.250 to 1.750)"),)


def test_what_could_not_be_measured_says_why() -> None:
    """The cell is empty and a note gives the reason, once."""
    table = only_table(only_overhead(hf_debugger=Missing("transformers is not installed")))

    assert table.rows[0][2] == "-"
    assert table.notes[1:] == ("HF `DebugUnderflowOverflow`: transformers is not installed.",)


def test_a_reason_of_one_work_names_it() -> None:
    """What holds elsewhere is not said of everything."""
    one = only_overhead(isnan_hooks=Missing("too hot"))
    other = replace(one.overhead[0], work="lstm", ratios={"isnan-hooks": ONE_AND_A_HALF})

    assert only_table(Results(MACHINE, (*one.overhead, other))).notes[1:] == ("`isnan` hooks (tiny MLP): too hot.",)


def test_every_column_is_found_by_its_key() -> None:
    """A key names one column, levels and hyphens included."""
    columns = [Column(tool, level) for tool in TOOLS for level in ("", "loss", "module", "op")]

    assert [Column.of(column.key) for column in columns] == columns


def test_growth_gives_a_slope_and_a_power() -> None:
    """10, 20, 30 bytes at 1, 2, 3: ten more for each, in proportion."""
    growth = list(tables(results_of(Plan())))[-1]
    row = next(row for row in growth.rows if row[:2] == ("modules", "dump"))

    assert row[2:] == ("1", "3", "10 B", "30 B", "10 B", "1.00", "1.00")


def test_json_holds_every_figure() -> None:
    """A program reads numbers, not text; JSON has no infinity, so what is missing is its reason."""
    page = json.loads(as_json(only_overhead(nantrace_op=ONE_AND_A_HALF, hf_debugger=Missing("none"))))

    assert (page["format"], page["version"]) == ("nantrace-bench", 1)
    (overhead,) = page["results"]["overhead"]
    assert overhead["ratios"]["nantrace-op"] == {"low": 1.25, "middle": 1.5, "high": 1.75, "count": 9}
    assert overhead["ratios"]["hf-debugger"] == {"reason": "none"}
    assert page["results"]["machine"]["kernel"] == "in use"


def options_of(command: str) -> argparse.Namespace:
    """What `nantrace bench` makes of its arguments."""
    name, *arguments = shlex.split(command)
    assert name == "bench"
    parser = argparse.ArgumentParser()
    bench.prepare(parser)
    return parser.parse_args(arguments)


def outlines(text: str) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The header and the first cells of every Markdown table in a text."""
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            yield tuple(rows[0]), tuple(row[0] for row in rows[2:])
            rows = []


def test_the_readme_shows_what_its_command_makes() -> None:
    """Its tables of costs have the columns and rows of the command that is named; the figures are those of that day."""
    ((command, shown),) = MARKED.findall(README.read_text(encoding="utf-8"))

    assert list(outlines(shown)) == list(outlines(markdown(results_of(plan_of(options_of(command))))))
