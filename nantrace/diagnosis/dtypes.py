"""Would another dtype have held the value: which, and with how much headroom.

Pure numbers. Magnitudes are decimal logarithms, so that values past any dtype can be stated.
"""

from __future__ import annotations

from math import isfinite, log10

from .numbers import COARSE, limits, show, show_power

_WIDER = {
    "float16": ("float32", "bfloat16"),
    "float8_e5m2": ("float32", "bfloat16", "float16"),
    "float8_e5m2fnuz": ("float32", "bfloat16", "float16"),
    "float8_e4m3fn": ("float32", "bfloat16", "float16"),
    "float8_e4m3fnuz": ("float32", "bfloat16", "float16"),
    "bfloat16": ("float64",),  # float32 ends where bfloat16 does
    "float32": ("float64",),
    "complex32": ("complex64",),
    "complex64": ("complex128",),
}
_FINER = ("float32", "bfloat16")  # their smallest numbers are the same
_LEAST_SPARE = 1.0  # decades: less than that is spent by the next op


def headroom(power: float, dtype: str) -> float | None:
    """The decades between a value of that magnitude and the end of the dtype; negative where it does not fit."""
    end = limits(dtype)
    return log10(end.max) - power if end is not None and isfinite(power) else None


def wider(power: float, dtype: str) -> tuple[str, ...]:
    """The wider dtypes that hold a value of that magnitude, the usual one first."""
    return tuple(name for name in _candidates(dtype) if (headroom(power, name) or -1.0) >= 0)


def roomy(power: float, dtype: str) -> str | None:
    """The wider dtype that is worth trying: it holds the value with a decade to spare."""
    return next((name for name in wider(power, dtype) if (headroom(power, name) or 0.0) >= _LEAST_SPARE), None)


def would_hold(power: float, dtype: str) -> str | None:
    """In a sentence, which dtypes would have held the value and with what headroom, or that none would."""
    candidates = _candidates(dtype)
    if limits(dtype) is None or not isfinite(power) or not candidates:
        return None
    holding = wider(power, dtype)
    if not holding:
        widest = max(candidates, key=lambda name: headroom(power, name) or 0.0)
        end = limits(widest)
        ends = f" ({widest} ends at {show_power(log10(end.max))})" if end is not None else ""
        return f"a wider dtype does not help: the value is {show_power(power)}{ends}"
    first, *others = holding
    spare = f"{first} would have held it with a factor of {show_power(headroom(power, first) or 0.0)} to spare"
    if others:
        spare += f"; {' and '.join(others)} too"
    elif dtype == "float32":
        spare += "; bfloat16 ends where float32 does"
    elif dtype == "bfloat16":
        spare += "; float32 ends where bfloat16 does"
    return spare


def would_keep(value: float, dtype: str) -> str | None:
    """In a sentence, which dtypes hold a small value that rounded to 0."""
    held = [name for name in (_FINER if dtype in COARSE else ("float64",)) if name != dtype and _holds(value, name)]
    if value == 0 or not isfinite(value) or not held:
        return None
    grain = limits(held[0])
    holds = "they hold" if len(held) > 1 else "it holds"
    below = f": down to {show(grain.smallest_normal)} {holds} all digits" if grain is not None else ""
    also = f" and {held[1]}" if len(held) > 1 else ""
    return f"{held[0]}{also} would have kept {show(value)}{below}"


def would_resolve(gap: float, dtype: str) -> str | None:
    """In a sentence, which dtype tells 1 - gap from 1."""
    name = finer(gap, dtype)
    grain = limits(name) if name is not None else None
    return f"{name} would have told 1 - {show(gap)} from 1: its eps is {show(grain.eps)}" if grain is not None else None


def finer(gap: float, dtype: str) -> str | None:
    """The next dtype that tells 1 - gap from 1."""
    for name in ("float32", "float64"):
        grain, own = limits(name), limits(dtype)
        if grain is not None and own is not None and grain.mantissa > own.mantissa and gap >= grain.eps / 4:
            return name
    return None


def _holds(value: float, dtype: str) -> bool:
    grain = limits(dtype)
    return grain is not None and abs(value) >= grain.smallest_normal


def _candidates(dtype: str) -> tuple[str, ...]:
    """The usual wider dtypes; float64 only where float32 is what was too narrow."""
    return _WIDER.get(dtype, ())
