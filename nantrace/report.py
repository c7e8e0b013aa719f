"""The report: a snapshot plus the diagnosis made from it, and its faces."""

from __future__ import annotations

from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

from .model import Cause, Diagnosis, Expected, History, Op, Origin, Remedy, Snapshot

if TYPE_CHECKING:
    import networkx


class Report:
    """What happened, where, why, and what to change.

    Everything that was seen is in `snapshot`; the cause is concluded from it anew each time a
    dump is opened, so better rules improve old dumps.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    # What was seen

    @property
    def step(self) -> int:
        """The step in which the value was born, counted from 0 since `watch` began."""
        return self.snapshot.step

    @property
    def phase(self) -> str:
        """Where it was born: "input", "forward", "loss", "backward", "optimizer" or "parameters"."""
        return self.snapshot.phase

    @property
    def origin(self) -> Origin | None:
        """The op that generated the value; None only when nothing is known."""
        return self.snapshot.origin

    @cached_property
    def path(self) -> tuple[Op, ...]:
        """The ops from the origin to where the value was noticed."""
        by_id = {op.id: op for op in self.snapshot.ops}
        return tuple(by_id[i] for i in self.snapshot.path if i in by_id)

    @cached_property
    def graph(self) -> networkx.DiGraph[int]:
        """The graph of executed ops; node i carries its `Op` as `graph.nodes[i]["op"]`."""
        import networkx

        graph: networkx.DiGraph[int] = networkx.DiGraph()
        for op in self.snapshot.ops:
            graph.add_node(op.id, op=op)
        for edge in self.snapshot.edges:
            graph.add_edge(edge.upstream, edge.downstream, edge=edge)
        return graph

    @property
    def history(self) -> History:
        """The ring buffer as a table: step x event x statistics."""
        return self.snapshot.history

    @property
    def reproduced(self) -> bool | None:
        """Whether the replay gave the same values bit by bit; None when there was no replay."""
        return self.snapshot.replay.reproduced

    @property
    def expected(self) -> tuple[Expected, ...]:
        """Non-finite values that were seen and judged harmless, with the reason."""
        return self.snapshot.expected

    # What was concluded

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """The conclusion: cause, confidence, evidence, remedies."""
        from .diagnosis import diagnose

        return diagnose(self.snapshot)

    @property
    def cause(self) -> Cause:
        """Why it happened."""
        return self.diagnosis.cause

    @property
    def confidence(self) -> str:
        """ "certain", "likely" or "undetermined"."""
        return self.diagnosis.confidence

    @property
    def evidence(self) -> tuple[str, ...]:
        """Sentences with the numbers that prove the cause."""
        return self.diagnosis.evidence

    @property
    def remedies(self) -> tuple[Remedy, ...]:
        """What to change."""
        return self.diagnosis.remedies

    # Its faces

    @property
    def headline(self) -> str:
        """What, where and why in one sentence, for a log line."""
        from .rendering.headline import headline

        found = headline(self.snapshot, self.diagnosis)
        return f"{found.value}: {found.text}"

    def text(self) -> str:
        """The whole report as plain text, at most 100 columns wide."""
        from .rendering.text import plain

        return plain(self)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        origin = self.origin
        where = "nothing known" if origin is None else f"{origin.op} in {origin.module!r}"
        return f"<nantrace.Report step {self.step} {self.phase} {self.cause}: {where}>"

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from .rendering.text import rich_parts

        yield from rich_parts(self, width=options.max_width)

    def _repr_html_(self) -> str:
        """The page, for a notebook."""
        from .rendering.html import page

        return page(self)

    def render(self, path: str | PathLike[str]) -> str:
        """Write the report as a file; the suffix says what: .svg .png .pdf .dot .json .md.

        Returns the path that was written, which ends in .dot when no engine could draw here
        (a warning says what to install). Raises `RenderError` for a suffix nobody knows.
        """
        from .rendering import render

        return render(self, path)

    def save(self, path: str | PathLike[str]) -> str:
        """Save the snapshot as a dump and return its path; `nantrace.load` opens it again."""
        from .dump import save

        return save(self.snapshot, path)
