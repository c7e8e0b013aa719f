"""A rule that is held to what it says of itself: the causes it declares, and when it calls them certain or likely."""

from __future__ import annotations

from functools import wraps

from nantrace.diagnosis.catalogue import recognition
from nantrace.diagnosis.finding import Finding, Rule
from nantrace.diagnosis.rules import CAUSES_OF
from nantrace.model import Snapshot


def keeping_its_word(rule: Rule, broken: list[str]) -> Rule:
    """The rule; a finding that it has not declared is told in `broken`."""

    @wraps(rule)
    def held(snapshot: Snapshot) -> Finding | None:
        finding = rule(snapshot)
        if finding is not None:
            broken.extend(broken_by(rule, finding))
        return finding

    return held


def broken_by(rule: Rule, finding: Finding) -> list[str]:
    """What a finding has that its rule does not declare."""
    told = recognition(rule)
    sure = {"certain": told.certain, "likely": told.likely}
    complaints = []
    if finding.cause not in CAUSES_OF[rule]:
        complaints.append(f"{told.rule} found {finding.cause}, which rules.py does not declare for it")
    if not sure.get(finding.confidence):
        complaints.append(f"{told.rule} was {finding.confidence}, and its docstring does not say when it is")
    return complaints
