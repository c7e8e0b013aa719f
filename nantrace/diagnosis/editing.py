"""Remedies as edits: a line of the user's program written anew, and what trying it would change.

An edit is complete: it runs in the place of the line, with the names that the line has. Where no such edit
can be made, a remedy shows a snippet to adapt.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from ..model import Change, Frame, Origin, Remedy, Snapshot, Source
from .reading import forward_op
from .rewriting import Call, call_of, filled, parsed, with_template

_INSTALLED = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True)
class Edit:
    """Code for a remedy; `replaces` is the line that it stands for, None for a snippet."""

    code: str
    replaces: Frame | None = None

    def remedy(self, text: str, change: Change | None = None) -> Remedy:
        """The remedy that says so."""
        return Remedy(text, self.code, change=change, replaces=self.replaces)


def change(snapshot: Snapshot, act: str, operand: str = "", *values: float, name: str = "") -> Change | None:
    """What trying a remedy changes at the origin's op (for a derivative at the forward op), where it was executed."""
    op = forward_op(snapshot)
    return Change(act, op.id, operand, values, name) if op is not None else None


def edit_operand(origin: Origin, position: int, template: str, otherwise: str) -> Edit:
    """The origin's line with an operand put into the template's {}; else the snippet.

    An operand that is needed more than once, and is more than a name, gets a line of its own before.
    """
    call = call_of(origin)
    if call is None or origin.source is None:
        return Edit(otherwise)
    text = call.operand(position)
    if text is not None and template.count("{}") > 1 and not is_plain(text):
        return _named_first(origin.source, call, position, template) or Edit(otherwise)
    line = with_template(call, position, template)
    return Edit(line, frame_of(origin.source, call)) if line is not None else Edit(otherwise)


def edit_call(origin: Origin, text: str, otherwise: str) -> Edit:
    """The origin's line with the whole op written anew; else the snippet."""
    call = call_of(origin)
    return edit_at(origin.source, call, text, otherwise) if origin.source is not None else Edit(otherwise)


def edit_at(source: Source, call: Call | None, text: str, otherwise: str) -> Edit:
    """A line with the whole op written anew; else the snippet."""
    if call is None or call.written:
        return Edit(otherwise)
    line = call.with_call(text)
    frame = frame_of(source, call) if parsed(line) is not None or parsed(call.line) is None else None
    return Edit(line, frame) if frame is not None else Edit(otherwise)


def frame_of(source: Source, call: Call) -> Frame | None:
    """The line that an edit of the call replaces: none where the call is only known apart from its line."""
    if call.line != source.code or not source.line or any(part in source.file for part in _INSTALLED):
        return None
    return Frame(source.file, source.line, source.function, source.code, source.expression)


def is_plain(text: str) -> bool:
    """Whether the text may stand twice: names, attributes, subscripts and arithmetic, nothing that is called."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return False
    called = (ast.Call, ast.Await, ast.Yield, ast.NamedExpr, ast.Lambda, ast.ListComp, ast.GeneratorExp)
    return len(text) <= 40 and not any(isinstance(node, called) for node in ast.walk(tree))


def keyword_edit(origin: Origin, keyword: str, value: str, otherwise: str) -> Edit:
    """The origin's line with a keyword argument of the call set to the value; else the snippet."""
    source = origin.source
    text = source.expression if source is not None else ""
    try:
        node = ast.parse(text, mode="eval").body if text else None
    except (SyntaxError, ValueError):
        node = None
    if source is None or not isinstance(node, ast.Call) or source.code.count(text) != 1 or not text.isascii():
        return Edit(otherwise)
    start = source.code.index(text)
    call = Call(source.code, (start, start + len(text)), ())
    given = next((found.value for found in node.keywords if found.arg == keyword), None)
    if given is not None:
        new = text[: given.col_offset] + value + text[given.end_col_offset :]
    elif any(found.arg is None for found in node.keywords):  # **options may hold it already
        return Edit(otherwise)
    else:
        inside = text[:-1].rstrip().rstrip(",")
        new = f"{inside}{'' if inside.endswith('(') else ', '}{keyword}={value})"
    return edit_at(source, call, new, otherwise)


def _named_first(source: Source, call: Call, position: int, template: str) -> Edit | None:
    """The operand given a name in a line of its own, and then the line with that name in the template."""
    text, frame = call.operand(position), frame_of(source, call)
    if text is None or frame is None or not _is_statement(source) or position == 0 and call.written:
        return None
    name = _new_name(source)
    line = call.with_operand(position, filled(template, name))
    return Edit(f"{name} = {text}\n{line}", frame) if parsed(line) is not None else None


def _is_statement(source: Source) -> bool:
    """Whether the line is one whole simple statement, in which an operand can be computed a line earlier."""
    tree = parsed(source.code)
    if tree is None or len(tree.body) != 1 or source.code.rstrip().endswith(":"):
        return False
    inner = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.IfExp, ast.BoolOp)
    if any(isinstance(node, inner) for node in ast.walk(tree)):
        return False
    statement = tree.body[0]
    if isinstance(statement, (ast.Return, ast.AugAssign)):
        return True
    before = dict(source.context).get(source.line - 1, "").partition("#")[0].rstrip()
    return isinstance(statement, ast.Assign) and not before.endswith(("(", "[", "{", ",", "\\"))


def _new_name(source: Source) -> str:
    taken = set(re.findall(r"\w+", " ".join([source.code, *(text for _, text in source.context)])))
    return next(name for name in (f"operand{'_' * i}" for i in range(len(taken) + 1)) if name not in taken)
