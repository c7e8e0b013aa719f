"""How large the true result of an op is, computed from its operand values past any dtype's range.

Magnitudes are decimal logarithms, so that exp(2000) or a product of two float64 can be stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import fsum, isfinite, log, log10

from ..model import OperandValue, Origin, TensorSummary
from .numbers import limits, log_of, number, show, show_index, show_power
from .reading import dtype_of, element, main_element, main_operand, main_summary, operand, summary

_EXPONENTIALS = {"exp": 1 / log(10), "exp2": log10(2), "expm1": 1 / log(10), "sinh": 1 / log(10), "cosh": 1 / log(10)}
CASTS = frozenset({"to", "to_copy", "copy", "half", "bfloat16", "convert_element_type"})
_PRODUCTS = frozenset(
    {"mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "matmul", "linear", "einsum"}
)
_SQUARES = frozenset({"norm", "linalg_vector_norm", "frobenius_norm", "var", "std", "var_mean", "std_mean", "mse_loss"})
_NORMALIZING = frozenset({"layer_norm", "group_norm", "batch_norm", "instance_norm", "cudnn_batch_norm"})
_SUMS = frozenset({"sum", "mean", "cumsum", "nansum", "nanmean", "logcumsumexp", "l1_loss", "trace"})


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a result reaches: a text with numbers, its magnitude, whether that is exact or a bound."""

    text: str
    log: float
    exact: bool

    def exceeds(self, dtype: str) -> bool:
        """Whether the result is past the dtype's largest number."""
        found = limits(dtype)
        # From half a grain above the largest number on, rounding to nearest gives infinity.
        return found is not None and self.log >= log10(found.max) + log10(1 + found.eps / 4) - 1e-12


def reach(origin: Origin) -> Reach | None:
    """The magnitude of the origin's result at the failing element, or None where it cannot be told."""
    op = origin.op
    if op in _EXPONENTIALS:
        x = main_element(origin)
        if x is None or not isfinite(x):
            return None
        power = abs(x) if op in ("sinh", "cosh") else x
        return Reach(f"{op}({show(x)}) = {show_power(power * _EXPONENTIALS[op])}", power * _EXPONENTIALS[op], True)
    if op in CASTS:
        return _cast(origin)
    if op in _PRODUCTS:
        return _product(origin)
    if op in ("mul", "div", "true_divide", "add", "sub", "rsub", "pow", "square", "reciprocal", "addcmul"):
        return _pointwise(origin)
    if op == "prod":
        return _repeated_product(origin)
    if op in _SUMS or op in _SQUARES:
        return _reduction(origin)
    if op in _NORMALIZING:
        return _variance(origin)
    if op.startswith(("convolution", "conv", "cudnn_convolution", "mkldnn_convolution")):
        return _convolution(origin)
    return None


def _cast(origin: Origin) -> Reach | None:
    x = main_element(origin)
    source = main_summary(origin) or summary(origin, "src")
    if x is None:
        x = element(origin, "src")
    if x is None or not isfinite(x) or source is None:
        return None
    return Reach(f"{show(x)} cast from {source.dtype} to {dtype_of(origin)}", log_of(x), True)


def _pointwise(origin: Origin) -> Reach | None:
    a, b = element(origin, "self"), element(origin, "other", "exponent")
    if origin.op == "square" and a is not None and isfinite(a):
        return Reach(f"{show(a)} ** 2 = {show_power(2 * log_of(a))}", 2 * log_of(a), True) if a else None
    if origin.op == "reciprocal" and a:
        return Reach(f"1 / {show(a)} = {show_power(-log_of(a))}", -log_of(a), True) if isfinite(a) else None
    if a is None or b is None or not isfinite(a) or not isfinite(b):
        return None
    match origin.op:
        case "mul" if a and b:
            return _stated(f"{show(a)} * {show(b)}", log_of(a) + log_of(b))
        case "div" | "true_divide" if a and b:
            return _stated(f"{show(a)} / {show(b)}", log_of(a) - log_of(b))
        case "pow" if a:
            return _stated(f"{show(a)} ** {show(b)}", b * log_of(a))
        case "add" | "sub" | "rsub":
            return _sum(origin, a, b)
        case _:
            return None


def _sum(origin: Origin, a: float, b: float) -> Reach | None:
    alpha = number(origin.arguments.get("alpha")) or 1.0
    left, right = (b, -alpha * a) if origin.op == "rsub" else (a, alpha * b if origin.op == "add" else -alpha * b)
    # Halved, so that the sum of two of the largest float64 can be stated too.
    half = left / 2 + right / 2
    if half == 0:
        return None
    sign = "+" if right >= 0 else "-"
    power = log_of(half) + log10(2)
    shown = f"{'-' if half < 0 else ''}{_exactly(2 * half) or show_power(power)}"
    return Reach(f"{_digits(left)} {sign} {_digits(abs(right))} = {shown}", power, True)


def _exactly(value: float) -> str:
    return _digits(abs(value)) if isfinite(value) and abs(value) < 1e6 else ""


def _digits(value: float) -> str:
    return f"{value:.7g}" if 1e4 <= abs(value) < 1e6 else show(value)


def _stated(text: str, power: float) -> Reach:
    return Reach(f"{text} = {show_power(power)}", power, True)


def _product(origin: Origin) -> Reach | None:
    pair = [value for value in _vectors(origin) if value.kind in ("row", "column")]
    if len(pair) == 2:
        return _added(origin, *pair) or _dot(*pair)
    a = summary(origin, "mat1", "batch1", "self", "input")
    b = summary(origin, "mat2", "batch2", "other", "vec", "tensor", "weight")
    if a is None or b is None or a is b or not a.absmax or not b.absmax or not a.shape:
        return None
    power = log_of(a.absmax) + log_of(b.absmax) + log10(max(1, a.shape[-1]))
    sizes = f"{a.shape[-1]} products of values up to {show(a.absmax)} and {show(b.absmax)}"
    text = f"{sizes} can add up to {show_power(power)}"
    return Reach(text, power, False)


def _vectors(origin: Origin) -> tuple[OperandValue, ...]:
    return origin.example.operands if origin.example is not None else ()


def _dot(a: OperandValue, b: OperandValue) -> Reach | None:
    length = a.summary.numel if a.summary is not None else len(a.values)
    whole = length == len(a.values) == len(b.values) and all(isfinite(v) for v in (*a.values, *b.values))
    largest_a, largest_b = _largest(a), _largest(b)
    if not largest_a or not largest_b:
        return None
    sizes = f"{length} products of values up to {show(largest_a)} ({a.name}) and {show(largest_b)} ({b.name})"
    if whole:
        # Scaled before the products are made, which in plain float64 could overflow themselves.
        products = [(x / largest_a) * (y / largest_b) for x, y in zip(a.values, b.values, strict=True)]
        total = abs(fsum(products))
        scale = log_of(largest_a) + log_of(largest_b)
        peak = max(abs(product) for product in products)
        partial = max(abs(at) for at in (*accumulate(products), *products))
        if total and partial <= 2 * total:
            power = scale + log_of(total)
            return Reach(f"{sizes} add up to {show_power(power)}", power, True)
        if total:
            power = scale + log_of(partial)
            text = f"{sizes} add up to {show_power(scale + log_of(total))}, by way of {show_power(power)}"
            return Reach(text, power, False)
        return Reach(
            f"{sizes} cancel, each as large as {show_power(scale + log_of(peak))}", scale + log_of(peak), False
        )
    power = log_of(largest_a) + log_of(largest_b) + log10(max(1, length))
    return Reach(f"{sizes} can add up to {show_power(power)}", power, False)


def _added(origin: Origin, a: OperandValue, b: OperandValue) -> Reach | None:
    """beta * added + alpha * (row . column), where every value is known and what is added matters."""
    added, known = element(origin, "self"), (*a.values, *b.values)
    length = a.summary.numel if a.summary is not None else len(a.values)
    if origin.op not in ("addmm", "baddbmm", "addmv") or added is None or not all(map(isfinite, (added, *known))):
        return None
    if not len(a.values) == len(b.values) == length or max(map(abs, known), default=0.0) > 1e150:
        return None
    alpha, beta = number(origin.arguments.get("alpha")), number(origin.arguments.get("beta"))
    product = (1.0 if alpha is None else alpha) * fsum(x * y for x, y in zip(a.values, b.values, strict=True))
    added *= 1.0 if beta is None else beta
    total = added + product
    if abs(added) < abs(product) or not total:
        return None
    text = f"{_digits(added)} {'-' if product < 0 else '+'} {_digits(abs(product))} = {_digits(total)}"
    return Reach(text, log_of(total), True)


def _largest(value: OperandValue) -> float | None:
    if value.summary is not None and value.summary.absmax is not None:
        return value.summary.absmax
    return max((abs(v) for v in value.values if isfinite(v)), default=None)


def _reduction(origin: Origin) -> Reach | None:
    found = main_operand(origin)
    if origin.op in ("mse_loss", "l1_loss"):
        return _distance(origin)
    whole = found.summary if found is not None and found.summary is not None else main_summary(origin)
    if whole is None or not whole.absmax or whole.nonfinite or not whole.numel:
        return None
    exact = found is not None
    name = f"{found.name}{show_index(found.index)}" if found is not None else whole.name or "the operand"
    if origin.op in _SQUARES:
        root = whole.rms or whole.absmax
        power = 2 * log_of(root) + log10(whole.numel)
        known = exact and whole.rms is not None
        text = f"the squares of {whole.numel} values up to {show(whole.absmax)} in {name} add up to {show_power(power)}"
        return Reach(text, power, known)
    if found is not None and len(found.values) == whole.numel:
        total = abs(fsum(value / whole.absmax for value in found.values))
        power = log_of(total) + log_of(whole.absmax) if total else log_of(whole.absmax)
        return Reach(
            f"{whole.numel} values up to {show(whole.absmax)} in {name} add up to {show_power(power)}", power, True
        )
    if whole.mean:
        power = log_of(whole.mean) + log10(whole.numel)
        return Reach(
            f"{whole.numel} values of mean {show(whole.mean)} in {name} add up to {show_power(power)}", power, exact
        )
    power = log_of(whole.absmax) + log10(whole.numel)
    return Reach(
        f"{whole.numel} values up to {show(whole.absmax)} in {name} can add up to {show_power(power)}", power, False
    )


def _variance(origin: Origin) -> Reach | None:
    """The squares of what a normalisation divides by the spread of; statistics are taken in float32 at least."""
    found = operand(origin, "input", "self")
    whole = found.summary if found is not None and found.kind == "slice" else None
    end = limits("float64" if dtype_of(origin) == "float64" else "float32")
    if whole is None or not whole.rms or whole.nonfinite or whole.min == whole.max or end is None:
        return None
    power = 2 * log_of(whole.rms) + log10(whole.numel)
    if power < log10(end.max):
        return None
    text = f"for the variance the squares of {whole.numel} values up to {show(whole.absmax or whole.rms)} add up to"
    # The slice of a layer_norm is what is normalised together; that of others may hold several groups.
    return Reach(f"{text} {show_power(power)}", power, origin.op == "layer_norm")


def _repeated_product(origin: Origin) -> Reach | None:
    """The product of a slice: exact where all of its values are known."""
    found = main_operand(origin)
    whole = found.summary if found is not None and found.summary is not None else main_summary(origin)
    if whole is None or not whole.absmax or whole.nonfinite:
        return None
    text = f"{whole.numel} factors up to {show(whole.absmax)}"
    if found is not None and len(found.values) == whole.numel:
        if 0 in found.values:
            return None
        return _stated(f"the product of {text}", fsum(log_of(value) for value in found.values))
    power = whole.numel * log_of(whole.absmax)
    return Reach(f"the product of {text} can reach {show_power(power)}", power, False)


def _distance(origin: Origin) -> Reach | None:
    a, b = element(origin, "self", "input"), element(origin, "target")
    squared = origin.op == "mse_loss"
    if a is not None and b is not None and isfinite(a - b) and a != b:
        power = log_of(a - b) * (2 if squared else 1)
        return Reach(f"({show(a)} - {show(b)}){' ** 2' if squared else ''} = {show_power(power)}", power, True)
    sides: list[TensorSummary] = [found for found in origin.inputs if found.absmax]
    largest = max((found.absmax or 0.0 for found in sides), default=0.0)
    if not largest:
        return None
    power = log_of(largest) * (2 if squared else 1) + log10(max(1, max(found.numel for found in sides)))
    kind = "squared distances" if squared else "distances"
    text = f"the {kind} of values up to {show(largest)} can add up to {show_power(power)}"
    return Reach(text, power, False)


def _convolution(origin: Origin) -> Reach | None:
    x, weight = summary(origin, "input", "self"), summary(origin, "weight")
    if x is None or weight is None or not x.absmax or not weight.absmax or not weight.shape:
        return None
    terms = max(1, weight.numel // max(1, weight.shape[0]))
    power = log_of(x.absmax) + log_of(weight.absmax) + log10(terms)
    text = (
        f"{terms} products of values up to {show(x.absmax)} and {show(weight.absmax)} can add up to {show_power(power)}"
    )
    return Reach(text, power, False)
