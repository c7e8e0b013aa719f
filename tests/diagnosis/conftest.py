"""A rule that raises is left out of a diagnosis with a warning in the log; in tests that is a failure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_rule_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail the test where a rule was left out."""
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.name == "nantrace"] == []
