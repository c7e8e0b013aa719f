"""Writes a picture as DOT, with the `graphviz` package.

All text goes into HTML-like labels, escaped: no name can end a string or become an attribute.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

from .composing import compose, compose_modules
from .palette import LINK_WORDS, LINKS, LOOKS
from .picture import Box, Cluster, Link, Picture

if TYPE_CHECKING:
    from ..report import Report

_FONT = "Helvetica,Arial,sans-serif"
_INK = "#1A1A1A"
_LOUD = ' color="#B00000"'


def dot_source(report: Report) -> str:
    """The highlighted graph as DOT: origin and path in full, the rest folded."""
    return written(compose(report.snapshot, report.diagnosis))


def coarse_dot_source(report: Report) -> str:
    """The same at module level, for graphs that are too dense to lay out op by op."""
    return written(compose_modules(report.snapshot, report.diagnosis))


def written(picture: Picture) -> str:
    """One picture as DOT."""
    import graphviz

    graph = graphviz.Digraph("nantrace", graph_attr=_graph_attributes(picture))
    graph.attr("node", fontname=_FONT, fontsize="12", fontcolor=_INK, margin="0.14,0.07", height="0.3")
    graph.attr("edge", fontname=_FONT, fontsize="9", fontcolor="#444444", arrowsize="0.7")
    # The outermost cluster only carries the title: the graph's own label is the legend.
    with graph.subgraph(name="cluster_title") as whole:
        whole.attr(label=_title(picture.title), labelloc="t", labeljust="l", pencolor="transparent", margin="4")
        _draw_cluster(whole, picture.root)
    for link in picture.links:
        _draw_link(graph, link)
    return str(graph.source)


def _graph_attributes(picture: Picture) -> dict[str, str]:
    return {
        "rankdir": "TB",
        "fontname": _FONT,
        "fontsize": "11",
        "fontcolor": _INK,
        "bgcolor": "white",
        "nodesep": "0.35",
        "ranksep": "0.4",
        "pad": "0.2",
        # Bounds for network simplex: dense graphs take minutes without them.
        "nslimit": "2",
        "nslimit1": "2",
        "labelloc": "b",
        "labeljust": "l",
        "label": _legend(picture),
    }


def _draw_cluster(graph: Any, cluster: Cluster) -> None:
    for box in cluster.boxes:
        _draw_box(graph, box)
    for inner in cluster.clusters:
        with graph.subgraph(name=f"cluster_{_identity(inner.id)}") as drawn:
            drawn.attr(
                label=f'<<font point-size="10" color="#444444"><b>{_escaped(inner.title)}</b></font>>',
                labelloc="t",
                labeljust="l",
                style="rounded,dashed" if inner.backward else "rounded",
                pencolor="#0072B2" if inner.backward else "#9A9A9A",
                bgcolor="#F5F9FC" if inner.backward else "#FAFAFA",
                margin="10",
            )
            _draw_cluster(drawn, inner)


def _draw_box(graph: Any, box: Box) -> None:
    look = LOOKS[box.look]
    attributes = {"shape": look.shape, "fillcolor": look.fill, "color": look.border, "penwidth": "1.2"}
    attributes["style"] = f"{look.style},dashed" if box.backward else look.style
    if box.origin:
        attributes |= {"color": "#D40000", "peripheries": "2", "penwidth": "2.4", "style": "filled"}
    if look.shape == "octagon":
        attributes["margin"] = "0.02,0"
    if box.look == "fold":
        attributes["fontcolor"] = "#555555"
    graph.node(box.id, label=_label(box), **attributes)


def _draw_link(graph: Any, link: Link) -> None:
    colour, width, style, head = LINKS[link.kind]
    attributes = {"color": colour, "penwidth": width, "style": style, "arrowhead": head}
    if link.free:
        attributes["constraint"] = "false"
    if link.lines:
        # The blanks keep the text off the arrow, to which Graphviz puts it flush.
        rows = "".join(f'&nbsp;&nbsp;{_escaped(line)}&nbsp;<br align="left"/>' for line in link.lines)
        attributes["label"] = f"<{rows}>"
    if link.kind in ("nan", "inf", "both"):
        attributes["fontcolor"] = colour.split(":")[0]
    graph.edge(link.tail, link.head, **attributes)


def _label(box: Box) -> str:
    rows = [f"<b>{_escaped(box.title)}</b>"]
    if box.module:
        rows.append(f'<font point-size="9" color="#555555">{_escaped(box.module)}</font>')
    for position, line in enumerate(box.lines):
        loud = box.origin and not position
        text = f"<b>{_escaped(line)}</b>" if loud else _escaped(line)
        rows.append(f'<font point-size="10"{_LOUD if loud else ""}>{text}</font>')
    return _table(rows, "center")


def _title(lines: Iterable[str]) -> str:
    first, *rest = lines
    rows = [f'<font point-size="14"><b>{_escaped(first)}</b></font>']
    return _table([*rows, *(f'<font point-size="11">{_escaped(line)}</font>' for line in rest)], "left")


def _table(rows: Iterable[str], align: str) -> str:
    """Rows under each other; lines parted by <br/> would touch where their sizes differ."""
    cells = "".join(f'<tr><td align="{align}">{row}</td></tr>' for row in rows)
    return f'<<table border="0" cellborder="0" cellspacing="0" cellpadding="1">{cells}</table>>'


def _legend(picture: Picture) -> str:
    """Only what the picture holds: a small table of colours and words."""
    boxes = picture.root.all_boxes()
    used = [look for look in LOOKS if any(box.look == look for box in boxes)]
    rows = [(LOOKS[look].fill, LOOKS[look].border, LOOKS[look].meaning) for look in used]
    if any(box.origin for box in boxes):
        rows.insert(0, ("#FFFFFF", "#D40000", "origin (red, double border)"))
    if any(box.backward for box in boxes):
        rows.append(("#FFFFFF", "#0072B2", "runs in the backward pass (dashed border)"))
    links = {link.kind for link in picture.links}
    rows += [
        (LINKS[kind][0].split(":")[0], LINKS[kind][0].split(":")[0], words)
        for kind, words in LINK_WORDS.items()
        if kind in links
    ]
    cells = [
        f'<td bgcolor="{fill}" color="{border}" width="16" border="1"></td><td align="left">{_escaped(text)}</td>'
        for fill, border, text in rows
    ]
    table = "".join(f"<tr>{''.join(cells[start : start + 2])}</tr>" for start in range(0, len(cells), 2))
    note = f'<tr><td colspan="4" align="left">{_escaped(picture.note)}</td></tr>' if picture.note else ""
    return f'<<font point-size="9"><table border="0" cellborder="0" cellspacing="3">{table}{note}</table></font>>'


def _identity(text: str) -> str:
    # A cluster's name becomes an SVG id; its title may hold anything, its name may not.
    return "".join(one if one.isalnum() and one.isascii() else f"_{ord(one):x}_" for one in text)


def _escaped(text: str) -> str:
    # Graphviz expands \N, \G, \l in HTML-like labels' attributes and chokes on an empty <b></b>.
    return escape(text, quote=True).replace("\\", "&#92;") or " "
