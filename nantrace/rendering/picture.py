"""The display data of the graph: boxes in nested clusters, and links between them.

Computed from a snapshot by `picture` (ops) or `coarse_picture` (modules, for graphs that no layout
can place in time); dot.py turns it into DOT.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """A node. `look` is a `Status` value, or "fold", "outside", "symptom"."""

    id: str
    title: str
    lines: tuple[str, ...] = ()
    module: str = ""  # where it ran, when no cluster says so
    look: str = "clean"
    backward: bool = False
    origin: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A tensor between two boxes. `kind` is "finite", "nan", "inf", "both", "folded" or "derivative"."""

    tail: str
    head: str
    lines: tuple[str, ...] = ()
    kind: str = "finite"
    free: bool = False  # has no say in the layout


@dataclass(frozen=True, slots=True)
class Cluster:
    """A module with what ran in it. The outermost cluster has no title."""

    id: str
    title: str
    boxes: tuple[Box, ...] = ()
    clusters: tuple[Cluster, ...] = ()
    backward: bool = False

    def all_boxes(self) -> list[Box]:
        """The boxes in it at any depth."""
        return [*self.boxes, *(box for cluster in self.clusters for box in cluster.all_boxes())]


@dataclass(frozen=True, slots=True)
class Picture:
    """A whole graph."""

    title: tuple[str, ...]
    root: Cluster
    links: tuple[Link, ...]
    note: str = ""  # what was left out
