"""From what was seen to what it means: the cause, its evidence in numbers, and what to change.

Reads plain data only. It imports no torch, so that a dump is explained in a blink.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from ..model import Change, Diagnosis, Remedy, Snapshot
from .catalogue import MEANING as MEANING
from .catalogue import meaning as meaning
from .finding import Finding
from .rules import RULES
from .terms import with_terms
from .trend import with_trend
from .unexplained import undetermined

_log = logging.getLogger("nantrace")


def diagnose(snapshot: Snapshot) -> Diagnosis:
    """Conclude the cause from a snapshot; UNDETERMINED where no rule has evidence."""
    findings = _findings(snapshot) or [undetermined(snapshot)]
    first = _in_context(snapshot, findings[0])
    others = dict.fromkeys(finding.cause for finding in findings[1:] if finding.cause is not first.cause)
    sure = first.confidence
    if sure == "certain" and snapshot.replay.doubts and snapshot.replay.reproduced is not True:
        sure = "likely"  # something was taken for granted, or had changed since the live run
    return Diagnosis(first.cause, sure, first.evidence, _tried(first.remedies, snapshot), tuple(others))


def changes_to_try(snapshot: Snapshot) -> tuple[Change, ...]:
    """What the remedies of the first cause would change, each once, in their order."""
    findings = _findings(snapshot)
    remedies = _in_context(snapshot, findings[0]).remedies if findings else ()
    return tuple(dict.fromkeys(remedy.change for remedy in remedies if remedy.change is not None))


def _tried(remedies: tuple[Remedy, ...], snapshot: Snapshot) -> tuple[Remedy, ...]:
    """The remedies with what came of trying them: those that helped first, those that did not last."""
    known = {trial.change: trial.finite for trial in snapshot.trials}
    told = [
        replace(remedy, verified=known.get(remedy.change)) if remedy.change is not None else remedy
        for remedy in remedies
    ]
    told.sort(key=lambda remedy: {True: 0, None: 1, False: 2}[remedy.verified])
    return (*(_on_its_own(first) for first in told[:1]), *told[1:])


def _on_its_own(remedy: Remedy) -> Remedy:
    """The remedy as the first one: not "Or clamp it", for what it is the alternative to comes after it."""
    text = remedy.text.removeprefix("Or ").removeprefix("Better, ")
    return replace(remedy, text=text[:1].upper() + text[1:])


def _in_context(snapshot: Snapshot, finding: Finding) -> Finding:
    """The finding with what the terms of the loss and the steps before say about it."""
    for context in (with_terms, with_trend):
        try:
            finding = context(snapshot, finding)
        except Exception:
            _log.warning("%s failed and was left out", context.__name__, exc_info=True)
    return finding


def _findings(snapshot: Snapshot) -> list[Finding]:
    found = []
    for rule in RULES:
        try:
            finding = rule(snapshot)
        except Exception:  # a rule that fails must cost neither the report nor the training run
            _log.warning("the rule %s failed and was left out", rule.__name__, exc_info=True)
            continue
        if finding is not None:
            found.append(finding)
    return found
