"""Settings in the user's line: the keyword arguments of a call, the numbers that are written out."""

from __future__ import annotations

import ast

from ..model import Change, Frame, Origin, Remedy, Snapshot
from .edits import Edit, edit_at
from .numbers import number
from .reading import dtype_of, forward_op, upstream
from .rewriting import Call, parsed, span_of


def keyword_edit(origin: Origin, keyword: str, value: str, otherwise: str) -> Edit:
    """The origin's line with a keyword argument of the call set to the value; else the snippet."""
    source = origin.source
    text = source.expression if source is not None else ""
    tree = parsed(text)
    node = tree.body[0].value if tree is not None and tree.body and isinstance(tree.body[0], ast.Expr) else None
    new = _with_keyword(text, node, keyword, value) if isinstance(node, ast.Call) else None
    if source is None or source.code.count(text) != 1 or new is None:
        return Edit(otherwise)
    start = source.code.index(text)
    return edit_at(source, Call(source.code, (start, start + len(text)), ()), new, otherwise)


def with_keyword(frame: Frame | None, called: str, name: str, value: str) -> Edit | None:
    """The line with a keyword argument of the one call of that name given another value, or given at all."""
    tree = parsed(frame.code) if frame is not None else None
    calls = [
        node
        for node in (ast.walk(tree) if tree is not None else ())
        if isinstance(node, ast.Call) and _name_of(node.func) == called
    ]
    line = _with_keyword(frame.code, calls[0], name, value) if frame is not None and len(calls) == 1 else None
    return Edit(line, frame) if line is not None else None


def number_replaced(frame: Frame, span: tuple[int, int], old: float, new: str) -> Edit | None:
    """The line with the one number `old` inside the span written as `new`."""
    tree = parsed(frame.code)
    numbers = [
        span_of(frame.code, node)
        for node in (ast.walk(tree) if tree is not None else ())
        if isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value == old
    ]
    found = [(start, end) for start, end in numbers if span[0] <= start and end <= span[1]]
    if len(found) != 1:
        return None
    start, end = found[0]
    return Edit(frame.code[:start] + new + frame.code[end:], frame)


def eps_of_call(snapshot: Snapshot, origin: Origin) -> Remedy | None:
    """The eps of F.normalize, F.cosine_similarity, F.poisson_nll_loss and their kin, where the line gives one."""
    source = origin.source
    tree = parsed(source.expression) if source is not None and source.expression else None
    only = tree.body[0] if tree is not None and len(tree.body) == 1 else None
    node = only.value if isinstance(only, ast.Expr) else None
    given = [keyword.value for keyword in node.keywords if keyword.arg == "eps"] if isinstance(node, ast.Call) else []
    if not given:
        return None
    dtype = dtype_of(origin)
    eps = "1e-3" if dtype == "float16" else "1e-6"
    told = f"The eps of the call is 0, or too small for {dtype}: give it one above 0, such as {eps}."
    edit = keyword_edit(origin, "eps", eps, f"eps={eps}")
    old = given[0].value if isinstance(given[0], ast.Constant) else None
    return edit.remedy(told, _argument_above(snapshot, origin, old, float(eps)))


def _argument_above(snapshot: Snapshot, origin: Origin, old: object, new: float) -> Change | None:
    """The argument that an eps of the call became: of an op that the same call ran before (a clamp, an addition)."""
    start = forward_op(snapshot)
    if start is None or origin.source is None:
        return None
    lines = [op for op in upstream(snapshot, start.id, set(range(len(start.inputs))), depth=3) if op.source is not None]
    for op in lines:
        if op.source is not None and op.source.line == origin.source.line and op.source.file == origin.source.file:
            for name, value in op.arguments.items():
                if number(value) is not None and number(value) == number(old):
                    return Change("argument", op.id, name, (new,))
    return None


def _with_keyword(text: str, call: ast.Call, name: str, value: str) -> str | None:
    """The text with a keyword argument of the call set; None where **settings may hold it already."""
    given = next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
    if given is not None:
        start, end = span_of(text, given)
        return text[:start] + value + text[end:]
    end = span_of(text, call)[1] - 1
    if text[end : end + 1] != ")" or any(keyword.arg is None for keyword in call.keywords):
        return None
    inside = text[:end].rstrip().rstrip(",")
    return f"{inside}{'' if inside.endswith('(') else ', '}{name}={value}{text[end:]}"


def _name_of(function: ast.expr) -> str:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""
