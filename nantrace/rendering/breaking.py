"""Breaks a long line of code where Python lets it go on in the next: at a space inside brackets, outside strings."""

from __future__ import annotations

import tokenize
from io import StringIO

from .harmless import cells

_INDENT = "    "


def broken(code: str, width: int) -> list[str]:
    """The code in lines of at most `width` columns that mean the same; lines that cannot be broken stay long."""
    lines: list[str] = []
    indent = code[: len(code) - len(code.lstrip())] + _INDENT
    for end in reversed(_ends(code, width, len(indent))):
        lines.insert(0, code[end:])
        code = code[:end].rstrip()
    return [code, *(indent + line for line in lines)]


def _ends(code: str, width: int, indent: int) -> list[int]:
    """Where the lines after the first begin."""
    chosen: list[int] = []
    start, room = 0, width
    breaks = _breaks(code) if cells(code) > width else []
    while cells(code[start:]) > room:
        fitting = [at for at in breaks if at > start and cells(code[start:at].rstrip()) <= room]
        if not fitting:
            break
        commas = [at for at in fitting if code[:at].rstrip().endswith(",") and cells(code[start:at]) > room // 2]
        start, room = (commas or fitting)[-1], width - indent
        chosen.append(start)
    return chosen


def _breaks(code: str) -> list[int]:
    """The places inside brackets that follow a space between two tokens."""
    depth, found, before = 0, [], (0, 0)
    try:
        for token in tokenize.generate_tokens(StringIO(code).readline):
            if depth and token.start[0] == 1 and before[1] < token.start[1] and token.type != tokenize.COMMENT:
                found.append(token.start[1])
            if token.type == tokenize.OP:
                depth += (token.string in "([{") - (token.string in ")]}")
            before = token.end
    except (tokenize.TokenError, SyntaxError, IndentationError):
        pass  # the head of a block, or a part of a statement: what was found until there holds
    return found
