"""Prints the table of the planted faults at the end of a test session that planted any."""

from __future__ import annotations

import pytest

OUTCOMES = pytest.StashKey[list[object]]()


def pytest_configure(config: pytest.Config) -> None:
    """A place for what the tests find."""
    config.stash[OUTCOMES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table, after everything else."""
    outcomes = config.stash.get(OUTCOMES, [])
    if outcomes:
        from .results import table

        terminalreporter.section("planted faults: exact of all")
        terminalreporter.write_line(table(outcomes))
