"""The user's own line of code, taken apart: the op in it, its operands, and the line with one of them written anew.

A line that does not parse, or in which the op stands more than once, is left alone: the
remedy then shows a generic snippet rather than a wrong edit.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace

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
    "pow": ("pow", "float_power", "square"),
    "linalg_vector_norm": ("norm", "vector_norm"),
    "nll_loss": ("nll_loss", "cross_entropy"),
    "nll_loss2d": ("nll_loss", "cross_entropy"),
    "log_softmax": ("log_softmax", "cross_entropy"),
    "bmm": ("bmm", "matmul"),
    "mm": ("mm", "matmul"),
    "addmm": ("addmm", "linear"),
    "linalg_inv_ex": ("inv", "inverse", "inv_ex"),
    "linalg_solve_ex": ("solve", "solve_ex"),
    "linalg_solve_triangular": ("solve_triangular",),
    "linalg_cholesky": ("cholesky",),
    "linalg_cholesky_ex": ("cholesky", "cholesky_ex"),
    "linalg_eigh": ("eigh", "eigvalsh"),
    "linalg_svd": ("svd", "svdvals"),
    "linalg_det": ("det",),
    "linalg_slogdet": ("slogdet", "logdet"),
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
    "float_power": ast.Pow,
    "mm": ast.MatMult,
    "bmm": ast.MatMult,
    "mv": ast.MatMult,
}
_LIBRARIES = frozenset({"torch", "th", "F", "nn", "functional", "linalg", "special", "np", "math"})
_CLAMPS = ("clamp", "clip", "clamp_min")
# What these are called on is their operand only where nothing else is given: th.log(x) is a function, x.log() a method.
_OF_ONE = {"log", "log2", "log10", "log1p", "exp", "exp2", "expm1", "sqrt", "rsqrt", "reciprocal", "square", "abs"}
_OF_ONE |= {"acos", "asin", "acosh", "atanh", "sinh", "cosh", "tan", "erfinv", "lgamma", "digamma"}
_OF_TWO = {"div", "true_divide", "mul", "sub", "add", "pow", "float_power", "fmod", "remainder", "hypot", "xlogy"}


@dataclass(frozen=True, slots=True)
class Call:
    """The op as it stands in the user's line: the line, where the op is, where its operands are."""

    line: str
    span: tuple[int, int]
    spans: tuple[tuple[int, int], ...]  # of the operands, in the order of the code
    written: bool = False  # the first operand is written to, so nothing else can stand in its place

    @property
    def text(self) -> str:
        """The op's own text: "torch.log(p)"."""
        return self.line[slice(*self.span)]

    def operand(self, position: int) -> str | None:
        """The text of one operand: "p"."""
        return self.line[slice(*self.spans[position])] if position < len(self.spans) else None

    def with_operand(self, position: int, text: str) -> str:
        """The line with one operand written anew."""
        return self._with(self.spans[position], text)

    def with_operands(self, templates: dict[int, str]) -> str:
        """The line with several operands, each put into its template's {}."""
        line = self.line
        for position in sorted(templates, key=lambda at: self.spans[at], reverse=True):
            text = filled(templates[position], self.operand(position) or "")
            line = replace(self, line=line).with_operand(position, text)
        return line

    def with_call(self, text: str) -> str:
        """The line with the whole op written anew."""
        return self._with(self.span, text)

    def _with(self, span: tuple[int, int], text: str) -> str:
        before, after = self.line[: span[0]], self.line[span[1] :]
        return before + (text if _stands_alone(before, after) else atom(text)) + after


def call_of(origin: Origin) -> Call | None:
    """The origin's op in the line that called it, where exactly one place can be meant."""
    return call_at(origin.source, origin.op, origin.module) if origin.source is not None else None


def call_at(source: Source, op: str, module: str | None = None) -> Call | None:
    """An op in the line that called it; `module` is the path of the module that it ran in."""
    own = (module or "").rpartition(".")[2]
    if source.expression:
        found = _find(source.expression, op, own)
        if found is not None and source.code.count(source.expression) == 1:
            shift = source.code.index(source.expression)
            moved = tuple((start + shift, end + shift) for start, end in found.spans)
            return Call(source.code, (found.span[0] + shift, found.span[1] + shift), moved, found.written)
        if found is not None:
            return found
    return _find(source.code, op, own)


def operand_text(origin: Origin, position: int, otherwise: str) -> str:
    """What the user calls that operand."""
    call = call_of(origin)
    return (call.operand(position) if call is not None else None) or otherwise


def target(text: str, otherwise: str = "x") -> str:
    """The operand's text where it can be assigned to, else a name for it."""
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return otherwise
    return text if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)) else otherwise


def submodule(path: str) -> str:
    """A module of the model as code gets it: "blocks.0.norm" is model.blocks[0].norm."""
    parts = path.split(".") if path else []
    return "model" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)


def rewritten(origin: Origin, position: int, template: str, otherwise: str) -> str:
    """The user's line with an operand put into the template's {}; else the generic snippet."""
    call = call_of(origin)
    line = with_template(call, position, template) if call is not None else None
    return line if line is not None else otherwise


def with_template(call: Call, position: int, template: str) -> str | None:
    """The line with an operand put into the template's {}, or None where that makes no line."""
    text = call.operand(position)
    if text is None or position == 0 and call.written:
        return None
    line = call.with_operand(position, filled(template, text))
    return line if parsed(line) is not None or parsed(call.line) is None else None


def filled(template: str, text: str) -> str:
    """The template with the text in the place of each {}."""
    compound = any(mark in template for mark in ("{}.", "{}[", "{} ", " {}", "-{}"))
    return template.replace("{}", atom(text) if compound else text)


def atom(text: str) -> str:
    """The text, in parentheses where an attribute or an operator could not follow it otherwise."""
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return f"({text})"
    simple = isinstance(node, (ast.Name, ast.Attribute, ast.Call, ast.Subscript))
    return text if simple else f"({text})"


def unclamped(text: str) -> str:
    """What a clamp to plain numbers was put on (`cos.clamp(-1, 1)`): its bounds can be written anew."""
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        return text
    match node:
        case ast.Call(
            func=ast.Attribute(value=base, attr="clamp" | "clip" | "clamp_min"), args=args, keywords=keywords
        ):
            given = args[1:] if _is_library(base) and args else args
            bounds = [*given, *(keyword.value for keyword in keywords)]
            inner = args[0] if _is_library(base) and args else base
            return text[slice(*span_of(text, inner))] if all(_is_number(bound) for bound in bounds) else text
        case _:
            return text


def is_number(text: str | None) -> bool:
    """Whether an operand's text is a plain number."""
    try:
        return text is not None and _is_number(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError):
        return False


def _is_number(node: ast.expr) -> bool:
    inner = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(inner, ast.Constant) and isinstance(inner.value, (int, float))


def parsed(text: str) -> ast.Module | None:
    """The line as a tree; also the head of a compound statement."""
    for attempt in (text, f"{text} pass"):
        try:
            return ast.parse(attempt)
        except (SyntaxError, ValueError):
            continue
    return None


def span_of(text: str, node: ast.AST) -> tuple[int, int]:
    """Where a node stands in the one line that was parsed, in characters (the tree counts bytes)."""
    encoded = text.encode()
    start, end = getattr(node, "col_offset", 0), getattr(node, "end_col_offset", 0)
    return len(encoded[:start].decode()), len(encoded[:end].decode())


def _stands_alone(before: str, after: str) -> bool:
    """Whether what stands between needs no parentheses, whatever it is."""
    before, after = before.rstrip(), after.lstrip()
    opened = not before or before.endswith(("(", ",", "[")) or before == "return" or _assigns(before)
    return opened and (not after or after.startswith((")", ",", "]", "#")))


def _assigns(before: str) -> bool:
    return before.endswith("=") and not before.endswith(("==", "!=", "<=", ">="))


def _find(text: str, op: str, module: str) -> Call | None:
    tree = parsed(text)
    if tree is None or "\n" in text:
        return None
    nodes = [(node, operands) for node in ast.walk(tree) if (operands := _operands(node, op, module))]
    only = tree.body[0] if len(tree.body) == 1 else None
    root = only.value if isinstance(only, ast.Expr) else only if isinstance(only, ast.AugAssign) else None
    at_root = [pair for pair in nodes if pair[0] is root]
    chosen = at_root or nodes
    if len(chosen) != 1:
        return None
    node, operands = chosen[0]
    return Call(text, span_of(text, node), tuple(span_of(text, found) for found in operands), _writes(node, operands))


def _writes(node: ast.AST, operands: list[ast.expr]) -> bool:
    """Whether the op writes to its first operand: `x /= y`, `x.log_()`."""
    if isinstance(node, ast.AugAssign):
        return True
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(called, ast.Attribute) and called.attr.endswith("_") and called.value is operands[0]


def _operands(node: ast.AST, op: str, module: str) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and op == "reciprocal" and isinstance(node.op, ast.Div):
        return [node.right] if isinstance(node.left, ast.Constant) else []
    if isinstance(node, ast.BinOp) and op in _OPERATORS and isinstance(node.op, _OPERATORS[op]):
        return [node.left, node.right]
    if isinstance(node, ast.AugAssign) and op in _OPERATORS and isinstance(node.op, _OPERATORS[op]):
        return [node.target, node.value]
    if not isinstance(node, ast.Call):
        return []
    op = op.removeprefix("special_")
    names = _CALLED.get(op, (op,))
    given = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
    if op == "polygamma":  # torch.polygamma(n, x), x.polygamma(n)
        given = given[1:]
    given += [keyword.value for keyword in node.keywords if keyword.arg in ("input", "other", "exponent", "target")]
    match node.func:
        case ast.Name(id=name) if name.removesuffix("_") in names:
            return given
        case ast.Attribute(value=base, attr=name) if name.removesuffix("_") in names:
            return [base, *given] if _is_operand(base, op, name, given, module) else given
        case _:
            return []


def _is_operand(base: ast.expr, op: str, name: str, given: list[ast.expr], module: str) -> bool:
    """Whether a method is called on a tensor, rather than a function of a library or a submodule."""
    if _is_library(base) or isinstance(base, ast.Name) and base.id in ("self", "cls"):
        return False
    if op in _OF_ONE:
        return not given
    if op in _OF_TWO:
        return len(given) < 2
    return name != module  # self.block.softmax(x), which is the module "block.softmax"


def _is_library(node: ast.expr) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in _LIBRARIES
