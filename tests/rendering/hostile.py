"""A report in which every name of the user's is an attack on whatever shows it."""

from __future__ import annotations

from dataclasses import replace

from nantrace.model import Cause, Diagnosis, Remedy, Symptom
from nantrace.report import Report

from .born_in_ops import gan_log
from .builders import report

HOSTILE = '\x1b[2J\x1b]0;x\x07[bold red]\u202eevil\u200b\r\n<b>"\\N</script>&amp;' + "w" * 300


def hostile() -> Report:
    """The GAN's report with hostile names, code, sentences and remedies."""
    base = gan_log()
    origin = base.snapshot.origin
    assert origin is not None and origin.source is not None
    source = replace(origin.source, file=HOSTILE, function=HOSTILE, code=HOSTILE, expression=HOSTILE, context=())
    ops = tuple(
        replace(op, name=HOSTILE, module=HOSTILE, module_type=HOSTILE, source=source) for op in base.snapshot.ops
    )
    snapshot = replace(
        base.snapshot,
        origin=replace(origin, op=HOSTILE, module=HOSTILE, module_type=HOSTILE, autograd_node=HOSTILE, source=source),
        ops=ops,
        modules={HOSTILE: HOSTILE},
        symptom=Symptom("gradient", HOSTILE, where=HOSTILE),
    )
    remedy = Remedy(HOSTILE, HOSTILE)
    return report(snapshot, Diagnosis(Cause.LOG_DOMAIN, "certain", (HOSTILE,), (remedy,)))
