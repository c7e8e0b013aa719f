"""log(softmax(x)), log(sigmoid(x)), log(1 - sigmoid(x)) and log(sum(exp(x))) as the one op that cannot saturate.

The op that made the operand of the logarithm stands in the same line, or in a line above of the same function that
gives it a name. Anything in between that may change a value is left alone.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from ..model import Op, Origin, Remedy, Snapshot, Source
from .edits import Edit, change, edit_at, is_plain
from .reading import PLUMBING, makers
from .rewriting import atom, call_of, span_of

_TEXT = {
    "log_softmax": "Replace softmax followed by log by F.log_softmax (or F.cross_entropy on the logits): it cannot "
    "underflow to 0, and its gradient stays exact where a clamp has none.",
    "logsigmoid": "Compute the log-probability from the logits: F.logsigmoid, or F.binary_cross_entropy_with_logits "
    "(BCEWithLogitsLoss) on the value before the sigmoid; it cannot saturate.",
    "logsumexp": "exp underflowed to 0 before the logarithm: stay in log space, and add the terms with "
    "torch.logsumexp.",
}
_SNIPPET = {
    "log_softmax": "F.log_softmax(logits, dim=-1)",
    "logsigmoid": "F.binary_cross_entropy_with_logits(logits, target)",
    "logsumexp": "torch.logsumexp(log_weights + log_densities, dim=-1)",
}


@dataclass(frozen=True, slots=True)
class _Fusion:
    name: str  # "log_softmax"
    text: str  # the expression that takes the place of the logarithm


def fused(snapshot: Snapshot, origin: Origin) -> Remedy | None:
    """The remedy that makes one op of a logarithm and what made its operand; None where there is nothing to fuse."""
    name = _kind(snapshot)
    if name is None:
        return None
    call = call_of(origin)
    inner = call.operand(0) if call is not None else None
    fusion = None
    if origin.source is not None and inner is not None:
        prefix = _functional(snapshot, origin.source)
        fusion = _of_expression(inner, prefix) or _of_named(snapshot, origin.source, inner, prefix)
    tried = change(snapshot, "fused", "self", name=name)
    told = _TEXT[name]
    if fusion is None or origin.source is None:
        return Edit(_SNIPPET[name]).remedy(told, tried)
    edit = edit_at(origin.source, call, fusion.text, _SNIPPET[name])
    return edit.remedy(told, tried)


def _kind(snapshot: Snapshot) -> str | None:
    """Which fused op there is for the logarithm of what made the operand."""
    above = [op.name for op in makers(snapshot, "self", depth=2)]
    computed = [name for name in above if name not in PLUMBING]
    match computed[:2]:
        case ["softmax", *_]:
            return "log_softmax"
        case ["sigmoid", *_] | ["rsub", "sigmoid"]:
            return "logsigmoid"
        case ["sum", "exp"]:
            return "logsumexp"
        case _:
            return None


def _of_named(snapshot: Snapshot, source: Source, inner: str, prefix: str | None) -> _Fusion | None:
    """The operand is a name: the expression that a line above gave it takes its place."""
    names = re.findall(r"[A-Za-z_]\w*", inner)
    for op in makers(snapshot, "self", depth=2):
        value = _assigned(op, source)
        if value is None or value[0] not in names:
            continue
        name, text = value
        if not _argument_is_plain(text) or _assigned_between(snapshot, op.source, source, text):
            return None
        return _of_expression(re.sub(rf"\b{name}\b", text.replace("\\", r"\\"), inner, count=1), prefix)
    return None


def _assigned(op: Op, source: Source) -> tuple[str, str] | None:
    """The name and the expression, where the op's line is `name = expression` above the source in its function."""
    line = op.source
    if line is None or (line.file, line.function) != (source.file, source.function) or line.line >= source.line:
        return None
    try:
        body = ast.parse(line.code).body
    except (SyntaxError, ValueError):
        return None
    if len(body) == 1 and isinstance(body[0], ast.Assign) and len(body[0].targets) == 1:
        target, start, end = body[0].targets[0], *span_of(line.code, body[0].value)
        return (target.id, line.code[start:end]) if isinstance(target, ast.Name) else None
    return None


def _argument_is_plain(text: str) -> bool:
    """Whether the expression may be computed again: a call of one op on what is not called."""
    node = ast.parse(text, mode="eval").body
    if not isinstance(node, ast.Call):
        return False
    inner = [*node.args, *(keyword.value for keyword in node.keywords)]
    if isinstance(node.func, ast.Attribute):
        inner.append(node.func.value)
    return all(is_plain(text[slice(*span_of(text, part))]) for part in inner)


def _assigned_between(snapshot: Snapshot, first: Source | None, last: Source, text: str) -> bool:
    """Whether a line in between, as far as lines are known, gives one of the names in the text another value."""
    lines = {op.source.line: op.source.code for op in snapshot.ops if op.source and op.source.file == last.file}
    lines.update(dict(last.context))
    names = set(re.findall(r"[A-Za-z_]\w*", text))
    start = first.line if first is not None else last.line
    between = [code for number, code in lines.items() if start < number < last.line]
    return any(re.match(rf"\s*(\w+\s*,\s*)*{name}\b[^()=]*[-+*/@]?=[^=]", code) for code in between for name in names)


def _of_expression(text: str, prefix: str | None) -> _Fusion | None:
    """The logarithm of the expression, where it is one that can be fused."""
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        return None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and isinstance(node.left, ast.Constant):
        minus = _applied(text, node.right, "sigmoid") if node.left.value == 1 else None
        return _Fusion("logsigmoid", f"{prefix}logsigmoid(-{atom(minus)})") if minus and prefix else None
    if summed := _logsumexp(text, node):
        return _Fusion("logsumexp", summed)
    inner = _within_plumbing(node)
    before, after = text[: span_of(text, inner)[0]], text[span_of(text, inner)[1] :]
    if logits := _applied(text, inner, "sigmoid"):
        return _Fusion("logsigmoid", f"{before}{prefix}logsigmoid({logits}){after}") if prefix else None
    if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr == "softmax":
        _, end = span_of(text, inner.func)
        return _Fusion("log_softmax", f"{text[: end - len('softmax')]}log_softmax{text[end:]}")
    return None


def _within_plumbing(node: ast.expr) -> ast.expr:
    """What is left of subscripts and of methods that only move values."""
    while True:
        match node:
            case ast.Subscript(value=inner):
                node = inner
            case ast.Call(func=ast.Attribute(value=inner, attr=name)) if name in PLUMBING:
                node = inner
            case _:
                return node


def _logsumexp(text: str, node: ast.expr) -> str | None:
    """`torch.exp(x).sum(-1)` as `x.logsumexp(-1)`."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "sum":
        return None
    base, given = node.func.value, list(node.args)
    if isinstance(base, ast.Name) and base.id == "torch":
        if not given:
            return None
        base, given = given[0], given[1:]
    exponent = _applied(text, base, "exp")
    if exponent is None or any(keyword.arg not in ("dim", "keepdim") for keyword in node.keywords):
        return None
    told = [text[slice(*span_of(text, part))] for part in given]
    told += [f"{keyword.arg}={text[slice(*span_of(text, keyword.value))]}" for keyword in node.keywords]
    return f"{atom(exponent)}.logsumexp({', '.join(told)})" if told else f"{atom(exponent)}.flatten().logsumexp(0)"


def _applied(text: str, node: ast.expr, function: str) -> str | None:
    """What a function of one tensor is applied to: the x of `torch.exp(x)` and of `x.exp()`."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch" | "F"), attr=name), args=[given], keywords=[]) if (
            name == function
        ):
            return text[slice(*span_of(text, given))]
        case ast.Call(func=ast.Attribute(value=given, attr=name), args=[], keywords=[]) if name == function:
            return text[slice(*span_of(text, given))]
        case _:
            return None


def _functional(snapshot: Snapshot, source: Source) -> str | None:
    """How the file calls torch.nn.functional, as far as its lines are known; None where it may not know it."""
    known = [source.code, *(text for _, text in source.context)]
    known += [op.source.code for op in snapshot.ops if op.source is not None and op.source.file == source.file]
    if any(re.search(r"\bF\.\w+\(", line) for line in known):
        return "F."
    return "torch.nn.functional." if any(re.search(r"\btorch\.\w", line) for line in known) else None
