"""The catalogue of causes, the rules that stand behind it, and what diagnosis may import."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import pytest

from nantrace.diagnosis import MEANING, meaning
from nantrace.diagnosis.catalogue import CataloguedFix, entry, recognition
from nantrace.diagnosis.catalogue.entry import parsed
from nantrace.diagnosis.finding import Finding
from nantrace.diagnosis.rules import CAUSES_OF, RULES
from nantrace.model import Cause

from ..keeping_word import broken_by

_MOST_COLUMNS = 56  # of a line of code, so that a screen of 60 columns shows it whole

# the causes


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_has_one_plain_line(cause: Cause) -> None:
    """No cause without a meaning, and a meaning is one line."""
    assert MEANING[cause]
    assert "\n" not in MEANING[cause]


def test_what_is_no_cause_has_no_meaning() -> None:
    """The set is closed: anything else is refused."""
    with pytest.raises(AssertionError, match="no entry"):
        meaning("bad luck")  # type: ignore[arg-type]


# the rules


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_rule_says_itself_in_english(rule) -> None:  # type: ignore[no-untyped-def]
    """The first line of a rule's docstring is the rule, and it says when it is certain or likely."""
    told = recognition(rule)

    assert told.sees == inspect.getdoc(rule).splitlines()[0]  # type: ignore[union-attr]
    assert told.sees.endswith(".")
    assert told.certain or told.likely


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_declares_no_cause_that_it_cannot_find(rule) -> None:  # type: ignore[no-untyped-def]
    """What is declared is named in the rule's own file."""
    source = inspect.getsource(sys.modules[rule.__module__])

    assert CAUSES_OF[rule]
    assert [cause for cause in CAUSES_OF[rule] if f"Cause.{cause.name}" not in source] == []


def test_a_rule_that_breaks_its_word_is_noticed() -> None:
    """The fixture that watches every rule in every test can fail, on the cause and on the confidence."""
    bad_input = next(rule for rule in RULES if rule.__name__ == "bad_input")

    assert broken_by(bad_input, Finding(Cause.BAD_INPUT, "certain", ())) == []
    assert broken_by(bad_input, Finding(Cause.OVERFLOW, "certain", ())) == [
        "bad_input found overflow, which rules.py does not declare for it"
    ]
    assert broken_by(bad_input, Finding(Cause.BAD_INPUT, "likely", ())) == [
        "bad_input was likely, and its docstring does not say when it is"
    ]


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_is_found_by_a_rule(cause: Cause) -> None:
    """How a cause is recognised is what its rules say; that no rule has evidence is one of the answers."""
    rules = {rule.rule for rule in entry(cause).recognised}

    expected = {rule.__name__ for rule, causes in CAUSES_OF.items() if cause in causes}
    assert rules == (expected if cause is not Cause.UNDETERMINED else {"undetermined"})
    assert rules


# the entries


@pytest.mark.parametrize("cause", list(Cause))
def test_an_entry_says_everything(cause: Cause) -> None:
    """What it is, how it arises, an example, at least one fix of it."""
    found = entry(cause)

    assert found.cause is cause
    assert found.meaning == meaning(cause)
    assert found.what
    assert len(found.arises) >= 2
    assert any(fix.change for fix in found.fixes)
    assert all(fix.text.endswith((".", ".)", "`.", "!")) or fix.change for fix in found.fixes)


@pytest.mark.parametrize("cause", list(Cause))
def test_an_example_is_a_short_whole_program(cause: Cause) -> None:
    """Of 8 to 25 short lines, with torch and nantrace alone; and so is every mended one, but for its length."""
    found = entry(cause)
    programs = [found.example, *(fix.applied_to(found.example) for fix in found.fixes if fix.change)]

    assert 8 <= len(found.example.splitlines()) <= 25
    for program in programs:
        assert max(map(len, program.splitlines())) <= _MOST_COLUMNS
        assert _imported(program) <= {"torch", "nantrace"}
        assert "nantrace.watch(" in program
        assert len(program.splitlines()) <= 28


def _imported(program: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


_TEXT = """# domain

What it is.

## How it arises

- So, in
  two lines.
- Or so.

## Example

```python
a = 1
b = 2
```

## Fixes

Do this,
because.

```diff
 a = 1
-b = 2
+b = 3
```

Or that.
"""


def test_a_file_of_the_catalogue_is_read() -> None:
    """Paragraphs and items become one line each, a diff belongs to the paragraph above it."""
    found = parsed(Cause.DOMAIN, _TEXT)

    assert found.what == ("What it is.",)
    assert found.arises == ("So, in two lines.", "Or so.")
    assert found.example == "a = 1\nb = 2\n"
    assert found.fixes == (
        CataloguedFix("Do this, because.", (" a = 1", "-b = 2", "+b = 3")),
        CataloguedFix("Or that."),
    )
    assert found.fixed == "a = 1\nb = 3\n"


def test_an_empty_line_in_a_diff_stands_in_both_programs() -> None:
    """Editors take the blank away that a diff puts there."""
    fix = CataloguedFix("", (" a = 1", "", "-b = 2", "+b = 3"))

    assert fix.applied_to("a = 1\n\nb = 2\n") == "a = 1\n\nb = 3\n"


@pytest.mark.parametrize(("old", "new"), [("# domain", "# overflow"), ("## Fixes", "## Cures"), ("## Example", "Text")])
def test_a_file_with_other_headings_is_refused(old: str, new: str) -> None:
    """The headings are fixed: the message says which ones."""
    with pytest.raises(ValueError, match="it needs"):
        parsed(Cause.DOMAIN, _TEXT.replace(old, new))


@pytest.mark.parametrize("program", ["a = 1\n", "b = 2\nb = 2\n"])
def test_a_fix_of_other_lines_is_refused(program: str) -> None:
    """A diff whose lines do not stand in the example exactly once would mend something else."""
    with pytest.raises(ValueError, match="in the example"):
        CataloguedFix("", ("-b = 2", "+b = 3")).applied_to(program)


# imports


@pytest.mark.parametrize(("statement", "loaded"), [("import nantrace.diagnosis", False), ("import torch", True)])
def test_diagnosis_imports_no_torch(statement: str, loaded: bool) -> None:
    """A dump is explained without torch (the second row proves that the check can fail)."""
    code = f"import sys; {statement}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == str(loaded)
