"""The remedies of the reported programs, taken as a user takes them: the edit goes into the file, the training on."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

import nantrace

from ..reported import test_reported  # registers all programs
from ..reported.cases import PROGRAMS, Failure
from .reporting import bound_on_the_gradient, in_own_file, report_on, trains_on

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# Of the programs that have a remedy that was tried, the share that shows a verified one.
VERIFIED = 0.8
assert test_reported.MODULES


@cache
def report_of(failure: Failure) -> nantrace.Report:
    """The report on a program, made once for all tests of it."""
    return report_on(failure)


def _by_name(failures: list[Failure]) -> list[Any]:
    return [pytest.param(failure, id=failure.name) for failure in failures]


@pytest.mark.parametrize("failure", _by_name(PROGRAMS.failures))
def test_a_verified_edit_of_the_line_trains_on(failure: Failure, tmp_path: Path) -> None:
    """Whatever edit the report calls verified, the whole training stays finite with it: no anomaly in any step.

    Where the report says to clip the gradient besides, both are done.
    """
    report = report_of(failure)
    for remedy in report.remedies:
        if remedy.verified and in_own_file(failure, remedy):
            trains_on(failure, remedy, tmp_path, bound_on_the_gradient(report))


def test_most_programs_with_a_tried_remedy_show_a_verified_one() -> None:
    """A report that tries its advice has, as a rule, advice that helped."""
    tried = [report_of(failure) for failure in PROGRAMS.failures if _tried(report_of(failure))]
    verified = [report for report in tried if any(remedy.verified for remedy in report.remedies)]

    assert len(tried) >= 60
    assert len(verified) >= VERIFIED * len(tried)


def test_an_edit_that_did_not_help_comes_after_those_that_did() -> None:
    """The first remedy of a report is one that was tried and helped, where there is one."""
    for failure in PROGRAMS.failures:
        verified = [remedy.verified for remedy in report_of(failure).remedies]

        assert verified == sorted(verified, key=[True, None, False].index), failure.name


def _tried(report: nantrace.Report) -> bool:
    return any(remedy.verified is not None for remedy in report.remedies)
