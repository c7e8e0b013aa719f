"""How numbers, shapes and counts are spelled, in every face alike."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isinf, isnan

from ..model import TensorSummary


def number(value: float | None) -> str:
    """One number: 4.9e+39, 0, -inf, nan, 1.0. A value next to a small whole number never reads as that number."""
    if value is None:
        return "?"
    if isinstance(value, int):
        return str(value)
    if isnan(value):
        return "nan"
    if isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "-0" if str(value).startswith("-") else "0"
    if value == int(value) and abs(value) < 1e6:
        return f"{value:.1f}"
    short = f"{value:.4g}"
    if abs(value) < 10 and "e" not in short and float(short) == int(float(short)):
        # 0.99999994 matters where 1 would be wrong: acos, log(1 - p), 1 / (1 - x).
        return f"{value:.9g}"
    return short


def headline_number(value: float | None) -> str:
    """The same, with NaN as it is written in a sentence."""
    return "NaN" if value is not None and value != value else number(value)


def grouped(count: int) -> str:
    """A count with thousands apart: 12,288."""
    return f"{count:,}"


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 op, 11 ops."""
    plural = noun + ("es" if noun.endswith(("s", "x")) else "s")
    return f"{grouped(count)} {noun if count == 1 else plural}"


def shape(summary: TensorSummary) -> str:
    """Dtype and shape: float32[8, 10]."""
    return f"{summary.dtype}[{', '.join(map(str, summary.shape))}]"


def element(index: Sequence[int] | None) -> str:
    """The index of an element as Python writes it: [3, 0]; nothing for a scalar."""
    return f"[{', '.join(map(str, index))}]" if index else ""


def span(low: float | None, high: float | None) -> str:
    """A range: 0 .. 0.98, or the one value where both ends are the same; empty where nothing is known."""
    if low is None or high is None:
        return ""
    return number(low) if low == high else f"{number(low)} .. {number(high)}"


def nonfinite(summary: TensorSummary) -> str:
    """What is not finite in it: `3 nan 1 inf`; empty where all is finite."""
    counts = ((summary.nan, "nan"), (summary.pos_inf, "inf"), (summary.neg_inf, "-inf"))
    return " ".join(f"{grouped(count)} {word}" for count, word in counts if count)


def share(count: int, total: int) -> str:
    """A part of a whole: `2 of 16 elements`, `all 16 elements`."""
    if count == total:
        return f"all {counted(total, 'element')}" if total != 1 else "its one element"
    return f"{grouped(count)} of {counted(total, 'element')}"


def duration(seconds: float) -> str:
    """A time that passed: 30 ms, 1.9 s."""
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def finite_facts(summary: TensorSummary) -> str:
    """What is known of the finite elements: range and zeros; of integers the range alone."""
    if summary.dtype.startswith(("int", "uint", "bool")) and summary.min is not None and summary.max is not None:
        low, high = int(summary.min), int(summary.max)
        return str(low) if low == high else f"{low} .. {high}"
    parts = [span(summary.min, summary.max)]
    if summary.zero and not (summary.min == summary.max == 0):
        parts.append(f"{grouped(summary.zero)} of {grouped(summary.numel)} zero")
    return ", ".join(part for part in parts if part)


def values(items: Sequence[float], summary: TensorSummary | None = None, *, first: int = 3) -> str:
    """One value, or the range and the first few of a slice."""
    if len(items) == 1 and (summary is None or summary.numel <= 1):
        return number(items[0])
    total = summary.numel if summary is not None and summary.numel >= len(items) else len(items)
    if not total:
        return "no values"
    if items and all(_same(item, items[0]) for item in items) and total == len(items):
        return f"{number(items[0])} in all {total} values"
    low, high = _ends(items, summary)
    bad = nonfinite(summary) if summary is not None else _nonfinite_of(items)
    parts = [f"{span(low, high)} over {counted(total, 'value')}".strip()]
    if bad:
        parts.append(bad)
    if items:
        parts.append("first " + ", ".join(number(item) for item in items[:first]) + (", ..." if total > first else ""))
    return ", ".join(parts)


def _ends(items: Sequence[float], summary: TensorSummary | None) -> tuple[float | None, float | None]:
    if summary is not None and summary.min is not None:
        return summary.min, summary.max
    finite = [item for item in items if isfinite(item)]
    return (min(finite), max(finite)) if finite else (None, None)


def _nonfinite_of(items: Sequence[float]) -> str:
    counts = (
        (sum(isnan(item) for item in items), "nan"),
        (sum(isinf(item) and item > 0 for item in items), "inf"),
        (sum(isinf(item) and item < 0 for item in items), "-inf"),
    )
    return " ".join(f"{grouped(count)} {word}" for count, word in counts if count)


def _same(one: float, other: float) -> bool:
    return one == other or (one != one and other != other)
