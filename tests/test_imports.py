"""Imports point one way, toward the model; and what opens a dump imports no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nantrace

ROOT = Path(nantrace.__file__).parent

# Each part of the package -> the parts that it may import. "" is nantrace/__init__.py, asked for the version.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "model": set(),
    "torch_private": set(),
    "recording": {"errors", "model", "torch_private"},
    "tracing": {"", "errors", "model", "recording", "torch_private"},
    "diagnosis": {"model"},
    "rendering": {"errors", "model", "diagnosis.catalogue"},
    "dump": {"errors", "model"},
    "report": {"model"},
    "explaining": {"errors", "model", "recording", "tracing", "report", "torch_private"},
    "tracer": {"errors", "model", "recording", "tracing", "diagnosis", "report", "torch_private", "explaining"},
    "unwatched": {"errors", "model", "tracing", "report"},
    "demo": {""},
    "bench": {"", "errors", "recording", "torch_private", "tracer", "report", "dump", "rendering.json"},
    "cli": {"", "errors", "model", "rendering", "bench.plan"},
    "__main__": {"cli"},
    "": set(),
}
# What a function may import besides, when it is called.
ALLOWED_LATER: dict[str, set[str]] = {
    "recording": {"report"},
    "dump": {"report", ""},
    "report": {"diagnosis", "rendering", "dump"},
    "cli": {"dump", "demo", "bench", "diagnosis.catalogue"},
}
TORCH_FREE = {"errors", "model", "diagnosis", "rendering", "dump", "report", "cli", ""}
HEAVY = {"torch", "numpy", "networkx"}


def complaints_about(source: str, path: str) -> list[str]:
    """What is wrong with the imports of a module of the package, given its text and its path below the package."""
    part = _part(path)
    found = []
    for name, line, later in _imports(source, path):
        if name.partition(".")[0] != "nantrace":
            if part in TORCH_FREE and not later and name.partition(".")[0] in HEAVY:
                found.append(f"{path}:{line} imports {name} at module level")
            continue
        target = name.partition(".")[2]
        allowed = ALLOWED[part] | (ALLOWED_LATER.get(part, set()) if later else set())
        if target.partition(".")[0] != part and not any(_within(target, permitted) for permitted in allowed):
            found.append(f"{path}:{line} imports nantrace.{target}, which {part or 'nantrace'} must not know")
    return found


@pytest.mark.parametrize("path", sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")))
def test_imports_point_one_way(path: str) -> None:
    """No module knows one that stands above it."""
    assert complaints_about((ROOT / path).read_text(encoding="utf-8"), path) == []


def test_every_part_has_its_rule() -> None:
    """A new part of the package must say what it may import."""
    assert {_part(str(path.relative_to(ROOT))) for path in ROOT.rglob("*.py")} <= set(ALLOWED)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/op.py", "from ..report import Report"),
        ("model/op.py", "import nantrace.report"),
        ("model/op.py", "from .. import report"),
        ("diagnosis/rules.py", "from nantrace.rendering.numbers import number"),
        ("rendering/text.py", "from ..diagnosis.rules import RULES"),
        ("rendering/text.py", "def f():\n    from ..dump import load"),
        ("dump/codec.py", "import torch"),
        ("dump/codec.py", "try:\n    from torch import Tensor\nexcept ImportError:\n    pass"),
        ("recording/ring.py", "class A:\n    from ..tracing.walk import walk"),
        ("cli/show.py", "from ..tracer import watch"),
        ("cli/show.py", "import networkx as nx"),
    ],
)
def test_the_check_can_fail(path: str, source: str) -> None:
    """The tests above would notice each of these."""
    assert len(complaints_about(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("dump/loading.py", "def load():\n    from ..report import Report"),
        ("rendering/dot.py", "def f():\n    import networkx"),
        ("model/op.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..report import Report"),
        ("model/op.py", "from .source import Source\nfrom . import source"),
        ("recording/ring.py", "import torch\nfrom ..model import Event"),
    ],
)
def test_the_check_can_pass(path: str, source: str) -> None:
    """Later imports where they are meant, imports for type checkers, and imports of one's own part are fine."""
    assert complaints_about(source, path) == []


def _part(path: str) -> str:
    first = Path(path).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def _within(target: str, permitted: str) -> bool:
    return target == permitted or (permitted != "" and target.startswith(permitted + "."))


def _imports(source: str, path: str) -> Iterator[tuple[str, int, bool]]:
    """Each import as (full dotted name, line, whether it happens only when a function is called)."""
    package = ("nantrace", *Path(path).parts[:-1])
    for node, later in _nodes(ast.parse(source), later=False):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, later
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            if module.count(".") == 0 and module == "nantrace":  # from .. import name: a part, or a name of __init__
                for alias in node.names:
                    name = f"nantrace.{alias.name}" if _is_part(alias.name) else "nantrace"
                    yield name, node.lineno, later
            else:
                yield module, node.lineno, later


def _is_part(name: str) -> bool:
    return (ROOT / name).is_dir() or (ROOT / f"{name}.py").exists()


def _nodes(node: ast.AST, *, later: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, but for what only type checkers read, with whether a function stands around it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        inside = later or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield child, inside
        yield from _nodes(child, later=inside)
