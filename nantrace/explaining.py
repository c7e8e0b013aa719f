"""Explain an exception of the user's own program: an index out of range, a value that a check refused, empty data."""

from __future__ import annotations

import sys
from dataclasses import replace

from .model import Cause, ExceptionFacts, IndexFacts, Origin, ReplayFacts, Snapshot, Symptom
from .recording.recorder import Recorder
from .report import Report
from .tracing.definitions import definition_of_module
from .tracing.environment import environment
from .tracing.failures import Failure, failure_of, origin_of
from .tracing.indexing import index_out_of_range
from .tracing.refused import refused_value

_ATTRIBUTE = "__nantrace_report__"


def report_of(exception: BaseException) -> Report | None:
    """The report that explains an exception which left a watched block, or None where nantrace had nothing to say."""
    found = getattr(exception, "report", None) or getattr(exception, _ATTRIBUTE, None)
    return found if isinstance(found, Report) else None


def explain(error: Exception, recorder: Recorder) -> Report | None:
    """Explain an exception that is leaving the watched block; the explanation is added to it as a note."""
    failure = failure_of(error, recorder)
    index = index_out_of_range(failure)
    value = refused_value(failure, recorder) if index is None else None
    if value is None and not failure.by_torch:
        return None
    report = Report(value if value is not None else _refusal(failure, index, recorder))
    if index is None and report.cause is Cause.UNDETERMINED and value is None:
        return None
    setattr(error, _ATTRIBUTE, report)
    _add_note(error, "\n" + report.text())
    return report


def _refusal(failure: Failure, index: IndexFacts | None, recorder: Recorder) -> Snapshot:
    """An op, or a function of torch, would not take its operands."""
    error, step = failure.error, recorder.clock.step
    origin = origin_of(failure, recorder.names)
    return Snapshot(
        step=step,
        phase="forward" if origin.module is not None else "loss",
        symptom=Symptom("exception", type(error).__name__, where="the exception left the watched block"),
        origin=origin,
        modules=recorder.names.types(),
        history=recorder.ring.table(step),
        index=_with_definition(index, origin, recorder),
        exception=ExceptionFacts(type(error).__name__, str(error).splitlines()[0] if str(error) else ""),
        replay=replace(ReplayFacts(), reproduced=True if failure.run is not None else None),
        environment=environment(),
    )


def _with_definition(index: IndexFacts | None, origin: Origin, recorder: Recorder) -> IndexFacts | None:
    """The index with the line that made the module whose table was too short."""
    if index is None or not origin.module:
        return index
    return replace(index, made=definition_of_module(recorder.names.roots, origin.module))


def _add_note(error: BaseException, text: str) -> None:
    if hasattr(error, "add_note"):
        error.add_note(text)
    else:  # Python 3.10 has no notes
        print(text, file=sys.stderr)
