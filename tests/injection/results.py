"""The table of what was found: how many draws were exact, per architecture and kind of fault."""

from __future__ import annotations

from collections.abc import Sequence

from .running import FIELDS, Outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """The table as text, with the share of every field below, and what was wrong."""
    architectures = list(dict.fromkeys(outcome.draw.architecture for outcome in outcomes))
    kinds = sorted({outcome.draw.fault.name for outcome in outcomes})
    width = max([len(kind) for kind in kinds], default=0)
    lines = [" ".join([" " * width, *(f"{name:>7}" for name in [*architectures, "all"])])]
    for kind in [*kinds, "all"]:
        of_kind = [outcome for outcome in outcomes if kind in (outcome.draw.fault.name, "all")]
        cells = [_exact([o for o in of_kind if o.draw.architecture == name]) for name in architectures]
        lines.append(" ".join([f"{kind:<{width}}", *(f"{cell:>7}" for cell in [*cells, _exact(of_kind)])]))
    right = {field: sum(field not in outcome.wrong for outcome in outcomes) for field in FIELDS}
    lines += ["", f"of {len(outcomes)} draws: " + ", ".join(f"{field} {count}" for field, count in right.items())]
    return "\n".join([*lines, *(difference(outcome) for outcome in outcomes if outcome.wrong)])


def difference(outcome: Outcome) -> str:
    """One line for a draw that is not exact: what was planted, what is expected, what was found."""
    draw = outcome.draw
    wrong = "; ".join(f"{f} {outcome.found.get(f)!r}, not {outcome.expected[f]!r}" for f in outcome.wrong)
    return f"{draw.name} in {draw.module!r}, step {draw.step}: {wrong}"


def _exact(outcomes: Sequence[Outcome]) -> str:
    return f"{sum(not o.wrong for o in outcomes)}/{len(outcomes)}" if outcomes else ""
