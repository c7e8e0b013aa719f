"""The spot of an op in a line that can be edited, also where a module ran it or an augmented assignment did.

What is written at a spot is an edit in place: where that cannot be promised there is none.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..model import Frame, Op, Origin
from .edits import Edit, line_of
from .rewriting import Call, atom, call_of, filled, is_number, parsed

_SIGNS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "**",
    ast.MatMult: "@",
}


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
        if any(position >= len(self.call.spans) for position in templates):
            return None
        return self._edit(self.call.with_operands(templates))

    def with_result(self, template: str) -> Edit | None:
        """The line with the op's whole call put into the template's {}."""
        return self._edit(self.call.with_call(filled(template, self.call.text)))

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


def other_calls(spot: Spot) -> Iterator[ast.Call]:
    """The calls in the line that do not contain the op: what else an edit around the whole line would change."""
    tree = parsed(spot.call.line)
    start, end = spot.call.span
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Call) and not (node.col_offset <= start and end <= (node.end_col_offset or 0)):
            yield node


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
