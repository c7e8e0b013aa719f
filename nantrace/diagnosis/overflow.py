"""Finite operands, a result past the end of the dtype."""

from __future__ import annotations

from math import isfinite, log10

from ..model import Cause, Op, Origin, Snapshot
from .dtypes import would_hold
from .finding import Finding
from .magnitude import Reach, reach
from .numbers import limits, log_of, show, show_limit, show_power
from .overflow_remedies import for_overflow
from .reading import (
    derivative_at,
    dtype_of,
    element,
    finite_inputs,
    generated_at,
    made_infinity,
    made_nan,
    main_summary,
    op_by_id,
    operand,
    place,
)
from .slopes import slope


def overflow(snapshot: Snapshot) -> Finding | None:
    """Finite operands gave a result that is past the largest number of the dtype.

    Certain: the result was computed again from the operands at the failing element, in wider numbers, and is past
    the end of the dtype.
    Likely: only a bound of the result is known, or the range of operands of which only an overflow makes an
    infinity.
    """
    origin = generated_at(snapshot)
    if origin is None:
        return None
    dtype = dtype_of(origin)
    if limits(dtype) is None or not (made_infinity(origin) or made_nan(origin)):
        return None
    found = reach(origin)
    if found is not None and found.exceeds(dtype):
        # The value proves it where it was computed exactly; a bound leaves it likely.
        return _finding(snapshot, origin, found.text, dtype, "certain" if found.exact else "likely", found)
    if found is not None and found.exact and not _nearly(found, dtype):
        return None
    return _by_range(snapshot, origin, dtype)


def overflow_in_backward(snapshot: Snapshot) -> Finding | None:
    """A finite gradient times a finite derivative, or the sum of two gradients, is past the end of the dtype.

    Certain: the gradient that arrived and the derivative, or both gradients, were read, and their product or sum is
    past the end of the dtype.
    Likely: only one factor or a bound is known, or the gradients that arrived are near the end of the dtype
    already.
    """
    origin = derivative_at(snapshot)
    derivative = op_by_id(snapshot, origin.id) if origin is not None else None
    dtype = _dtype_in_backward(origin, derivative) if origin is not None else ""
    end = limits(dtype)
    if origin is None or end is None:
        return None
    if derivative is not None and derivative.name == "add" and (added := _sum_of_gradients(origin)) is not None:
        return _finding(snapshot, origin, added.text, dtype, "certain", added) if added.exceeds(dtype) else None
    local = slope(origin)
    gradient = element(origin, "grad")
    if local is not None and local.value is None:
        return None
    if local is not None and local.value and gradient and isfinite(gradient):
        power = log_of(gradient) + log_of(local.value)
        if power > log10(end.max):
            text = f"gradient {show(gradient)} times {local.text} = {show_power(power)}"
            # Which factor of a product the gradient meets is not known, so that one stays likely.
            sure = "likely" if origin.op == "mul" else "certain"
            return _finding(snapshot, origin, text, dtype, sure, Reach(text, power, sure == "certain"))
    if derivative is not None and derivative.phase == "backward":
        as_origin = _derivative_as_origin(derivative, origin)
        found = reach(as_origin)
        if found is not None and found.exceeds(dtype) and finite_inputs(as_origin):
            return _finding(snapshot, origin, f"in the backward of {origin.op}, {found.text}", dtype, "likely", found)
        if finite_inputs(as_origin) and (large := _large(as_origin, dtype)):
            return _finding(
                snapshot, origin, f"the backward of {origin.op} worked on gradients {large}", dtype, "likely"
            )
    found = reach(origin)
    if found is not None and found.exceeds(dtype):
        return _finding(snapshot, origin, f"in the backward of {origin.op}, {found.text}", dtype, "likely", found)
    grad = operand(origin, "grad")
    known = [abs(v) for v in grad.values if isfinite(v)] if grad is not None else []
    if known and max(known) > end.max**0.5 and (local is None or local.value is not None):
        text = f"the gradient that arrived at {origin.op} is already {show(max(known))}"
        return _finding(snapshot, origin, text, dtype, "likely")
    return None


def _by_range(snapshot: Snapshot, origin: Origin, dtype: str) -> Finding | None:
    """No element is known: operands in a range from which only overflow makes an infinity."""
    if origin.example is not None and any(not isfinite(v) for o in origin.example.operands for v in o.values[:1]):
        return None
    if not finite_inputs(origin) or not (large := _large(origin, dtype)):
        return None
    found = reach(origin)
    detail = f" ({found.text})" if found is not None else ""
    return _finding(snapshot, origin, f"{origin.op} worked on finite values {large}{detail}", dtype, "likely", found)


def _large(origin: Origin, dtype: str) -> str:
    end = limits(dtype)
    sizes = [(found.absmax, found.name) for found in origin.inputs if found.absmax is not None and limits(found.dtype)]
    if end is None or not sizes:
        return ""
    largest, name = max(sizes)
    enough = log10(end.max) * 2.3 * 0.9 if origin.op in ("exp", "expm1", "sinh", "cosh") else end.max**0.5
    return f"as large as {show(largest)}{f' ({name})' if name else ''}" if largest > enough else ""


def _nearly(found: Reach, dtype: str) -> bool:
    end = limits(dtype)
    return end is not None and found.log > log10(end.max) - 0.5


def _dtype_in_backward(origin: Origin, derivative: Op | None) -> str:
    """The dtype of the gradient; the op of the backward knows it where the forward op is not recorded."""
    made = derivative.outputs if derivative is not None else ()
    return dtype_of(origin) or next((found.dtype for found in made if limits(found.dtype)), "")


def _sum_of_gradients(origin: Origin) -> Reach | None:
    """The two gradients that met where a value was used twice, added."""
    known = origin.example.operands if origin.example is not None else ()
    parts = [found.value for found in known if found.name == "grad" and found.value is not None]
    if len(parts) != 2 or not all(map(isfinite, parts)):
        return None
    half = parts[0] / 2 + parts[1] / 2
    if half == 0:
        return None
    power = log_of(half) + log10(2)
    total = f"{2 * half:.4g}" if isfinite(2 * half) else show_power(power)
    text = f"two gradients that are added up, {parts[0]:.4g} and {parts[1]:.4g}, make {total}"
    return Reach(text, power, True)


def _derivative_as_origin(derivative: Op, origin: Origin) -> Origin:
    return Origin(
        op=derivative.name,
        module=origin.module,
        inputs=derivative.inputs,
        outputs=derivative.outputs or origin.outputs,
        arguments=derivative.arguments,
        example=origin.example,
    )


def _finding(
    snapshot: Snapshot, origin: Origin, text: str, dtype: str, confidence: str, found: Reach | None = None
) -> Finding:
    value = f"{place(origin.example)} = {show(origin.example.value)}: " if origin.example is not None else ""
    evidence = [f"{value}{text}, {show_limit(dtype)}"]
    whole = main_summary(origin)
    if origin.op == "exp" and whole is not None and whole.max is not None and (end := limits(dtype)):
        evidence.append(
            f"exp overflows {dtype} from {show(log10(end.max) / log10(2.718281828459045))} on; "
            f"its operand goes from {show(whole.min or 0)} to {show(whole.max)}"
        )
    said = would_hold(found.log, dtype) if found is not None else None
    evidence += [said] if said is not None else []
    return Finding(Cause.OVERFLOW, confidence, tuple(evidence), for_overflow(snapshot, origin, dtype, found))
