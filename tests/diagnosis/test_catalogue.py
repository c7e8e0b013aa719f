"""The catalogue of causes, and what diagnosis may import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nantrace.diagnosis import MEANING, meaning
from nantrace.diagnosis.rules import RULES
from nantrace.model import Cause


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_has_one_plain_line(cause: Cause) -> None:
    """No cause without a meaning, and a meaning is one line."""
    assert MEANING[cause]
    assert "\n" not in MEANING[cause]


def test_what_is_no_cause_has_no_meaning() -> None:
    """The set is closed: anything else is refused."""
    with pytest.raises(AssertionError, match="no entry"):
        meaning("bad luck")  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_rule_says_itself_in_english(rule) -> None:  # type: ignore[no-untyped-def]
    """The first line of a rule's docstring is the rule."""
    assert rule.__doc__ and rule.__doc__.splitlines()[0].endswith(".")


@pytest.mark.parametrize(("statement", "loaded"), [("import nantrace.diagnosis", False), ("import torch", True)])
def test_diagnosis_imports_no_torch(statement: str, loaded: bool) -> None:
    """A dump is explained without torch (the second row proves that the check can fail)."""
    code = f"import sys; {statement}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == str(loaded)
