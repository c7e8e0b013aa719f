"""Draws DOT as SVG, PNG or PDF with whatever engine this machine has, always in a child process.

Layout of a dense graph can run for minutes in every engine, so the child has a time limit. Drawing
never raises: what could not be drawn is written as .dot, and one warning says what to do.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from ..errors import RenderError

FORMATS = ("svg", "png", "pdf")
TIME_LIMIT_S = 15.0

_PYGRAPHVIZ = """
import sys
import pygraphviz
graph = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode("utf-8"))
sys.stdout.buffer.write(graph.draw(path=None, format=sys.argv[1], prog="dot"))
"""


def draw(dot_source: str, path: str | Path, *, coarser: Callable[[], str] | None = None) -> str:
    """Draw the DOT text to `path` and return the path that was written.

    `coarser` gives a smaller graph, tried when the layout takes too long. Where nothing can draw,
    the DOT text is written beside it, with the suffix .dot.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise RenderError(f"cannot draw {path}: the suffix is {path.suffix!r}, pictures are .svg, .png or .pdf")
    drawn, problem = _first_drawn(dot_source, kind, coarser)
    if drawn is not None:
        write(path, drawn)
        return str(path)
    beside = path.with_suffix(".dot")
    write(beside, dot_source.encode("utf-8"))
    # The caller of Report.render is five calls up.
    warnings.warn(f"{path.name} could not be drawn, so {beside} was written instead: {problem}", stacklevel=5)
    return str(beside)


def drawn_svg(dot_source: str, *, coarser: Callable[[], str] | None = None) -> str | None:
    """The picture as SVG text, or None where nothing here can draw it."""
    drawn, _ = _first_drawn(dot_source, "svg", coarser)
    return drawn.decode("utf-8", "replace") if drawn is not None else None


def write(path: Path, content: bytes) -> None:
    """Write a file; a folder or file that cannot be written raises `RenderError` with its path."""
    try:
        path.write_bytes(content)
    except OSError as error:
        reason = error.strerror or error
        if not path.parent.is_dir():
            reason = f"the folder {path.parent} does not exist"
        raise RenderError(f"cannot write {path}: {reason}") from error


def _first_drawn(source: str, kind: str, coarser: Callable[[], str] | None) -> tuple[bytes | None, str]:
    """The first engine's picture; else the reason why there is none."""
    problem = "no Graphviz was found; install it from your system's packages, or `pip install nantrace[graph]`"
    for command in _engines(kind):
        drawn, problem = _run(command, source)
        if drawn is None and problem == _TOO_SLOW and coarser is not None:
            drawn, problem = _run(command, coarser())
        if drawn is not None:
            return drawn, ""
    return None, problem


_TOO_SLOW = f"its layout took longer than {TIME_LIMIT_S:.0f} s; draw it with `dot -Tsvg -O` if you can wait"


def _engines(kind: str) -> Iterator[list[str]]:
    dot = shutil.which("dot")
    if dot is not None:
        yield [dot, f"-T{kind}", *(["-Gdpi=144"] if kind == "png" else [])]
    if find_spec("pygraphviz") is not None:
        yield [sys.executable, "-c", _PYGRAPHVIZ, kind]


def _run(command: list[str], source: str) -> tuple[bytes | None, str]:
    try:
        done = subprocess.run(command, input=source.encode("utf-8"), capture_output=True, timeout=TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        return None, _TOO_SLOW
    except OSError as error:
        return None, f"{command[0]} could not be started ({error.strerror or error})"
    if done.returncode == 0 and done.stdout:
        return done.stdout, ""
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return None, f"{Path(command[0]).name} failed ({said[-1] if said else f'exit code {done.returncode}'})"
