"""Explain an exception of the user's own program: an index out of range, in which op, which module, on which line."""

from __future__ import annotations

import sys
from dataclasses import replace

from .model import ExceptionFacts, ReplayFacts, Snapshot, Symptom
from .recording.recorder import Recorder
from .report import Report
from .tracing.environment import environment
from .tracing.indexing import index_failure

_ATTRIBUTE = "__nantrace_report__"


def report_of(exception: BaseException) -> Report | None:
    """The report that explains an exception which left a watched block, or None where nantrace had nothing to say."""
    found = getattr(exception, "report", None) or getattr(exception, _ATTRIBUTE, None)
    return found if isinstance(found, Report) else None


def explain(error: Exception, recorder: Recorder) -> Report | None:
    """Explain an exception that is leaving the watched block; the explanation is added to it as a note."""
    found = index_failure(error, recorder)
    if found is None:
        return None
    origin, facts, phase, replayed = found
    step = recorder.clock.step
    snapshot = Snapshot(
        step=step,
        phase=phase,
        symptom=Symptom("exception", type(error).__name__, where="the exception left the watched block"),
        origin=origin,
        modules=recorder.names.types(),
        history=recorder.ring.table(step),
        index=facts,
        exception=ExceptionFacts(type(error).__name__, str(error).splitlines()[0] if str(error) else ""),
        replay=replace(ReplayFacts(), reproduced=True if replayed else None),
        environment=environment(),
    )
    report = Report(snapshot)
    setattr(error, _ATTRIBUTE, report)
    _add_note(error, "\n" + report.text())
    return report


def _add_note(error: BaseException, text: str) -> None:
    if hasattr(error, "add_note"):
        error.add_note(text)
    else:  # Python 3.10 has no notes
        print(text, file=sys.stderr)
