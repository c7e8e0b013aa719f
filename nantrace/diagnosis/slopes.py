"""The derivative of an op at the failing element: its value, or that it has none there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import e, isfinite, isnan, log, pi, sqrt

from ..model import Origin
from .numbers import fractional, limits, log_of, power, show
from .reading import dtype_of, element, main_element, operand


@dataclass(frozen=True, slots=True)
class Slope:
    """What the derivative is at the failing element. `value` None: infinite or undefined."""

    text: str  # "sqrt'(0) = 1 / (2 * sqrt(0))"
    value: float | None
    forward_finite: bool = True  # whether the op's own result is finite there


def slope(origin: Origin) -> Slope | None:
    """The derivative of the origin's op at the operands of its failing element, or None if unknown."""
    op = origin.op
    if op in ("div", "true_divide"):
        return _of_quotient(origin)
    if op in ("pow", "float_power"):
        return _of_power(origin)
    if op in ("hypot", "xlogy", "special_xlogy", "mul", "add", "sub"):
        return _of_pair(origin)
    x = main_element(origin)
    rule = _UNARY.get(op.removeprefix("special_"))
    return rule(x, op, dtype_of(origin)) if rule is not None and x is not None and not isnan(x) else None


def _reciprocal_power(x: float, op: str, dtype: str) -> Slope:
    if x == 0:
        return Slope(f"{op}'(0) is infinite", None, forward_finite=op == "sqrt")
    if op in ("sqrt", "rsqrt") and x < 0:
        return Slope(f"{op}'({show(x)}) is undefined", None, forward_finite=False)
    if op == "sqrt":
        return _measured(op, x, 0.5 / sqrt(x), dtype)
    return _measured(op, x, -0.5 * power(x, -1.5) if op == "rsqrt" else -power(abs(x), -2), dtype)


def _logarithm(x: float, op: str, dtype: str) -> Slope:
    at = x + 1 if op == "log1p" else x
    if at <= 0:
        text = f"{op}'({show(x)}) is infinite" if at == 0 else f"{op}({show(x)}) is undefined"
        return Slope(text, None, forward_finite=False)
    return _measured(op, x, 1 / at / {"log2": log(2), "log10": log(10)}.get(op, 1.0), dtype)


def _arcus(x: float, op: str, dtype: str) -> Slope:
    if abs(x) >= 1:
        text = f"{op}'({show(x)}) = {'-' if op == 'acos' else ''}1 / sqrt(1 - {show(abs(x))} ** 2) is " + (
            "infinite" if abs(x) == 1 else "undefined"
        )
        return Slope(text, None, forward_finite=abs(x) == 1)
    return _measured(op, x, (-1 if op == "acos" else 1) / sqrt(1 - x * x), dtype)


def _hyperbolic(x: float, op: str, dtype: str) -> Slope:
    if op == "acosh":
        if x <= 1:
            state = "infinite" if x == 1 else "undefined"
            return Slope(f"acosh'({show(x)}) is {state}", None, forward_finite=x == 1)
        return _measured(op, x, 1 / sqrt(x - 1) / sqrt(x + 1), dtype)
    if abs(x) >= 1:
        return Slope(f"{op}'({show(x)}) is {'infinite' if abs(x) == 1 else 'undefined'}", None, forward_finite=False)
    return _measured(op, x, 1 / (1 - x * x) if op == "atanh" else sqrt(pi) / 2, dtype)


def _logit(x: float, op: str, dtype: str) -> Slope:
    if not 0 < x < 1:
        return Slope(f"{op}'({show(x)}) is infinite or undefined", None, forward_finite=False)
    return _measured(op, x, 1 / (x * (1 - x)), dtype)


def _exponential(x: float, op: str, dtype: str) -> Slope:
    end = limits(dtype)
    at = x * log(2) if op == "exp2" else x
    if end is not None and at > log(end.max):
        return Slope(f"{op}'({show(x)}) is beyond {dtype}", None, forward_finite=False)
    return _measured(op, x, power(e, at), dtype)


def _square(x: float, op: str, dtype: str) -> Slope:
    return _measured(op, x, 2 * x, dtype)


_UNARY: dict[str, Callable[[float, str, str], Slope]] = {
    "sqrt": _reciprocal_power,
    "rsqrt": _reciprocal_power,
    "reciprocal": _reciprocal_power,
    "log": _logarithm,
    "log2": _logarithm,
    "log10": _logarithm,
    "log1p": _logarithm,
    "acos": _arcus,
    "asin": _arcus,
    "acosh": _hyperbolic,
    "atanh": _hyperbolic,
    "erfinv": _hyperbolic,
    "logit": _logit,
    "exp": _exponential,
    "exp2": _exponential,
    "expm1": _exponential,
    "square": _square,
}


def _measured(op: str, x: float, value: float, dtype: str) -> Slope:
    end = limits(dtype)
    if end is not None and abs(value) > end.max:
        return Slope(f"{op}'({show(x)}) = {show(value)} is beyond {dtype}", None)
    return Slope(f"{op}'({show(x)}) = {show(value)}", value)


def _of_quotient(origin: Origin) -> Slope | None:
    a, b = element(origin, "self"), element(origin, "other")
    if b is None or isnan(b):
        return None
    if b == 0:
        return Slope(
            f"the derivative of {show(a) if a is not None else 'x'} / 0 divides by zero", None, forward_finite=False
        )
    end = limits(dtype_of(origin))
    reached = -log_of(b) if a is None or a == 0 else max(-log_of(b), log_of(a) - 2 * log_of(b))
    if end is not None and isfinite(b) and reached > log_of(end.max):
        return Slope(f"the derivative of x / {show(b)} is beyond {dtype_of(origin)}", None, forward_finite=True)
    return Slope(f"1 / {show(b)}", 1 / b if isfinite(b) else 0.0)


def _of_power(origin: Origin) -> Slope | None:
    base, exponent = element(origin, "self"), element(origin, "exponent")
    if base is None or exponent is None or isnan(base) or isnan(exponent):
        return None
    name = f"derivative of x ** {show(exponent)} at {show(base)}"
    if base < 0 and origin.derivative_aten.startswith("aten::log"):
        text = f"the derivative of x ** p by its exponent p is x ** p * log(x), undefined at x = {show(base)}"
        return Slope(text, None)
    if base == 0 and exponent < 1 and exponent != 0:
        return Slope(f"the {name} is infinite", None, forward_finite=exponent > 0)
    if base < 0 and fractional(exponent):
        return Slope(f"the {name} is undefined", None, forward_finite=False)
    if base == 0 or exponent == 0:
        return Slope(f"the {name}", 1.0 if exponent == 1 else 0.0)
    if not isfinite(base) or not isfinite(exponent):
        return None
    reached = log_of(exponent) + (exponent - 1) * log_of(base)
    return Slope(f"the {name}", 10.0**reached) if reached < 300 else Slope(f"the {name} is beyond float64", None)


def _of_pair(origin: Origin) -> Slope | None:
    a, b = element(origin, "self"), element(origin, "other")
    if a is None or b is None or isnan(a) or isnan(b):
        return None
    match origin.op.removeprefix("special_"):
        case "hypot":
            undefined = a == 0 and b == 0
            return Slope("hypot'(0, 0) = 0 / 0 is undefined", None) if undefined else Slope("hypot', at most 1", 1.0)
        case "xlogy" if b <= 0:
            state = "undefined" if a == 0 or b < 0 else "infinite"
            return Slope(
                f"the derivative of xlogy({show(a)}, {show(b)}) is {state}", None, forward_finite=a == 0 and b == 0
            )
        case "mul" if isfinite(a) and isfinite(b):
            return Slope(f"the other factor, up to {show(max(abs(a), abs(b)))}", max(abs(a), abs(b)))
        case "add" | "sub" if operand(origin, "grad") is not None and isfinite(a) and isfinite(b):
            return Slope("1", 1.0)
        case _:
            return None
