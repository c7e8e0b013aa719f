"""Numbers and texts in JSON, and the error for a value that does not fit its place.

JSON has no NaN and no infinity: they are tagged, as {"$float": "nan"}.
"""

from __future__ import annotations

import math
from numbers import Integral
from operator import index
from typing import Any

_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Mismatch(Exception):
    """A value that does not fit the place it stands in; `where` grows as the error travels outward."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.where = ""

    def inside(self, step: str) -> Mismatch:
        """The same error, seen from one level further out."""
        self.where = step + self.where
        return self

    def __str__(self) -> str:
        return f"{self.where.lstrip('.')}: {self.problem}" if self.where else self.problem


def write_int(value: Any) -> int:
    """Any whole number, of Python or of another library."""
    return index(value)


def read_int(value: Any) -> int:
    """A whole number, and no boolean."""
    if type(value) is not int:
        raise Mismatch(f"expected a whole number, found {spell(value)}")
    return value


def write_float(value: Any) -> Any:
    """A number; what JSON cannot spell is tagged."""
    if isinstance(value, Integral):
        return int(value)  # an integer tensor's minimum: exact beyond 2**53
    number = float(value)
    if math.isfinite(number):
        return number
    return {"$float": "nan" if math.isnan(number) else "inf" if number > 0 else "-inf"}


def read_float(value: Any) -> float:
    """A number, tagged or not."""
    if type(value) is float or type(value) is int:
        return value
    if type(value) is dict and len(value) == 1:
        tag = value.get("$float")
        if isinstance(tag, str) and tag in _NONFINITE:
            return _NONFINITE[tag]
    raise Mismatch(f"expected a number, found {spell(value)}")


def write_str(value: Any) -> str:
    """A text."""
    return str(value)


def read_str(value: Any) -> str:
    """A text, and nothing that only looks like one."""
    if type(value) is not str:
        raise Mismatch(f"expected text, found {spell(value)}")
    return value


def write_bool(value: Any) -> bool:
    """True or false."""
    return bool(value)


def read_bool(value: Any) -> bool:
    """True or false, and no number."""
    if type(value) is not bool:
        raise Mismatch(f"expected true or false, found {spell(value)}")
    return value


def of_kind(kind: type, value: Any) -> Any:
    """The value, which must be a list or an object."""
    if type(value) is not kind:
        raise Mismatch(f"expected {'a list' if kind is list else 'an object'}, found {spell(value)}")
    return value


def spell(value: Any) -> str:
    """The value as an error message shows it."""
    match value:
        case None:
            return "null"
        case list():
            return f"a list of {len(value)}"
        case dict():
            return f"an object of {len(value)}"
        case _:
            text = repr(value)
            return text if len(text) <= 60 else text[:57] + "..."
