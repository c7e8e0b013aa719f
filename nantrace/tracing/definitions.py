"""The lines of the user's program that made a thing: the optimizer's construction, a module's attribute.

Read from the source files, and only where one line alone can be meant.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import FunctionType

import torch

from ..model import Frame
from ..recording.frames import RawStack, is_library, is_library_file, is_torch, is_torch_file

_REGISTERING = ("register_buffer", "register_parameter", "add_module", "register_module")


def construction_of(value: object, stack: RawStack) -> Frame | None:
    """The line that constructed an object, looked for in the user's files that are on the stack."""
    name = type(value).__name__
    files = dict.fromkeys(code.co_filename for code, _ in stack if not is_torch(code) and not is_library(code))
    found = [frame for file in files for frame in _lines(file, lambda node: _constructs(node, name))]
    return found[0] if len(found) == 1 else None


def definition_of(module: torch.nn.Module, attribute: str) -> Frame | None:
    """The line of the module's own class that gave it a parameter, a buffer or a child of that name."""
    for kind in type(module).__mro__:
        file = _file_of(kind)
        if file is None or is_torch_file(file) or is_library_file(file):
            continue
        inside = _span_of_class(file, kind.__qualname__)
        found = [
            frame
            for frame in _lines(file, lambda node: _defines(node, attribute))
            if inside is not None and inside[0] <= frame.line <= inside[1]
        ]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _file_of(kind: type) -> str | None:
    """The file of a class, as its methods know it: its module may not be imported by its name any more."""
    codes = [value.__code__ for value in vars(kind).values() if isinstance(value, FunctionType)]
    return codes[0].co_filename if codes else None


def definition_of_module(roots: tuple[torch.nn.Module, ...], path: str) -> Frame | None:
    """The line that made the module at that path, in the class of its parent."""
    parent, _, name = path.rpartition(".")
    if len(roots) != 1 or not name:
        return None
    try:
        return definition_of(roots[0].get_submodule(parent), name)
    except AttributeError:  # a path that is no attribute path: the module is held in a plain list
        return None


def owner_in(roots: tuple[torch.nn.Module, ...], tensor: torch.Tensor) -> tuple[torch.nn.Module, str] | None:
    """The module whose own parameter or buffer the tensor is, and under which name."""
    for root in roots:
        for module in root.modules():
            for named in (module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
                for name, own in named:
                    if own is tensor:
                        return module, name
    return None


def _lines(file: str, meant: Callable[[ast.AST], bool]) -> list[Frame]:
    """The one-line statements of a file in which a node is meant."""
    found: dict[int, Frame] = {}
    for function, node in _nodes(file):
        if meant(node):
            line = getattr(node, "lineno", 0)
            if getattr(node, "end_lineno", line) == line:
                found[line] = Frame(file, line, function, linecache.getline(file, line).strip())
    return list(found.values())


def _nodes(file: str) -> Iterator[tuple[str, ast.AST]]:
    tree = _tree("".join(linecache.getlines(file)))
    waiting: list[tuple[str, ast.AST]] = [("", tree)] if tree is not None else []
    while waiting:
        function, node = waiting.pop()
        yield function, node
        inner = node.name if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
        waiting.extend((inner, child) for child in ast.iter_child_nodes(node))


@lru_cache(maxsize=8)
def _tree(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _span_of_class(file: str, qualname: str) -> tuple[int, int] | None:
    name = qualname.rpartition(".")[2]
    spans = [
        (node.lineno, node.end_lineno or node.lineno)
        for _, node in _nodes(file)
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    return spans[0] if len(spans) == 1 else None


def _constructs(node: ast.AST, name: str) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=called)) | ast.Call(func=ast.Attribute(attr=called)):
            return called == name
        case _:
            return False


def _defines(node: ast.AST, attribute: str) -> bool:
    match node:
        case ast.Assign(targets=[ast.Tuple(elts=targets)]):
            return any(_is_own(target, attribute) for target in targets)
        case ast.Assign(targets=[target]):
            return _is_own(target, attribute)
        case ast.AnnAssign(target=target):
            return _is_own(target, attribute)
        case ast.Call(func=ast.Attribute(attr=called), args=[ast.Constant(value=name), *_]):
            return called in _REGISTERING and name == attribute
        case _:
            return False


def _is_own(target: ast.AST, attribute: str) -> bool:
    """self.attribute, as what is assigned to."""
    match target:
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return name == attribute
        case _:
            return False
