"""Nests boxes in the modules they ran in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..model import Op
from .harmless import shorten
from .picture import Box, Cluster
from .words import module

# They hold modules and have no forward of their own; a path that is in no model has no type.
_NEVER_RUN = frozenset({"ModuleList", "ModuleDict", None})

_DEEPEST = 40  # levels: frames are nested by recursion

Home = tuple[bool, str | None]  # in the backward pass?, module path


def home(ops: Iterable[Op], types: Mapping[str, str]) -> Home:
    """The innermost module that all the ops ran in; None outside, or where they have none in common."""
    found = list(ops)
    backward = {op.phase == "backward" for op in found}
    paths = {op.module and ".".join(op.module.split(".", _DEEPEST)[:_DEEPEST]) for op in found}
    if len(backward) > 1:
        return False, None
    if None in paths:
        return backward.pop(), None
    if len(paths) == 1:
        return backward.pop(), paths.pop()
    parts = [path.split(".") for path in paths if path is not None]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    while common and types.get(".".join(common)) in _NEVER_RUN:
        common.pop()
    return backward.pop(), ".".join(common) or ("" if "" in types else None)


def nested(homes: Mapping[Home, list[Box]], types: Mapping[str, str]) -> Cluster:
    """The modules' frames around the forward ops, and one frame around the whole backward pass.

    A module's frame is drawn where it says something: not around a single op (the box names its
    module instead), not around a single other frame, and not around a ModuleList. In the backward
    pass every box names its module: a gradient enters and leaves a module many times, and frames
    would tear its path apart.
    """
    boxes = [box for (backward, path), found in homes.items() if path is None and not backward for box in found]
    forward = {path: found for (backward, path), found in homes.items() if path is not None and not backward}
    clusters: list[Cluster] = []
    if forward:
        loose, clusters = _framed("", forward, types)
        boxes += loose
    back = [
        replace(box, module=_titled(path, types)) if path is not None else box
        for (backward, path), found in homes.items()
        if backward
        for box in found
    ]
    if back:
        clusters = [*clusters, Cluster("backward", "the backward pass", tuple(back), (), True)]
    return Cluster("all", "", tuple(boxes), tuple(clusters))


def _framed(path: str, here: Mapping[str, list[Box]], types: Mapping[str, str]) -> tuple[list[Box], list[Cluster]]:
    """What stands for a module and all below it: loose boxes for the frame around it, and frames."""
    boxes = list(here.get(path, []))
    clusters: list[Cluster] = []
    title = _titled(path, types)
    own = len(boxes)
    for child in _children(path, here):
        loose, framed = _framed(child, here, types)
        boxes += loose
        clusters += framed
    if own == len(boxes) == 1 and not clusters:
        return [replace(boxes[0], module=title)], []
    runs = own or types.get(path) not in _NEVER_RUN
    if not runs or len(boxes) + len(clusters) < 2 or (path == "" and not own):
        return boxes, clusters
    return [], [Cluster(f"module {path}", title, tuple(boxes), tuple(clusters))]


def _titled(path: str, types: Mapping[str, str]) -> str:
    return module(shorten(path, 44), types.get(path))


def _children(parent: str, here: Mapping[str, list[Box]]) -> list[str]:
    lead = f"{parent}." if parent else ""
    below = (path for path in here if path.startswith(lead) and path != parent)
    return list(dict.fromkeys(lead + path[len(lead) :].split(".")[0] for path in below))
