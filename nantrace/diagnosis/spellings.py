"""Functions that users spell by hand with an exp, found as trees in the line: log-sum-exp, softplus, sigmoid."""

from __future__ import annotations

import ast
from collections.abc import Callable

from ..model import Change, Op, Origin, Remedy, Snapshot
from .edits import line_of
from .reading import readers
from .rewriting import parsed
from .spots import spot_of


def spelled_by_hand(snapshot: Snapshot, origin: Origin) -> Remedy | None:
    """The stable function that the line spells by hand with this exp, where it does."""
    frame, spot = line_of(origin.source), spot_of(origin)
    tree = parsed(frame.code) if frame is not None else None
    if frame is None or spot is None or tree is None or origin.op != "exp":
        return None
    for node in (found for found in ast.walk(tree) if isinstance(found, ast.expr)):
        for function, match in _SPELLINGS.items():
            text = match(node, frame.code)
            if text is None or not node.col_offset <= spot.call.span[0] <= (node.end_col_offset or 0):
                continue
            code = frame.code[: node.col_offset] + text + frame.code[node.end_col_offset or 0 :]
            outer = _outer(snapshot, function)
            change = Change("fused", outer.id, "self", name=function) if outer is not None else None
            return Remedy(_WHY[function], code, change=change, replaces=frame)
    return None


_WHY = {
    "logsumexp": "This is a log-sum-exp by hand: torch.logsumexp subtracts the max before exp and adds it after the "
    "log, so it cannot overflow.",
    "softplus": "This is softplus by hand: F.softplus is the same function, linear where exp would overflow.",
    "sigmoid": "This is a sigmoid by hand: torch.sigmoid never takes exp of a large number.",
}


def _outer(snapshot: Snapshot, function: str) -> Op | None:
    """The last op of the function by hand: its result is the function's."""
    last = {"logsumexp": ("log",), "softplus": ("log", "log1p"), "sigmoid": ("div", "reciprocal", "mul")}[function]
    return next((op for op in readers(snapshot, depth=3) if op.name in last), None)


def _logsumexp_text(node: ast.expr, line: str) -> str | None:
    """log(exp(x).sum(dim)) or log(sum(exp(x), dim))."""
    inner = _applied(node, "log")
    if not isinstance(inner, ast.Call) or not isinstance(inner.func, ast.Attribute) or inner.func.attr != "sum":
        return None
    of_torch = isinstance(inner.func.value, ast.Name) and inner.func.value.id == "torch"
    summed, rest = (inner.args[0], inner.args[1:]) if of_torch and inner.args else (inner.func.value, inner.args)
    x = _applied(summed, "exp")
    given = [_text(argument, line) for argument in rest]
    given += [f"{keyword.arg}={_text(keyword.value, line)}" for keyword in inner.keywords]
    return f"torch.logsumexp({', '.join((_text(x, line), *given))})" if x is not None and given else None


def _softplus_text(node: ast.expr, line: str) -> str | None:
    """log(1 + exp(x)) or log1p(exp(x))."""
    inner, x = _applied(node, "log"), _applied(_applied(node, "log1p"), "exp")
    if x is None and isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Add):
        sides = (inner.left, inner.right)
        ones = [side for side in sides if isinstance(side, ast.Constant) and side.value == 1]
        x = next((found for side in sides if (found := _applied(side, "exp")) is not None), None) if ones else None
    return f"{'F' if 'F.' in line else 'torch.nn.functional'}.softplus({_text(x, line)})" if x is not None else None


def _sigmoid_text(node: ast.expr, line: str) -> str | None:
    """1 / (1 + exp(-x))."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and _is_one(node.left)):
        return None
    below = node.right
    if not (isinstance(below, ast.BinOp) and isinstance(below.op, ast.Add)):
        return None
    x = _applied(below.right, "exp") if _is_one(below.left) else _applied(below.left, "exp")
    if not (_is_one(below.left) or _is_one(below.right)) or x is None:
        return None
    negated = isinstance(x, ast.UnaryOp) and isinstance(x.op, ast.USub)
    text = _text(x.operand, line) if negated and isinstance(x, ast.UnaryOp) else f"-({_text(x, line)})"
    return f"torch.sigmoid({text})"


_SPELLINGS: dict[str, Callable[[ast.expr, str], str | None]] = {
    "logsumexp": _logsumexp_text,
    "softplus": _softplus_text,
    "sigmoid": _sigmoid_text,
}


def _applied(node: ast.expr | None, function: str) -> ast.expr | None:
    """What torch.f(x) or x.f() is applied to."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != function:
        return None
    base = node.func.value
    if isinstance(base, ast.Name) and base.id in ("torch", "math"):
        return node.args[0] if base.id == "torch" and len(node.args) == 1 else None
    return base if not node.args else None


def _is_one(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value in (1, 1.0)


def _text(node: ast.expr | None, line: str) -> str:
    return line[node.col_offset : node.end_col_offset] if node is not None else ""
