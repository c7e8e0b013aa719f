"""Finite operands, a result past the end of the dtype."""

from __future__ import annotations

from math import isfinite, log10

from ..model import Cause, Op, Origin, Remedy, Snapshot
from .finding import Finding
from .magnitude import Reach, reach
from .numbers import COARSE, limits, log_of, show, show_limit, show_power
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
    readers,
    summary,
)
from .rewriting import atom, call_of, operand_text, rewritten
from .slopes import slope

_SELF_MADE_SOFTMAX = ("sum", "div", "true_divide")


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
        return _finding(snapshot, origin, found.text, dtype, "certain" if found.exact else "likely")
    if found is not None and found.exact and not _nearly(found, dtype):
        return None
    return _by_range(snapshot, origin, dtype)


def overflow_in_backward(snapshot: Snapshot) -> Finding | None:
    """A finite gradient times a finite derivative is past the largest number of the dtype.

    Certain: the gradient that arrived and the derivative were read, and their product is past the end of the dtype.
    Likely: only one factor or a bound is known, or the gradients that arrived are near the end of the dtype
    already.
    """
    origin = derivative_at(snapshot)
    dtype = dtype_of(origin) if origin is not None else ""
    end = limits(dtype)
    if origin is None or end is None:
        return None
    local = slope(origin)
    gradient = element(origin, "grad")
    if local is not None and local.value is None:
        return None
    if local is not None and local.value and gradient and isfinite(gradient):
        power = log_of(gradient) + log_of(local.value)
        if power > log10(end.max):
            text = f"gradient {show(gradient)} times {local.text} = {show_power(power)}"
            # Which factor of a product the gradient meets is not known, so that one stays likely.
            return _finding(snapshot, origin, text, dtype, "likely" if origin.op == "mul" else "certain")
    derivative = op_by_id(snapshot, origin.id)
    if derivative is not None and derivative.phase == "backward":
        as_origin = _derivative_as_origin(derivative, origin)
        found = reach(as_origin)
        if found is not None and found.exceeds(dtype) and finite_inputs(as_origin):
            return _finding(snapshot, origin, f"in the backward of {origin.op}, {found.text}", dtype, "likely")
        if finite_inputs(as_origin) and (large := _large(as_origin, dtype)):
            return _finding(
                snapshot, origin, f"the backward of {origin.op} worked on gradients {large}", dtype, "likely"
            )
    found = reach(origin)
    if found is not None and found.exceeds(dtype):
        return _finding(snapshot, origin, f"in the backward of {origin.op}, {found.text}", dtype, "likely")
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
    return _finding(snapshot, origin, f"{origin.op} worked on finite values {large}{detail}", dtype, "likely")


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


def _derivative_as_origin(derivative: Op, origin: Origin) -> Origin:
    return Origin(
        op=derivative.name,
        module=origin.module,
        inputs=derivative.inputs,
        outputs=derivative.outputs or origin.outputs,
        arguments=derivative.arguments,
        example=origin.example,
    )


def _finding(snapshot: Snapshot, origin: Origin, text: str, dtype: str, confidence: str) -> Finding:
    value = f"{place(origin.example)} = {show(origin.example.value)}: " if origin.example is not None else ""
    evidence = [f"{value}{text}, {show_limit(dtype)}"]
    found = main_summary(origin)
    if origin.op == "exp" and found is not None and found.max is not None and (end := limits(dtype)):
        evidence.append(
            f"exp overflows {dtype} from {show(log10(end.max) / log10(2.718281828459045))} on; "
            f"its operand goes from {show(found.min or 0)} to {show(found.max)}"
        )
    return Finding(Cause.OVERFLOW, confidence, tuple(evidence), _remedies(snapshot, origin, dtype))


def _remedies(snapshot: Snapshot, origin: Origin, dtype: str) -> tuple[Remedy, ...]:
    advice: list[Remedy] = []
    if origin.op in ("exp", "exp2", "expm1", "sinh", "cosh"):
        advice += _for_exponential(snapshot, origin)
    elif origin.op in ("add", "sub", "rsub") and _is_mask(origin, dtype):
        advice += _for_mask(origin, dtype)
    elif origin.op in ("div", "true_divide", "reciprocal"):
        divisor = operand_text(origin, 1, "denominator")
        advice.append(
            Remedy(
                "Keep the denominator away from zero: it is so small that the quotient leaves the dtype.",
                rewritten(origin, 1, "{}.clamp_min(1e-3)", f"{divisor} = {divisor}.clamp_min(1e-3)"),
            )
        )
    if dtype in COARSE and dtype != "bfloat16":
        advice.append(
            Remedy(
                f"Run {where(origin)} in float32 (or train in bfloat16, which has the range of float32): {dtype}, half "
                "precision (fp16), is too narrow for these values.",
                f'with torch.autocast("{device_of(origin)}", enabled=False):\n    out = {_in_float32(origin)}',
            )
        )
    if origin.op in ("to", "to_copy", "copy", "half"):
        end = f"torch.finfo(torch.{dtype}).max"
        advice.append(
            Remedy(
                "Clamp to the range of the target dtype before the cast, or do not cast.",
                f"x = x.clamp(-{end}, {end}).to(torch.{dtype})",
            )
        )
    elif not advice or origin.op not in ("exp", "exp2", "expm1", "sinh", "cosh", "add", "sub"):
        advice.append(
            Remedy(
                f"Scale down what enters {where(origin)}: normalise its input (LayerNorm, a smaller initialisation or "
                "learning rate) or clamp it to the range of the dtype.",
                _clamped(origin),
            )
        )
    return tuple(advice[:4])


def _for_exponential(snapshot: Snapshot, origin: Origin) -> list[Remedy]:
    x = operand_text(origin, 0, "x")
    below = {op.name for op in readers(snapshot, depth=1)}
    softmax = Remedy(
        "If this is a softmax or a log-sum-exp by hand, use torch.softmax, F.log_softmax, torch.logsumexp or "
        "F.cross_entropy, which subtract the max first.",
        f"torch.softmax({x}, dim=-1)",
    )
    bound = Remedy(
        f"Bound the exponent, {x}, before exp: with tanh times a constant, sigmoid, or a clamp.",
        rewritten(origin, 0, "{}.clamp(max=30)", f"torch.exp({x}.clamp(max=30))"),
    )
    shift = f"{atom(x)}.amax(dim=-1, keepdim=True)"
    subtract = Remedy(
        "Or subtract the max first; a common factor exp(-max) cancels in a quotient.",
        rewritten(origin, 0, "{} - " + shift, f"torch.exp({x} - {shift})"),
    )
    return [softmax, subtract, bound] if below & set(_SELF_MADE_SOFTMAX) else [bound, softmax]


def _is_mask(origin: Origin, dtype: str) -> bool:
    end = limits(dtype)
    sides = [element(origin, "self"), element(origin, "other")]
    lowest = [found.min for found in origin.inputs if found.min is not None]
    return end is not None and any(v is not None and v < -0.4 * end.max for v in (*sides, *lowest))


def _for_mask(origin: Origin, dtype: str) -> list[Remedy]:
    mask = operand_text(origin, 1, "mask")
    lowest = f"clamp_min(torch.finfo(torch.{dtype}).min / 2)"
    return [
        Remedy(
            f"The mask value is the lowest number of {dtype}, so adding any negative score overflows to -inf. Use "
            "half of "
            "it, or replace the scores by masked_fill instead of adding to them.",
            rewritten(origin, 1, "{}." + lowest, f"{mask} = {atom(mask)}.{lowest}"),
        ),
        Remedy(
            "Add the mask and take the softmax in float32, and cast the result back.",
            rewritten(origin, 1, "{}.float()", f"scores = scores.float() + {atom(mask)}.float()"),
        ),
    ]


def where(origin: Origin) -> str:
    """The place as a remedy names it: the module path, or the op in the loss code."""
    return origin.module if origin.module else f"this {origin.op}"


def device_of(origin: Origin) -> str:
    """The kind of device that the op ran on: "cpu", "cuda"."""
    known = origin.outputs or origin.inputs
    return known[0].device.partition(":")[0] if known else "cuda"


def _in_float32(origin: Origin) -> str:
    call = call_of(origin)
    text = call.text if call is not None else origin.source.expression if origin.source is not None else ""
    return f"{text}  # on .float() operands" if text else f"{origin.op}(x.float())"


def _clamped(origin: Origin) -> str | None:
    found = summary(origin, "self", "input", "mat1")
    if call_of(origin) is None or found is None or not found.absmax:
        return None
    bound = show(10.0 ** round(log_of(found.absmax**0.5)))
    return rewritten(origin, 0, "{}.clamp(-" + bound + ", " + bound + ")", "")
