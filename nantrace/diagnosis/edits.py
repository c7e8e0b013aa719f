"""Remedies as edits: a line of the user's program written anew, and what trying it would change.

An edit is complete: it runs in the place of the line, with the names that the line has. Where no such edit
can be made, a remedy shows a snippet to adapt.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..model import Change, Frame, Op, Origin, Remedy, Snapshot, Source
from .reading import PLUMBING, forward_op
from .rewriting import Call, atom, call_at, call_of, filled, parsed, span_of, unclamped, with_template

_INSTALLED = ("site-packages", "dist-packages")
# Methods without an effect, so that they may be called twice.
_LOOKING = PLUMBING | {
    "abs",
    "sum",
    "long",
    "float",
    "double",
    "bool",
    "int",
    "detach",
    "size",
    "dim",
    "numel",
    "argmax",
}


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
    times = template.count("{}") if text is not None else 0
    if text is not None and (times > 1 and not is_plain(text) or times > 2 and atom(text) != text):
        first = _named_first(origin.source, call, position, template)
        if first is not None or not is_plain(text):
            return first or Edit(otherwise)
    line = with_template(call, position, template)
    return Edit(line, frame_of(origin.source, call)) if line is not None else Edit(otherwise)


def edit_bound(origin: Origin, position: int, bound: str, otherwise: str) -> Edit:
    """The origin's line with an operand clamped ("clamp_min(1e-8)"), in place of a clamp that it has already."""
    call = call_of(origin)
    text = call.operand(position) if call is not None else None
    inner = unclamped(text) if text is not None else text
    if call is None or text is None or inner is None or inner == text or origin.source is None or call.written:
        return edit_operand(origin, position, "{}." + bound, otherwise)
    line = call.with_operand(position, f"{atom(inner)}.{bound}")
    return Edit(line, frame_of(origin.source, call))


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


def line_of(source: Source | None) -> Frame | None:
    """The user's line as an edit of it replaces it; None where it is a library's, or no whole statement by itself."""
    if source is None or not source.code or parsed(source.code) is None:
        return None
    if any(part in source.file for part in _INSTALLED) or not source.code.isascii():
        return None
    return Frame(source.file, source.line, source.function, source.code)


def lines_of(source: Source | None) -> Iterator[Frame]:
    """The line and those that led to it, innermost first, where they can be edited."""
    for frame in reversed(source.stack if source is not None else ()):
        found = line_of(Source(frame.file, frame.line, frame.function, frame.code))
        if found is not None:
            yield found


def is_plain(text: str) -> bool:
    """Whether the text may stand twice: names, attributes, subscripts, arithmetic, and methods that only look."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return False
    refused = (ast.Await, ast.Yield, ast.NamedExpr, ast.Lambda, ast.ListComp, ast.GeneratorExp, ast.DictComp)
    nodes = list(ast.walk(tree))
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    looks = all(isinstance(called, ast.Attribute) and called.attr in _LOOKING for called in calls)
    return len(text) <= 40 and looks and not any(isinstance(node, refused) for node in nodes)


def guarded(origin: Origin, call: Call | None, position: int, template: str, otherwise: str) -> Edit:
    """The origin's line with the call put into the template's {call}, one of its operands into each {x}.

    An operand that is more than a name gets a line of its own before.
    """
    text = call.operand(position) if call is not None else None
    source = origin.source
    if source is None or call is None or text is None:
        return Edit(otherwise)
    start, end = (edge - call.span[0] for edge in call.spans[position])
    name, first = text, ""
    if not is_plain(text):
        if not is_statement(source):
            return Edit(otherwise)
        name = _new_name(source)
        first = f"{name} = {text}\n"
    inner = call.text[:start] + name + call.text[end:]
    edit = edit_at(source, call, template.replace("{call}", inner).replace("{x}", atom(name)), otherwise)
    return Edit(first + edit.code, edit.replaces) if edit.replaces is not None else edit


def called_with(origin: Origin) -> Call | None:
    """The call that is the origin's expression, whatever is called (`criterion(logits, labels)`): its arguments."""
    source = origin.source
    tree = parsed(source.expression) if source is not None and source.expression else None
    if source is None or tree is None or source.code.count(source.expression) != 1:
        return None
    node = tree.body[0].value if len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr) else None
    if not isinstance(node, ast.Call):
        return None
    shift = source.code.index(source.expression)
    given = [*node.args, *(one.value for one in node.keywords if one.arg in ("input", "target"))]
    spans = [span_of(source.expression, one) for one in given]
    whole = (shift, shift + len(source.expression))
    return Call(source.code, whole, tuple((start + shift, end + shift) for start, end in spans))


def edit_result(op: Op, method: str) -> Edit | None:
    """The line that ran an op, with a method called on the op's result: `p = act(x)` as `p = act(x).clamp_min(0)`."""
    source = op.source
    text = source.expression if source is not None else ""
    if source is None or not text or source.code.count(text) != 1 or not _gives_result(op, text):
        return None
    start = source.code.index(text)
    call = Call(source.code, (start, start + len(text)), ())
    edit = edit_at(source, call, f"{atom(text)}.{method}", "")
    return edit if edit.replaces is not None else None


def _gives_result(op: Op, text: str) -> bool:
    """Whether the value of the expression is the op's result: it names the op, or the module that ran it."""
    if op.source is not None and (call := call_at(op.source, op.name, op.module)) is not None and call.text == text:
        return True
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        return False
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(called, ast.Attribute) and called.attr in (op.module or "").split(".")


def _named_first(source: Source, call: Call, position: int, template: str) -> Edit | None:
    """The operand given a name in a line of its own, and then the line with that name in the template."""
    text, frame = call.operand(position), frame_of(source, call)
    if text is None or frame is None or not is_statement(source) or position == 0 and call.written:
        return None
    name = _new_name(source)
    line = call.with_operand(position, filled(template, name))
    return Edit(f"{name} = {text}\n{line}", frame) if parsed(line) is not None else None


def is_statement(source: Source) -> bool:
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
