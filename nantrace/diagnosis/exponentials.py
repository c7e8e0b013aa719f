"""What to change where an exponential overflows: the function that it spells by hand, or a bound on its exponent."""

from __future__ import annotations

import ast
from math import exp, inf

from ..model import Change, Op, Origin, Remedy, Snapshot
from .edits import Edit, line_of
from .growth import healthy_gradient_norm
from .rates import clipping
from .reading import dtype_of, forward_op, maker, readers
from .rewriting import atom, operand_text, parsed
from .spellings import spelled_by_hand
from .spots import Spot, spot_of
from .widening import id_of

EXPONENTIALS = frozenset({"exp", "exp2", "expm1", "sinh", "cosh"})
_SOFT = 5.0  # exp(5) = 148
_SOFT_REPEATED = 2.0  # exp(2) = 7.4, as coupling layers bound their scales: a few of them are multiplied
_HARD = {"float16": 8.0, "float64": 200.0}
_LOG_VARIANCE = (-30.0, 20.0)  # as diffusion and VAE libraries bound it
_TEMPERATURE = 4.6  # log(100), the bound of a contrastive model's temperature


def for_exponential(snapshot: Snapshot, origin: Origin) -> list[Remedy]:
    """The better remedy first: the stable function where the line spells one, else a bound."""
    spelled = spelled_by_hand(snapshot, origin)
    if spelled is not None:
        return [spelled, _clamp(snapshot, origin)]
    divided = _divided(snapshot)
    if divided is not None:
        return [_subtract_max(snapshot, origin, divided), _softmax(origin), _clamp(snapshot, origin)]
    if _summed(snapshot):
        return [_logsumexp(origin), _clamp(snapshot, origin)]
    if origin.op in ("sinh", "cosh"):
        return [_clamp(snapshot, origin)]
    if _is_log_variance(origin):
        return [*_where_made(snapshot, origin), _clamp(snapshot, origin)]
    if _is_scalar(origin):
        return [_clamp(snapshot, origin), _tanh(snapshot, origin)]
    if _multiplies_repeatedly(snapshot, origin):
        return [_tanh(snapshot, origin), _clipped(snapshot), _clamp(snapshot, origin)]
    return [_tanh(snapshot, origin), _clamp(snapshot, origin), _softmax(origin)]


def _clipped(snapshot: Snapshot) -> Remedy:
    """What a bound on the factors leaves: the step is finite, and its gradient out of line."""
    clip = clipping(snapshot, healthy_gradient_norm(snapshot.history))
    text = clip.text.removesuffix(".").replace("Clip", "And clip", 1)
    return Remedy(
        f"{text}: a batch like this one has a finite gradient then, but one that throws the weights.", clip.code
    )


def _tanh(snapshot: Snapshot, origin: Origin) -> Remedy:
    x, op = operand_text(origin, 0, "x"), id_of(snapshot)
    repeated = _multiplies_repeatedly(snapshot, origin)
    bound = _SOFT_REPEATED if repeated else _SOFT
    bounded = f"{bound:g} * torch.tanh({atom(x)} / {bound:g})"
    many = ", so that several of them in a row stay in range" if repeated else ""
    return _remedy(
        f"Bound the exponent smoothly before exp: {bound:g} * tanh(x / {bound:g}) keeps the factor below "
        f"exp({bound:g}) = {exp(bound):.2g}{many}, and, unlike a clamp, keeps a gradient on the way there.",
        _with_operand(spot_of(origin), bounded),
        f"torch.exp({bounded})",
        Change("tanh", op, _name(snapshot), (bound,)) if op is not None else None,
    )


def _multiplies_repeatedly(snapshot: Snapshot, origin: Origin) -> bool:
    """Whether several such factors are multiplied: by the layers of a flow, or by the steps of a recurrence."""
    products = [op for op in readers(snapshot, depth=3) if op.name == "mul"]
    line = origin.source
    lines = [
        op
        for op in snapshot.ops
        if op.name == origin.op
        and op.phase != "backward"
        and op.source is not None
        and line is not None
        and (op.source.file, op.source.line) == (line.file, line.line)
    ]
    return bool(products) and (len(lines) > 1 or len(products) > 1)


def _clamp(snapshot: Snapshot, origin: Origin) -> Remedy:
    x, op = operand_text(origin, 0, "x"), id_of(snapshot)
    low, high = _bounds(snapshot, origin)
    call = f"clamp(max={high:g})" if low == -inf else f"clamp({low:g}, {high:g})"
    edit = _with_operand(spot_of(origin), "{}." + call)
    return _remedy(
        f"Bound the exponent with a clamp before {origin.op}; where it bites there is no gradient.",
        edit,
        f"torch.{origin.op}({atom(x)}.{call})",
        Change("clamp", op, _name(snapshot), (low, high)) if op is not None else None,
    )


def _bounds(snapshot: Snapshot, origin: Origin) -> tuple[float, float]:
    hard = _HARD.get(dtype_of(origin), 20.0)
    if _multiplies_repeatedly(snapshot, origin):
        return -inf, _SOFT_REPEATED
    if origin.op in ("sinh", "cosh"):
        return -hard, hard
    if _is_log_variance(origin) and dtype_of(origin) != "float16":
        return _LOG_VARIANCE
    return (-inf, _TEMPERATURE) if _is_scalar(origin) else (-inf, hard)


def _where_made(snapshot: Snapshot, origin: Origin) -> list[Remedy]:
    """The log-variance bounded in the line that makes it, so that every use of it is bounded."""
    made = maker(snapshot, _name(snapshot))
    frame = line_of(made.source) if made is not None else None
    name = _bare_name(operand_text(origin, 0, ""))
    if made is None or frame is None or not name or name not in _assigned_names(frame.code):
        return []
    low, high = _LOG_VARIANCE if dtype_of(origin) != "float16" else (-_HARD["float16"], _HARD["float16"])
    change = Change("clamp", made.id, "out", (low, high))
    text = f"Bound {name} where it is made: every exp of it, in the sample and in the loss, is then safe."
    code = f"{frame.code}\n{name} = {name}.clamp({low:g}, {high:g})"
    return [Remedy(text, code, change=change, replaces=frame)]


def _subtract_max(snapshot: Snapshot, origin: Origin, summed: Op) -> Remedy:
    x, op = operand_text(origin, 0, "x"), id_of(snapshot)
    dim = _dim(summed)
    shift = f"{atom(x)}.amax(dim={dim}, keepdim=True)"
    return _remedy(
        "Subtract the max before exp, as softmax does: the common factor exp(-max) cancels in the quotient.",
        _with_operand(spot_of(origin), f"{{}} - {shift}"),
        f"torch.exp({x} - {shift})",
        Change("subtract-max", op, _name(snapshot), (float(dim),)) if op is not None else None,
    )


def _softmax(origin: Origin) -> Remedy:
    x = operand_text(origin, 0, "x")
    return Remedy(
        "If this is a softmax or a log-sum-exp by hand, use torch.softmax, F.log_softmax, torch.logsumexp or "
        "F.cross_entropy, which subtract the max first.",
        f"torch.softmax({x}, dim=-1)",
    )


def _logsumexp(origin: Origin) -> Remedy:
    x = operand_text(origin, 0, "x")
    return Remedy(
        "If the logarithm of this sum is taken, use torch.logsumexp, which subtracts the max before exp and adds it "
        "again after the log.",
        f"torch.logsumexp({x}, dim=-1)",
    )


def _divided(snapshot: Snapshot) -> Op | None:
    """The sum by which the exponentials are divided: a softmax by hand."""
    near = list(readers(snapshot, depth=4))
    sums = [op for op in near if op.name == "sum"]
    quotients = [op for op in near if op.name in ("div", "true_divide")]
    direct = {op.id for op in readers(snapshot, depth=2)}
    return sums[0] if sums and any(op.id in direct for op in quotients) else None


def _summed(snapshot: Snapshot) -> bool:
    return any(op.name == "log" for op in readers(snapshot, depth=4)) and any(
        op.name == "sum" for op in readers(snapshot, depth=1)
    )


def _dim(op: Op) -> int:
    dims = op.arguments.get("dim")
    first = dims[0] if isinstance(dims, (list, tuple)) and len(dims) == 1 else dims
    return first if isinstance(first, int) else -1


# What the exponent is


def _is_log_variance(origin: Origin) -> bool:
    text = operand_text(origin, 0, "").lower().replace("_", "")
    return "logvar" in text or "logstd" in text or "logsigma" in text


def _is_scalar(origin: Origin) -> bool:
    found = origin.inputs[0] if origin.inputs else None
    return found is not None and found.numel == 1 and found.label.startswith("parameter")


def _bare_name(text: str) -> str:
    names = [node.id for node in ast.walk(parsed(text) or ast.Module([], [])) if isinstance(node, ast.Name)]
    return names[0] if len(set(names)) == 1 else ""


def _assigned_names(line: str) -> set[str]:
    tree = parsed(line)
    only = tree.body[0] if tree is not None and len(tree.body) == 1 else None
    if not isinstance(only, ast.Assign):
        return set()
    targets = [one for target in only.targets for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _name(snapshot: Snapshot) -> str:
    found = forward_op(snapshot)
    return (found.inputs[0].name if found is not None and found.inputs else "") or "self"


def _with_operand(spot: Spot | None, template: str) -> Edit | None:
    return spot.with_operand(0, template) if spot is not None else None


def _remedy(text: str, edit: Edit | None, snippet: str, change: Change | None) -> Remedy:
    return (edit or Edit(snippet)).remedy(text, change)
