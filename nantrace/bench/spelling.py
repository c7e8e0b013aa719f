"""How figures are spelled: three digits, with the unit that fits."""

from __future__ import annotations

from .results import Cell, Missing

NONE = "-"
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_SIZES = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))


def seconds(value: float) -> str:
    """1.25 s, 12.5 ms, 125 µs."""
    return _with_unit(value, _TIMES)


def bytes_of(value: float) -> str:
    """1.25 MiB, 125 B; less than a tenth of a byte is nothing."""
    return _with_unit(value if abs(value) >= 0.1 else 0.0, _SIZES)


def seconds_of(cell: Cell) -> str:
    """The median."""
    return NONE if isinstance(cell, Missing) else seconds(cell.middle)


def ratio_of(cell: Cell) -> str:
    """The median, and the quartiles around it."""
    if isinstance(cell, Missing):
        return NONE
    digits = 3 if cell.middle < 2 else 1
    low, middle, high = (f"{figure:.{digits}f}" for figure in (cell.low, cell.middle, cell.high))
    return f"{middle}x ({low} to {high})"


def added_bytes(watched: float, plain: float) -> str:
    """What is added, and as a multiple of the plain figure."""
    ratio = f", {watched / plain:.3f}x" if plain else ""
    sign = "+" if watched >= plain else ""
    return f"{sign}{bytes_of(watched - plain)}{ratio}"


def _with_unit(value: float, units: tuple[tuple[float, str], ...]) -> str:
    size, unit = next(((size, unit) for size, unit in units if abs(value) >= size), units[-1])
    scaled = value / size
    return f"{scaled:.0f} {unit}" if abs(scaled) >= 100 or scaled == 0 else f"{scaled:.3g} {unit}"
