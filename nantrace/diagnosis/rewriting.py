"""The user's own line of code, taken apart and written anew with a remedy in it.

A line that does not parse, or in which the op stands more than once, is left alone: the
remedy then shows a generic snippet rather than a wrong edit.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from ..model import Origin, Source

_CALLED = {
    "div": ("div", "true_divide", "divide"),
    "mul": ("mul", "multiply"),
    "sub": ("sub", "subtract"),
    "rsub": ("rsub",),
    "acos": ("acos", "arccos"),
    "asin": ("asin", "arcsin"),
    "acosh": ("acosh", "arccosh"),
    "atanh": ("atanh", "arctanh"),
    "pow": ("pow", "float_power"),
    "linalg_vector_norm": ("norm", "vector_norm"),
    "nll_loss": ("nll_loss", "cross_entropy"),
    "nll_loss2d": ("nll_loss", "cross_entropy"),
    "log_softmax": ("log_softmax", "cross_entropy"),
    "bmm": ("bmm", "matmul"),
    "mm": ("mm", "matmul"),
    "addmm": ("addmm", "linear"),
    "std": ("std",),
}
_OPERATORS: dict[str, type[ast.operator]] = {
    "div": ast.Div,
    "true_divide": ast.Div,
    "floor_divide": ast.FloorDiv,
    "remainder": ast.Mod,
    "mul": ast.Mult,
    "add": ast.Add,
    "sub": ast.Sub,
    "rsub": ast.Sub,
    "pow": ast.Pow,
    "mm": ast.MatMult,
    "bmm": ast.MatMult,
    "mv": ast.MatMult,
}
_LIBRARIES = frozenset({"torch", "F", "nn", "functional", "np", "math"})


@dataclass(frozen=True, slots=True)
class Call:
    """The op as it stands in the user's line: the line, where the op is, where its operands are."""

    line: str
    span: tuple[int, int]
    spans: tuple[tuple[int, int], ...]  # of the operands, in the order of the code

    @property
    def text(self) -> str:
        """The op's own text: "torch.log(p)"."""
        return self.line[slice(*self.span)]

    def operand(self, position: int) -> str | None:
        """The text of one operand: "p"."""
        return self.line[slice(*self.spans[position])] if position < len(self.spans) else None

    def with_operand(self, position: int, text: str) -> str:
        """The line with one operand written anew."""
        start, end = self.spans[position]
        return self.line[:start] + text + self.line[end:]

    def with_call(self, text: str) -> str:
        """The line with the whole op written anew."""
        return self.line[: self.span[0]] + text + self.line[self.span[1] :]


def call_of(origin: Origin) -> Call | None:
    """The origin's op in the line that called it, where exactly one place can be meant."""
    return _call_in(origin.source, origin.op) if origin.source is not None else None


def operand_text(origin: Origin, position: int, otherwise: str) -> str:
    """What the user calls that operand."""
    call = call_of(origin)
    return (call.operand(position) if call is not None else None) or otherwise


def rewritten(origin: Origin, position: int, template: str, otherwise: str) -> str:
    """The user's line with an operand put into the template's {}; else the generic snippet."""
    call = call_of(origin)
    text = call.operand(position) if call is not None else None
    if call is None or text is None:
        return otherwise
    new = template.replace("{}", atom(text) if "{}." in template or "{} " in template or " {}" in template else text)
    if _parenthesized_needed(call, position, new):
        new = f"({new})"
    line = call.with_operand(position, new)
    return line if _parsed(line) is not None or _parsed(call.line) is None else otherwise


def atom(text: str) -> str:
    """The text, in parentheses where an attribute or an operator could not follow it otherwise."""
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return f"({text})"
    simple = isinstance(node, (ast.Name, ast.Attribute, ast.Call, ast.Subscript))
    return text if simple else f"({text})"


def _parenthesized_needed(call: Call, position: int, new: str) -> bool:
    start, end = call.spans[position]
    before, after = call.line[:start].rstrip(), call.line[end:].lstrip()
    if before.endswith(("(", ",", "=", "[")) and after.startswith((")", ",", "]")):
        return False
    return atom(new) != new


def _call_in(source: Source, op: str) -> Call | None:
    if source.expression:
        found = _find(source.expression, op)
        if found is not None and source.code.count(source.expression) == 1:
            shift = source.code.index(source.expression)
            moved = tuple((start + shift, end + shift) for start, end in found.spans)
            return Call(source.code, (found.span[0] + shift, found.span[1] + shift), moved)
        if found is not None:
            return found
    return _find(source.code, op)


def _find(text: str, op: str) -> Call | None:
    tree = _parsed(text)
    if tree is None or not text.isascii() or "\n" in text:
        return None
    nodes = [(node, operands) for node in ast.walk(tree) if (operands := _operands(node, op))]
    only = tree.body[0] if len(tree.body) == 1 else None
    root = only.value if isinstance(only, ast.Expr) else only if isinstance(only, ast.AugAssign) else None
    at_root = [pair for pair in nodes if pair[0] is root]
    chosen = at_root or nodes
    if len(chosen) != 1:
        return None
    node, operands = chosen[0]
    return Call(text, _span(node), tuple(_span(found) for found in operands))


def _parsed(text: str) -> ast.Module | None:
    for attempt in (text, f"{text} pass"):
        try:
            return ast.parse(attempt)
        except (SyntaxError, ValueError):
            continue
    return None


def _operands(node: ast.AST, op: str) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and op in _OPERATORS and isinstance(node.op, _OPERATORS[op]):
        return [node.left, node.right]
    if isinstance(node, ast.AugAssign) and op in _OPERATORS and isinstance(node.op, _OPERATORS[op]):
        return [node.target, node.value]
    if not isinstance(node, ast.Call):
        return []
    names = _CALLED.get(op, (op,))
    given = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
    given += [keyword.value for keyword in node.keywords if keyword.arg in ("input", "other", "exponent", "target")]
    match node.func:
        case ast.Name(id=name) if name.removesuffix("_") in names:
            return given
        case ast.Attribute(value=base, attr=name) if name.removesuffix("_") in names:
            return given if _is_library(base) else [base, *given]
        case _:
            return []


def _is_library(node: ast.expr) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in _LIBRARIES


def _span(node: ast.AST) -> tuple[int, int]:
    start, end = getattr(node, "col_offset", 0), getattr(node, "end_col_offset", 0)
    return start, end
