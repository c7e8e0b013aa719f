"""Where in the program something happened."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a Python stack, without holding the frame."""

    file: str
    line: int
    function: str
    code: str = ""  # the text of the line, stripped
    expression: str = ""  # the exact sub-expression that was running (Python 3.11+), else ""


@dataclass(frozen=True, slots=True)
class Source:
    """The line of the user's program that called an op."""

    file: str
    line: int
    function: str
    code: str = ""
    expression: str = ""
    stack: tuple[Frame, ...] = ()  # outermost first; frames of torch and nantrace left out
    context: tuple[tuple[int, str], ...] = ()  # (line number, text) around the line, saved with it
