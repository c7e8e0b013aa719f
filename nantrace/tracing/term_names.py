"""Names for the terms of a loss: the user's own words for them, read from the lines that added and computed them."""

from __future__ import annotations

import ast

from ..model import Source

_LONGEST = 40


def operand_text(source: Source | None, position: int, made_as: str | None) -> str | None:
    """How the expression calls its operand: "kl" in `recon + beta * kl`; None where it does not say.

    `made_as` is the variable that the operand was assigned to where it was computed.
    """
    node = _parsed(source.expression) if source is not None else None
    if isinstance(node, ast.AugAssign):
        return _text((node.target, node.value)[position]) if position < 2 else None
    if isinstance(node, ast.BinOp):
        sides = [side for side in (node.left, node.right) if not _is_number(side)]
        if len(sides) == 2 and isinstance(node.op, (ast.Mult, ast.Div)):
            return _factor(node, sides, made_as)
        return _text(sides[position] if len(sides) == 2 and position < 2 else sides[0]) if sides else None
    if isinstance(node, ast.Call):
        listed = node.args[0] if node.args and isinstance(node.args[0], (ast.List, ast.Tuple)) else None
        given = listed.elts if listed is not None else node.args
        return _text(given[position]) if position < len(given) and listed is not None else None
    if isinstance(node, ast.UnaryOp):
        return _text(node.operand)
    return None


def assigned_name(source: Source | None) -> str | None:
    """The variable that a line assigns to: "kl" of `kl = -0.5 * ...`."""
    node = _statement(source)
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        return _text(node.targets[0]) if not isinstance(node.targets[0], (ast.Tuple, ast.List)) else None
    return _text(node.target) if isinstance(node, ast.AnnAssign) else None


def accumulator(source: Source | None) -> str | None:
    """The variable that a line adds to: "loss" of `loss += reg` and of `loss = loss + reg`."""
    node = _statement(source)
    if isinstance(node, ast.AugAssign):
        return _text(node.target)
    own = assigned_name(source)
    if own is None or not isinstance(node, ast.Assign):
        return None
    return own if any(isinstance(one, ast.expr) and _text(one) == own for one in ast.walk(node.value)) else None


def computed_text(source: Source | None) -> str | None:
    """The expression that computed it, cut to a name's length."""
    text = (source.expression or source.code) if source is not None else ""
    return (text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "...") or None


def _factor(node: ast.BinOp, sides: list[ast.expr], made_as: str | None) -> str | None:
    """Which of two factors is the term: the one that is called so where it was made, or the call; else both of them."""
    texts = [_text(side) for side in sides]
    if made_as is not None and made_as in texts:
        return made_as
    if isinstance(node.op, ast.Div):
        return texts[0]
    calls = [text for side, text in zip(sides, texts, strict=True) if isinstance(side, ast.Call)]
    return calls[0] if len(calls) == 1 else _text(node)


def _statement(source: Source | None) -> ast.AST | None:
    """The statement of a line; of several on one line, the one that holds the expression."""
    if source is None:
        return None
    code = source.code.strip()
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError):
        return None
    holding = [one for one in body if source.expression in (ast.get_source_segment(code, one) or "")]
    return holding[0] if len(holding) == 1 else None


def _parsed(code: str) -> ast.AST | None:
    try:
        body = ast.parse(code.strip()).body
    except (SyntaxError, ValueError, RecursionError):
        return None
    if len(body) != 1:
        return None
    return body[0].value if isinstance(body[0], ast.Expr) else body[0]


def _text(node: ast.AST) -> str | None:
    text = ast.unparse(node)
    return text if len(text) <= _LONGEST else None


def _is_number(node: ast.AST) -> bool:
    node = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float))
