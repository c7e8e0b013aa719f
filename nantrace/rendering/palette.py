"""How the picture's boxes and links look: colours of Okabe and Ito, and a shape or a word for each.

No meaning hangs on colour alone: every look has a shape or a border of its own, and the box says
its status in words as well.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Look:
    """Graphviz attributes of a box, and its line in the legend."""

    fill: str
    border: str
    shape: str
    style: str
    meaning: str


LOOKS = {
    "generated": Look("#FBE0D2", "#B03A00", "octagon", "filled", "generated: finite in, non-finite out (octagon)"),
    "propagated": Look("#FDF0D0", "#C98500", "box", "filled", "propagated: non-finite in and out (sharp corners)"),
    "killed": Look("#D5EFE6", "#00795A", "hexagon", "filled", "killed: non-finite in, finite out (hexagon)"),
    "declared": Look("#E0F1FB", "#3A8FC4", "note", "filled", "declared: written on purpose (note)"),
    "clean": Look("#FFFFFF", "#8A8A8A", "box", "rounded,filled", "finite (round corners)"),
    "fold": Look("#F0F0F0", "#A0A0A0", "box3d", "filled", "folded ops, counted (block)"),
    "outside": Look("#FFFFFF", "#8A8A8A", "cylinder", "filled", "parameter or input (cylinder)"),
    "symptom": Look("#F6E3EE", "#A8457F", "tab", "filled", "where it was noticed (tab)"),
}

# colour, width, style and arrow head of a link, by its kind
LINKS = {
    "finite": ("#8A8A8A", "1", "solid", "normal"),
    "folded": ("#B0B0B0", "1", "solid", "open"),
    "nan": ("#B03A00", "2.2", "solid", "normal"),
    "inf": ("#A8457F", "2.2", "solid", "diamond"),
    "both": ("#B03A00:#A8457F", "1.6", "solid", "normal"),
    "derivative": ("#0072B2", "1.2", "dotted", "vee"),
}
LINK_WORDS = {
    "nan": "arrow that carries nan (pointed)",
    "inf": "arrow that carries inf (diamond)",
    "both": "arrow that carries nan and inf (double)",
}
