"""Remedies as edits in place: a line of the user's own program written anew, with the line that it replaces.

An edit is complete Python that runs where the old line stood. Where that cannot be promised there is none.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..model import Frame, Op, Origin, Source
from .rewriting import Call, atom, call_of

_INSTALLED = ("site-packages", "dist-packages")
_NUMBER = re.compile(r"-?[\d.]+(e[-+]?\d+)?", re.IGNORECASE)
_SIGNS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
    ast.MatMult: "@",
}


@dataclass(frozen=True, slots=True)
class Edit:
    """A line written anew (or several in its place), and the line that it replaces."""

    code: str
    replaces: Frame


@dataclass(frozen=True, slots=True)
class Spot:
    """One op in a line that can be edited: where its call and its operands stand."""

    call: Call
    frame: Frame

    def operand(self, position: int) -> str | None:
        """The text of one operand."""
        return self.call.operand(position)

    def with_operand(self, position: int, template: str) -> Edit | None:
        """The line with one operand put into the template's {}."""
        return self.with_operands({position: template})

    def with_operands(self, templates: dict[int, str]) -> Edit | None:
        """The line with several operands, each put into its template's {}."""
        line = self.call.line
        if any(position >= len(self.call.spans) for position in templates):
            return None
        for position in sorted(templates, key=lambda at: self.call.spans[at], reverse=True):
            start, end = self.call.spans[position]
            line = line[:start] + _filled(templates[position], line[start:end], line[:start], line[end:]) + line[end:]
        return self._edit(line)

    def with_result(self, template: str) -> Edit | None:
        """The line with the op's whole call put into the template's {}."""
        start, end = self.call.span
        line = self.call.line
        return self._edit(line[:start] + _filled(template, line[start:end], line[:start], line[end:]) + line[end:])

    def with_call(self, text: str) -> Edit | None:
        """The line with the op's whole call written anew."""
        return self.with_result(text)

    def _edit(self, line: str) -> Edit | None:
        return Edit(line, self.frame) if parsed(line) is not None and line != self.frame.code else None


def spot_of(origin: Origin | None) -> Spot | None:
    """The origin's op in the user's line: called by its name or by an operator, or as a module."""
    if origin is None:
        return None
    frame = line_of(origin.source)
    if frame is None:
        return None
    call = call_of(origin)
    if call is None or call.line != frame.code:
        call = _module_call(origin, frame.code)
    if call is None:
        return None
    plain = _assigned(call, origin)
    return Spot(plain, frame) if plain is not None else None


def spot_of_op(op: Op | None) -> Spot | None:
    """Another executed op in the user's line."""
    if op is None or op.source is None:
        return None
    return spot_of(Origin(op.name, op.module, op.module_type, source=op.source, inputs=op.inputs))


def line_of(source: Source | None) -> Frame | None:
    """The user's line as an edit replaces it; None where it is a library's, or no whole statement by itself."""
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


def parsed(line: str) -> ast.Module | None:
    """The line as a tree, where it is a statement by itself or the head of a block."""
    for text in (line, f"{line} pass"):
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError):
            continue
    return None


def is_number(text: str | None) -> bool:
    """Whether the operand's text is a plain number."""
    return text is not None and _NUMBER.fullmatch(text.strip("() ")) is not None


def other_calls(spot: Spot) -> Iterator[ast.Call]:
    """The calls in the line that do not contain the op: what else an edit around the whole line would change."""
    tree = parsed(spot.call.line)
    start, end = spot.call.span
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Call) and not (node.col_offset <= start and end <= (node.end_col_offset or 0)):
            yield node


def number_replaced(spot_line: Frame, span: tuple[int, int], old: float, new: str) -> Edit | None:
    """The line with the one number `old` inside the span written as `new`."""
    tree = parsed(spot_line.code)
    found = [
        node
        for node in (ast.walk(tree) if tree is not None else ())
        if isinstance(node, ast.Constant)
        and isinstance(node.value, (int, float))
        and not isinstance(node.value, bool)
        and float(node.value) == old
        and span[0] <= node.col_offset
        and (node.end_col_offset or 0) <= span[1]
    ]
    if len(found) != 1:
        return None
    line = spot_line.code
    return Edit(line[: found[0].col_offset] + new + line[found[0].end_col_offset :], spot_line)


def _filled(template: str, text: str, before: str, after: str) -> str:
    tight = any(part in template for part in ("{}.", "{}[", "{} ", " {}"))
    new = template.replace("{}", atom(text) if tight else text)
    alone = before.rstrip().endswith(("(", ",", "=", "[", "return")) and (
        not after.strip() or after.lstrip().startswith((")", ",", "]", "#"))
    )
    return new if alone or atom(new) == new else f"({new})"


def _assigned(call: Call, origin: Origin) -> Call | None:
    """An augmented assignment as the plain one that it stands for; any other line as it is."""
    tree = parsed(call.line)
    only = tree.body[0] if tree is not None and len(tree.body) == 1 else None
    if not isinstance(only, ast.AugAssign) or call.span != (only.col_offset, only.end_col_offset):
        return call
    sign = _SIGNS.get(type(only.op))
    if sign is None:
        return None
    target, value = call.operand(0), call.operand(1) or ""
    value = value if is_number(value) else atom(value)
    line = f"{target} = {target} {sign} {value}"
    start = len(f"{target} = ")
    spans = ((start, start + len(target or "")), (len(line) - len(value), len(line)))
    return replace(call, line=line, span=(start, len(line)), spans=spans)


def _module_call(origin: Origin, line: str) -> Call | None:
    """The call of the module that ran the op: `self.down(h)` for an op of the module "block.down"."""
    tree = parsed(line)
    path = (origin.module or "").split(".")
    found = [node for node in (ast.walk(tree) if tree is not None else ()) if _calls(node, path)]
    if len(found) != 1 or not isinstance(found[0], ast.Call):
        return None
    node = found[0]
    spans = tuple((one.col_offset, one.end_col_offset or 0) for one in node.args if not isinstance(one, ast.Starred))
    return Call(line, (node.col_offset, node.end_col_offset or 0), spans) if spans else None


def _calls(node: ast.AST, path: list[str]) -> bool:
    if not isinstance(node, ast.Call):
        return False
    match node.func:
        case ast.Attribute(attr=name):
            return name == path[-1]
        case ast.Subscript(value=ast.Attribute(attr=name)):
            return len(path) > 1 and name == path[-2] and path[-1].isdigit()
        case _:
            return False


def with_keyword(frame: Frame | None, called: str, name: str, value: str) -> Edit | None:
    """The line with a keyword argument of the one call of that name given another value, or given at all."""
    tree = parsed(frame.code) if frame is not None else None
    calls = [
        node
        for node in (ast.walk(tree) if tree is not None else ())
        if isinstance(node, ast.Call) and _name_of(node.func) == called
    ]
    if frame is None or len(calls) != 1:
        return None
    call, line = calls[0], frame.code
    given = next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
    if given is not None:
        return Edit(line[: given.col_offset] + value + line[given.end_col_offset :], frame)
    end = (call.end_col_offset or 0) - 1
    if line[end : end + 1] != ")" or any(keyword.arg is None for keyword in call.keywords):
        return None  # **settings may hold it
    comma = ", " if (call.args or call.keywords) and not line[:end].rstrip().endswith(",") else ""
    return Edit(f"{line[:end]}{comma}{name}={value}{line[end:]}", frame)


def before(source: Source | None, method: str, template: str) -> Edit | None:
    """Lines put before a line that is nothing but a call of that method; {} is what it is called on."""
    frame = line_of(source)
    found = re.fullmatch(rf"([A-Za-z_][\w.]*)\.{method}\(\)", frame.code) if frame is not None else None
    if frame is None or found is None:
        return None
    return Edit(f"{template.replace('{}', found[1])}\n{frame.code}", frame)


def _name_of(function: ast.expr) -> str:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""
