"""What the user calls an operand: `1.0 - fake` instead of ATen's `self`.

Read from the source expression, and only where the expression *is* the call of that op; a call
of some function that runs the op inside gives no name (better ATen's role than a wrong name).
"""

from __future__ import annotations

import ast

from ..model import Snapshot

_LONGEST = 28
_OPERATORS: dict[type[ast.operator], frozenset[str]] = {
    ast.Div: frozenset({"div", "true_divide"}),
    ast.Mult: frozenset({"mul", "multiply"}),
    ast.Add: frozenset({"add"}),
    ast.Sub: frozenset({"sub", "rsub"}),
    ast.Pow: frozenset({"pow"}),
    ast.MatMult: frozenset({"mm", "bmm", "mv", "dot", "matmul"}),
}


def role(name: str) -> str:
    """ATen's name of the operand in plain words: `self` means the module to a Python reader."""
    return {"self": "input", "": "input"}.get(name, name)


def operand_names(expression: str, op: str) -> dict[str, str]:
    """The user's words for the op's operands, by ATen's names; empty where they are not certain."""
    try:
        parsed = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return {}
    match parsed:
        case ast.Call(func=ast.Attribute(value=owner, attr=called), args=arguments) if called.strip("_") == op:
            if isinstance(owner, ast.Name) and owner.id in {"torch", "F", "special", "functional"}:
                return _named(dict(zip(("self", "other"), arguments, strict=False)))
            if not isinstance(owner, ast.Name) or owner.id != "self":
                return _named(dict(zip(("self", "other"), (owner, *arguments), strict=False)))
            return {}
        case ast.BinOp(left=left, op=operator, right=right) if op in _OPERATORS.get(type(operator), ()):
            if op == "rsub":
                left, right = right, left
            second = "mat2" if isinstance(operator, ast.MatMult) else "other"
            if op == "pow":
                second = "exponent"
            return _named({"self": left, second: right})
        case _:
            return {}


def source_name(snapshot: Snapshot) -> str:
    """The user's word for a label that came in bad: `returns`, where only ATen's role of it was recorded."""
    source, origin = snapshot.source_value, snapshot.origin
    found = source.name if source is not None else ""
    if source is None or source.kind != "label" or origin is None or origin.source is None:
        return found
    return operand_names(origin.source.expression, origin.op).get(found, found)


def _named(operands: dict[str, ast.expr]) -> dict[str, str]:
    spelled = {name: _spelled(node) for name, node in operands.items() if not isinstance(node, ast.Constant)}
    return {name: text for name, text in spelled.items() if len(text) <= _LONGEST and "\n" not in text}


def _spelled(node: ast.expr) -> str:
    text = ast.unparse(node)
    bare = isinstance(node, (ast.Name, ast.Attribute, ast.Subscript, ast.Call))
    return text if bare else f"({text})"
