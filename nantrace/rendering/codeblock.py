"""The line of code, the expression in it, and what its operands held at the failing element."""

from __future__ import annotations

from dataclasses import replace

from ..model import Example, OperandValue, Origin, Snapshot, Source, TensorSummary
from . import numbers
from .harmless import harmless, shorten
from .limits import ROOMY, Limits
from .spelling import operand_names, role, source_name
from .story import CodeBlock, CodeLine, OperandLine, Operands
from .words import is_bad, name, place

_NAME = 44


def code_block(source: Source | None, limits: Limits = ROOMY) -> CodeBlock | None:
    """The line that called the op with one line before and after, where they were saved."""
    if source is None or not (source.file or source.code):
        return None
    function = name(source.function) if source.function else ""
    where = f"{place(source)} in {function}" if function and function != "<module>" else place(source)
    around = {line: text for line, text in source.context if abs(line - source.line) <= limits.context and text.strip()}
    current = around.get(source.line, source.code)
    if not current.strip():
        return CodeBlock(where)
    around[source.line] = current
    indent = min(len(text) - len(text.lstrip()) for text in around.values() if text.strip())
    lines = []
    for line, text in sorted(around.items()):
        shown = harmless(text[indent:].rstrip())
        here = line == source.line
        lines.append(CodeLine(line, shown, _marks(shown, source.expression) if here else (), here))
    return CodeBlock(where, tuple(lines))


def operand_lines(snapshot: Snapshot, limits: Limits = ROOMY) -> Operands | None:
    """The operands and the result at the failing element."""
    if snapshot.index is not None:
        return _index_lines(snapshot)
    lines: list[OperandLine] = []
    source = snapshot.source_value
    if source is not None:
        spelled = f"{name(source_name(snapshot), _NAME)}{numbers.element(source.index)}"
        facts = _facts(replace(source.summary, label=""))  # its name says it already
        lines.append(OperandLine(spelled, numbers.number(source.value), facts, "bad"))
    elif snapshot.origin is not None:
        lines += _origin_lines(snapshot, snapshot.origin, limits.operands)
    return Operands(tuple(lines)) if lines else None


def _origin_lines(snapshot: Snapshot, origin: Origin, most: int) -> list[OperandLine]:
    expression = origin.source.expression if origin.source is not None else ""
    spelled = operand_names(expression, origin.op)
    summaries = {summary.name: summary for summary in origin.inputs}
    lines = []
    example = origin.example
    for operand in example.operands if example is not None else ():
        lines.append(_operand(operand, spelled, summaries.pop(operand.name, None)))
    for summary in summaries.values():
        shown = _spelled(summary.name, spelled)
        lines.append(OperandLine(shown, "", _facts(summary)))
    lines = list(dict.fromkeys(lines))  # x * x has one operand
    if len(lines) > most:
        # The first operand and the last ones: a derivative's own operands come after the forward op's.
        left = OperandLine("...", "", f"{numbers.counted(len(lines) - most, 'more operand')}", "dim")
        lines = [lines[0], left, *lines[len(lines) - most + 1 :]]
    result = _result(snapshot, origin, example)
    return [*lines, result] if result is not None else lines


def _operand(operand: OperandValue, spelled: dict[str, str], whole: TensorSummary | None) -> OperandLine:
    shown = _spelled(operand.name, spelled)
    facts = _facts(whole) if whole is not None else ""
    match operand.kind:
        case "element":
            shown += numbers.element(operand.index)
            value = numbers.values(operand.values, operand.summary)
        case "index":
            shown += numbers.element(operand.index)
            value = ", ".join(str(int(item)) if item == item else "nan" for item in operand.values[:3])
        case "slice":
            value = numbers.values(operand.values, operand.summary)
        case kind:  # row, column, read, state
            shown += f" {harmless(kind)}"
            value = numbers.values(operand.values, operand.summary)
    return OperandLine(shown, value, facts, "bad" if any(map(is_bad, operand.values)) else "body")


def _result(snapshot: Snapshot, origin: Origin, example: Example | None) -> OperandLine | None:
    """What came out: the op's result, or the gradient where the derivative made the value."""
    outputs = origin.outputs
    if origin.derivative:
        # The origin's outputs are those of the forward op; the gradient is what the backward op made.
        outputs = next((op.outputs for op in snapshot.ops if op.id == origin.id), ())
    output = next((output for output in outputs if output.nonfinite), None)
    if output is None and example is None:
        return None
    facts = _facts(output) if output is not None else ""
    spelled = "gradient" if origin.derivative else "result"
    if example is None:
        return OperandLine(spelled, "", facts, "bad")
    return OperandLine(f"{spelled}{numbers.element(example.index)}", numbers.number(example.value), facts, "bad")


def _index_lines(snapshot: Snapshot) -> Operands:
    facts = snapshot.index
    assert facts is not None
    allowed = f"allowed: {facts.low} .. {facts.high - 1}"
    many = f", {numbers.counted(facts.count, 'value')} out of range" if facts.count > 1 else ""
    spelled = f"{name(role(facts.operand), _NAME)}{numbers.element(facts.position)}"
    lines = [OperandLine(spelled, str(facts.value), allowed + many, "bad")]
    if facts.table_shape:
        rows = f"[{', '.join(map(str, facts.table_shape))}]"
        lines.append(OperandLine("table", "", f"{rows}, {numbers.counted(facts.table_shape[0], 'row')}"))
    return Operands(tuple(lines))


def _facts(summary: TensorSummary) -> str:
    parts = [numbers.shape(summary), numbers.finite_facts(summary) if summary.numel != 1 else ""]
    if summary.nonfinite and summary.numel != 1:
        parts.append(f"{numbers.nonfinite(summary)} of {numbers.grouped(summary.numel)}")
    if summary.label:
        parts.append(name(summary.label, _NAME))
    return ", ".join(part for part in parts if part)


def _spelled(operand: str, spelled: dict[str, str]) -> str:
    return shorten(harmless(spelled.get(operand, role(operand))), _NAME)


def _marks(line: str, expression: str) -> tuple[tuple[int, int], ...]:
    """Where the expression stands in the line: every place of it, since its column is not recorded."""
    wanted = harmless(expression.splitlines()[0].strip()) if expression.strip() else ""
    if not wanted:
        return ()
    found, start = [], line.find(wanted)
    while start >= 0:
        found.append((start, start + len(wanted)))
        start = line.find(wanted, start + len(wanted))
    return tuple(found)
