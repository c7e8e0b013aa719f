"""Python frames, captured in a microsecond and read later.

A live stack is kept as (code object, instruction offset) pairs, which hold no frame and no local
variable. Turning them into lines, and on Python 3.11+ into the exact sub-expression, happens only in a report.
"""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from functools import lru_cache
from itertools import islice
from types import CodeType, FrameType, FunctionType

import torch

from ..model import Frame, Source

RawStack = tuple[tuple[CodeType, int], ...]  # innermost first

_LIMIT = 80
_PROTOCOLS = ("__torch_function__", "__torch_dispatch__")  # of a tensor subclass: whoever called the op is meant
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_NANTRACE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARY_PARTS = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_STANDARD = tuple(
    os.path.abspath(path) + os.sep for key in ("stdlib", "platstdlib") if (path := sysconfig.get_path(key))
)


def raw_stack(frame: FrameType | None) -> RawStack:
    """The stack from this frame outward, innermost first."""
    found: list[tuple[CodeType, int]] = []
    while frame is not None and len(found) < _LIMIT:
        found.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(found)


def raw_stack_here(skip: int = 1) -> RawStack:
    """The stack of the caller's caller (`skip` frames up), innermost first; the outermost frame where it ends below."""
    try:
        return raw_stack(sys._getframe(skip + 1))
    except ValueError:  # called from the top of a script: there are fewer frames
        return raw_stack(sys._getframe(1))[-1:]


def is_torch(code: CodeType) -> bool:
    """Whether the code belongs to torch itself or to nantrace, or is a method that torch sends every op through."""
    return is_torch_file(code.co_filename) or code.co_name in _PROTOCOLS


def is_torch_file(file: str) -> bool:
    """Whether a file belongs to torch itself, or to nantrace."""
    return file.startswith((_TORCH, _NANTRACE))


def is_library(code: CodeType) -> bool:
    """Whether the code belongs to an installed package or the standard library."""
    return is_library_file(code.co_filename)


def is_library_file(file: str) -> bool:
    """Whether a file belongs to an installed package or the standard library."""
    if any(part in file for part in _LIBRARY_PARTS):
        return True
    return file.startswith(_STANDARD) or file.startswith("<frozen")


def innermost_outside_torch(stack: RawStack) -> int | None:
    """The position of the innermost frame outside torch, or None."""
    start = _behind_stand_ins(stack)
    return next((start + i for i, (code, _) in enumerate(stack[start:]) if not is_torch(code)), None)


def innermost_user(stack: RawStack) -> int | None:
    """The position of the innermost frame of the user's own code (no installed package), or None."""
    return next((i for i, (code, _) in enumerate(stack) if not is_torch(code) and not is_library(code)), None)


def _behind_stand_ins(stack: RawStack) -> int:
    """The position of the first frame that called what goes by the name of a torch function."""
    stand_ins = _stand_ins(len(sys.modules))
    start = 0
    for i, (code, _) in enumerate(stack if stand_ins else ()):
        if code in stand_ins:
            start = i + 1
        elif not is_torch(code) and not is_library(code):
            break
    return start


@lru_cache(maxsize=1)
def _stand_ins(imported: int) -> frozenset[CodeType]:
    """The code of functions that installed packages have put in the place of torch's own, read again after an import.

    torch_geometric replaces `torch.index_select`, more than once: who calls it is still the caller's line. A decorator
    that keeps torch's name on the function is left out: the same wrapper stands around other packages' functions.
    """
    return frozenset(
        value.__code__
        for home in (torch, torch.Tensor, torch.nn.functional)
        for value in vars(home).values()
        if isinstance(value, FunctionType)
        and any(part in value.__code__.co_filename for part in _LIBRARY_PARTS)
        and not is_torch(value.__code__)
        and value.__module__.partition(".")[0] not in ("torch", "typing_extensions")
    )


def line_at(stack: RawStack, position: int) -> Source:
    """The line of one frame alone: without the stack that led to it, and without the lines around it."""
    frame = _read(*stack[position])
    return Source(frame.file, frame.line, frame.function, frame.code, frame.expression)


def source_at(stack: RawStack, position: int) -> Source:
    """The source of one frame, with the stack that led to it (frames of torch left out)."""
    frame = _read(*stack[position])
    outward = [_read(code, offset) for code, offset in stack[position:] if not is_torch(code)]
    return Source(
        frame.file,
        frame.line,
        frame.function,
        frame.code,
        frame.expression,
        tuple(reversed(outward)),
        _context(frame.file, frame.line),
    )


def _read(code: CodeType, offset: int) -> Frame:
    line, expression = code.co_firstlineno, ""
    if hasattr(code, "co_positions"):
        start, end, left, right = _positions(code, offset)
        line = start or line
        expression = _expression(code.co_filename, start, end, left, right)
    else:
        line = _line_of(code, offset)
    return Frame(code.co_filename, line, code.co_name, linecache.getline(code.co_filename, line).strip(), expression)


def _positions(code: CodeType, offset: int) -> tuple[int | None, int | None, int | None, int | None]:
    return next(islice(code.co_positions(), offset // 2, None), (None, None, None, None))


def _line_of(code: CodeType, offset: int) -> int:
    line = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= offset < end and number is not None:
            line = number
    return line


def _expression(file: str, start: int | None, end: int | None, left: int | None, right: int | None) -> str:
    if start is None or end is None or left is None or right is None or end - start > 12:
        return ""
    lines = [linecache.getline(file, number).rstrip("\n") for number in range(start, end + 1)]
    if not all(lines[:1]):
        return ""
    encoded = [line.encode() for line in lines]  # columns are counted in UTF-8 bytes
    encoded[-1] = encoded[-1][:right]
    encoded[0] = encoded[0][left:]
    return " ".join(part.decode(errors="replace").strip() for part in encoded)


def source_of_lines(stack: list[Frame], position: int) -> Source:
    """The source of one frame of a stack that was kept as text, innermost first."""
    frame = stack[position]
    outward = tuple(one for one in reversed(stack[position:]) if not is_torch_file(one.file))
    context = _context(frame.file, frame.line)
    return Source(frame.file, frame.line, frame.function, frame.code, frame.expression, outward, context)


def _context(file: str, line: int) -> tuple[tuple[int, str], ...]:
    numbers = range(max(1, line - 3), line + 4)
    return tuple((n, text.rstrip("\n")) for n in numbers if (text := linecache.getline(file, n)))
