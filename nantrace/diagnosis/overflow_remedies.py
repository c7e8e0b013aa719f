"""What to change where a finite result is too large for its dtype."""

from __future__ import annotations

from math import floor, inf, log10

from ..model import Change, Origin, Remedy, Snapshot
from .dtypes import roomy
from .edits import Edit, line_of
from .exponentials import EXPONENTIALS, for_exponential
from .magnitude import CASTS, Reach
from .numbers import COARSE, limits, number, show
from .reading import dtype_of, element, forward_op, operand, summary
from .rewriting import atom, is_number, operand_text, target
from .spots import spot_of
from .widening import PRODUCTS, id_of, in_wider, lets_through, where, whole_step

_SQUARES = frozenset({"square", "norm", "linalg_vector_norm", "var", "std", "mse_loss"})
_SATURATING = PRODUCTS | {"mul", "add", "sub", "rsub", "square", "pow", "sum", "mean", "cumsum", "div", "true_divide"}
_LINEAR = PRODUCTS | {"sum", "mean", "mul", "add", "sub"}
_FAR = 80.0
_HALF = log10(2)
_MOST_CUT = 2.5  # decades


def for_overflow(snapshot: Snapshot, origin: Origin, dtype: str, found: Reach | None) -> tuple[Remedy, ...]:
    """The better remedy first."""
    if origin.op in CASTS:
        return tuple(_for_cast(snapshot, origin, dtype))
    if is_mask(origin, dtype):
        return tuple(_for_mask(snapshot, origin, dtype))
    if origin.op in EXPONENTIALS:
        return tuple(for_exponential(snapshot, origin) + _wider_last(snapshot, origin, dtype, found))[:4]
    advice: list[Remedy] = []
    narrow = dtype in COARSE and dtype != "bfloat16"
    if origin.op in ("div", "true_divide", "reciprocal"):
        advice.append(_denominator(snapshot, origin, dtype))
    if narrow and not origin.derivative and lets_through(snapshot, dtype):
        pair = [in_wider(snapshot, origin, "float32"), whole_step(snapshot, origin, "bfloat16")]
        # What cannot be edited here is a module's own op: its parameters are as narrow.
        advice += pair if pair[0].replaces is not None else pair[::-1]
    elif narrow:
        advice += [whole_step(snapshot, origin, "bfloat16")]
        advice += _saturated(snapshot, origin, dtype)
    if origin.derivative and origin.op in _LINEAR:
        return (*advice, _smaller_loss(dtype))
    advice += _clamped(snapshot, origin, dtype)
    if not narrow:
        advice += _wider_last(snapshot, origin, dtype, found)
    return tuple(advice[:4])


def _wider_last(snapshot: Snapshot, origin: Origin, dtype: str, found: Reach | None) -> list[Remedy]:
    """A wider dtype as the last resort: for a value that it holds with room to spare."""
    name = roomy(found.log, dtype) if found is not None else None
    # A value past the root of float64's range is not what float32 was a little too narrow for.
    if found is None or name is None or origin.derivative or found.log > _FAR:
        return []
    return [in_wider(snapshot, origin, name)]


def _saturated(snapshot: Snapshot, origin: Origin, dtype: str) -> list[Remedy]:
    """The result clamped to the largest numbers of its dtype, as half-precision ports of large models do."""
    spot, end, op = spot_of(origin), limits(dtype), id_of(snapshot)
    if end is None or op is None or origin.derivative or origin.op not in _SATURATING:
        return []
    call = f"clamp({-end.max:g}, {end.max:g})"
    edit = spot.with_result("{}." + call) if spot is not None else None
    text = (
        f"Or saturate the result at the end of {dtype} instead of letting it become inf; what follows then works on "
        f"wrong, but finite, values, and the saturated elements have no gradient."
    )
    return [_remedy(text, edit, f"out = out.{call}", Change("clamp", op, "out", (-end.max, end.max)))]


def _smaller_loss(dtype: str) -> Remedy:
    return Remedy(
        f"Make the gradients smaller before they overflow {dtype}: lower the factor that the loss is multiplied with, "
        "take its mean instead of its sum, or let torch.amp.GradScaler find the scale: it skips a step whose gradients "
        "overflow.",
        "scaler.scale(loss).backward()\nscaler.step(optimizer)\nscaler.update()",
    )


def _clamped(snapshot: Snapshot, origin: Origin, dtype: str) -> list[Remedy]:
    """What enters the op bounded so that its result stays at a fraction of the dtype's range."""
    scale = (
        f"Scale down what enters {where(origin)}: normalise its input (LayerNorm, a smaller initialisation or learning "
        "rate) or clamp it to the range of the dtype."
    )
    bound, op, spot = _bound(origin, dtype), id_of(snapshot), spot_of(origin)
    forward = forward_op(snapshot)
    position = 1 if spot is not None and is_number(spot.operand(0)) else 0
    name = _operand_name(origin)
    if bound is None or op is None or forward is None or name is None:
        return [Remedy(scale)]
    call = f"clamp(-{bound}, {bound})"
    edit = spot.with_operand(position, "{}." + call) if spot is not None else None
    x = operand_text(origin, position, "x")
    change = Change("clamp", op, name, (-float(bound), float(bound)))
    return [_remedy(scale, edit, f"{target(x)} = {atom(x)}.{call}", change)]


def _operand_name(origin: Origin) -> str | None:
    names = [found.name for found in origin.inputs]
    return next((name for name in ("mat1", "input", "self", "batch1") if name in names), None)


def _bound(origin: Origin, dtype: str) -> str | None:
    """The operand's bound in one digit: the result stays inside the dtype's range, at half of it where linear."""
    end = limits(dtype)
    if end is None:
        return None
    power = log10(end.max)
    exponent = element(origin, "exponent") if origin.op == "pow" else None
    first = summary(origin, "mat1", "input", "self", "batch1")
    if origin.op == "pow" and (exponent is None or exponent <= 0):
        return None
    if origin.op in _SQUARES or exponent is not None:
        log = power * (0.5 if dtype in COARSE else 0.75) / (exponent or 2.0)
    elif origin.op in ("sum", "mean", "cumsum"):
        found = operand(origin, "self")
        count = found.summary.numel if found is not None and found.summary is not None else 1
        log = power - _HALF - log10(max(1, count))
    else:
        other = summary(origin, "mat2", "other", "weight", "batch2", "vec")
        factor = (other.absmax if other is not None else number(origin.arguments.get("other"))) or 0.0
        if not factor or origin.op not in (*PRODUCTS, "mul"):
            return None
        terms = first.shape[-1] if first is not None and first.shape and origin.op in PRODUCTS else 1
        log = power - _HALF - log10(abs(factor)) - log10(max(1, terms))
    known = first.absmax if first is not None else None
    # A bound that cuts nearly everything off is no advice.
    return _one_digit(log) if known and log >= log10(known) - _MOST_CUT else None


def _one_digit(log: float) -> str:
    """10**log in one digit, rounded down: "200", "3e+07"."""
    whole = floor(log)
    digit = floor(10 ** (log - whole) + 1e-9)
    return f"{float(f'{digit}e{whole}'):g}"


def _denominator(snapshot: Snapshot, origin: Origin, dtype: str) -> Remedy:
    text = "Keep the denominator away from zero: it is so small that the quotient leaves the dtype."
    position = 0 if origin.op == "reciprocal" else 1
    name = "self" if origin.op == "reciprocal" else "other"
    divisor, op = operand_text(origin, position, "denominator"), id_of(snapshot)
    below = summary(origin, name)
    eps = "1e-2" if dtype == "float16" else "1e-3"
    spot = spot_of(origin)
    if below is None or below.min is None or below.min < 0:
        return Remedy(text, f"{target(divisor)} = {divisor}.sign() * {atom(divisor)}.abs().clamp_min({eps})")
    edit = spot.with_operand(position, "{}.clamp_min(" + eps + ")") if spot is not None else None
    change = Change("clamp", op, name, (float(eps), inf)) if op is not None else None
    return _remedy(text, edit, f"{target(divisor)} = {atom(divisor)}.clamp_min({eps})", change)


def _for_cast(snapshot: Snapshot, origin: Origin, dtype: str) -> list[Remedy]:
    end, op, spot = limits(dtype), id_of(snapshot), spot_of_cast(origin)
    if end is None:
        return []
    call = f"clamp({-end.max:g}, {end.max:g})"
    x = operand_text(origin, 0, "x")
    name = (origin.inputs[0].name if origin.inputs else "") or "self"
    change = Change("clamp", op, name, (-end.max, end.max)) if op is not None else None
    clamp = _remedy(
        f"Clamp to the range of {dtype} before the cast: {call}. Values past it are then wrong but finite; where they "
        "matter, do not cast.",
        spot,
        f"x = {x}.{call}.to(torch.{dtype})",
        change,
    )
    if dtype not in COARSE or dtype == "bfloat16":
        return [clamp]
    return [clamp, _cast_to_bfloat16(snapshot, origin)]


def _cast_to_bfloat16(snapshot: Snapshot, origin: Origin) -> Remedy:
    text = "Or cast to bfloat16, which has the range of float32 and fewer digits, or do not cast at all."
    op, frame = id_of(snapshot), line_of(origin.source)
    change = Change("dtype", op, name="bfloat16") if op is not None else None
    if frame is not None and lets_through(snapshot, dtype_of(origin)):
        for old, new in (
            (".half()", ".bfloat16()"),
            ("torch.float16", "torch.bfloat16"),
            ("torch.half", "torch.bfloat16"),
        ):
            if frame.code.count(old) == 1:
                return Remedy(text, frame.code.replace(old, new), change=change, replaces=frame)
    return Remedy(text, "x = x.to(torch.bfloat16)", change=change)


def spot_of_cast(origin: Origin) -> Edit | None:
    """The line with what is cast clamped first: x.half(), x.to(torch.float16), x.type(...)."""
    end = limits(dtype_of(origin))
    for method in ("half", "to", "type", "bfloat16"):
        spot = spot_of(
            Origin(method, origin.module, source=origin.source, inputs=origin.inputs, outputs=origin.outputs)
        )
        if spot is not None and end is not None:
            return spot.with_operand(0, "{}." + f"clamp({-end.max:g}, {end.max:g})")
    return None


# A mask of the lowest number, added to scores


def is_mask(origin: Origin, dtype: str) -> bool:
    """Whether what was added is a mask: values near the lowest number of the dtype."""
    return _mask_operand(origin, dtype) is not None


def _mask_operand(origin: Origin, dtype: str) -> str | None:
    end = limits(dtype)
    if end is None or origin.op not in ("add", "sub", "rsub", "baddbmm", "addmm"):
        return None
    names = ("other", "self") if origin.op == "add" else ("other",) if origin.op == "rsub" else ("self",)
    for name in names:
        at, whole = element(origin, name), summary(origin, name)
        lowest = at if at is not None else whole.min if whole is not None else None
        if lowest is not None and lowest < -0.4 * end.max:
            return name
    return None


def _for_mask(snapshot: Snapshot, origin: Origin, dtype: str) -> list[Remedy]:
    end, op, spot = limits(dtype), id_of(snapshot), spot_of(origin)
    name = _mask_operand(origin, dtype)
    if end is None or name is None:
        return []
    position = 1 if name == "other" else 0
    mask, lowest = operand_text(origin, position, "mask"), -end.max / 2
    call = f"clamp_min({lowest!r})"
    text = (
        f"The mask value is the lowest number of {dtype}, so adding any negative score overflows to -inf. Use half of "
        f"it (torch.finfo(torch.{dtype}).min / 2 = {show(lowest)}), or replace the scores by masked_fill instead of "
        "adding to them."
    )
    change = Change("clamp", op, name, (lowest, inf)) if op is not None else None
    edit = spot.with_operand(position, "{}." + call) if spot is not None else None
    half = _remedy(text, edit, f"{target(mask)} = {atom(mask)}.{call}", change)
    if dtype not in COARSE:
        return [half]
    wide = in_wider(snapshot, origin, "float32")
    words = "Or add the mask and take the softmax in float32, and cast the result back."
    return [half, Remedy(words, wide.code, change=wide.change, replaces=wide.replaces)]


def _remedy(text: str, edit: Edit | None, snippet: str, change: Change | None) -> Remedy:
    return (edit or Edit(snippet)).remedy(text, change)
