"""The text report: one screen, every fact in its place, nothing that breaks a terminal."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from nantrace.model import Cause, Diagnosis, OperandValue, Origin, Remedy, Snapshot, Source, Symptom
from nantrace.rendering.harmless import cells
from nantrace.rendering.text import plain, rich_parts
from nantrace.report import Report

from .born_elsewhere import bad_parameter, nothing_known
from .born_in_ops import gan_log, sqrt_backward
from .builders import NAN, line, report
from .hostile import hostile
from .overflowing import t5_overflow
from .scenes import REPORTS


def printed(made: Report, width: int, *, encoding: str = "utf-8", colour: bool = True) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, width=width, force_terminal=colour, color_system="truecolor" if colour else None)
    console.print(*rich_parts(made, width))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("name", REPORTS)
def test_golden(name: str, golden: Callable[[str, str], None]) -> None:
    """The report of each kind of failure reads as it did when somebody last read it."""
    golden(f"{name}.txt", plain(REPORTS[name]()))


@pytest.mark.parametrize("name", ["gan_log", "t5_overflow"])
def test_golden_narrow(name: str, golden: Callable[[str, str], None]) -> None:
    """The same on a terminal of 60 columns."""
    golden(f"{name}.60.txt", plain(REPORTS[name](), 60))


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("name", REPORTS)
def test_no_line_is_wider_than_the_width(name: str, width: int) -> None:
    """A terminal never has to wrap a line of the report."""
    assert max(map(cells, plain(REPORTS[name](), width).splitlines())) <= width


@pytest.mark.parametrize("name", REPORTS)
def test_one_screen(name: str) -> None:
    """A report takes at most 40 lines of 100 columns."""
    assert len(plain(REPORTS[name](), 100).splitlines()) <= 40


@pytest.mark.parametrize("name", REPORTS)
def test_never_prints_none(name: str) -> None:
    """What is not known is left out."""
    assert "None" not in plain(REPORTS[name]())


def test_plain_is_framed_in_ascii() -> None:
    """Without foreign characters in the program there are none in the report."""
    assert all(plain(make()).isascii() for make in REPORTS.values())


def test_headline_says_what_where_and_why() -> None:
    """The first line is enough to act on."""
    first = plain(gan_log()).splitlines()[0]

    assert first == "-inf: log of 0 in the loss, step 9 - torch.log(1.0 - fake) at train.py:41"


def test_expression_is_underlined() -> None:
    """The carets stand below the exact expression."""
    lines = plain(gan_log()).splitlines()
    code = next(number for number, text in enumerate(lines) if "> 41" in text)
    start = lines[code].index("torch.log(1.0 - fake)")

    assert lines[code + 1][start:] == "^" * len("torch.log(1.0 - fake)")


def test_expression_stays_in_sight_when_the_line_is_cut() -> None:
    """A code line that is too long is cut around the expression."""
    lines = plain(gan_log(), 60).splitlines()

    assert any("torch.log(1.0 - fake)" in text and "> 41" in text for text in lines)


def test_wide_characters_keep_the_carets_in_place() -> None:
    """East Asian characters take two columns, and so do their carets."""
    base = gan_log()
    assert base.snapshot.origin is not None
    source = line("train.py", 3, "损失 = torch.log(概率)", "torch.log(概率)")
    made = report(replace(base.snapshot, origin=replace(base.snapshot.origin, source=source)), base.diagnosis)
    lines = plain(made).splitlines()
    code = next(number for number, text in enumerate(lines) if "> 3 |" in text)

    assert cells(lines[code + 1]) == cells(lines[code])
    assert lines[code + 1].count("^") == cells("torch.log(概率)")


def test_operands_are_named_in_the_users_words() -> None:
    """`(1.0 - fake)` instead of ATen's `self`, where the expression is the call of the op."""
    assert "(1.0 - fake)[3, 0] = 0 " in plain(gan_log())


def test_birth_in_backward_is_said_in_plain_words() -> None:
    """A user who looks for NaN in the forward pass learns why there is none."""
    assert "The forward value is finite, its derivative is not." in plain(sqrt_backward())


def test_a_bad_forward_value_behind_a_derivative_is_said() -> None:
    """Where the forward value was bad too, the report does not call it finite."""
    base = sqrt_backward()
    origin = base.snapshot.origin
    assert origin is not None
    assert origin.example is not None
    result = OperandValue("result", "element", (math.inf,), (0,))
    example = replace(origin.example, operands=(*origin.example.operands, result))
    made = report(replace(base.snapshot, origin=replace(origin, example=example)), base.diagnosis)

    assert "Its forward value there, inf, was taken out downstream; its derivative was not." in plain(made)


def test_long_path_is_folded_with_a_count() -> None:
    """The middle of a long path is one line, and says how many ops it stands for."""
    assert "... 19 more ops, all non-finite, through 19 modules ..." in plain(t5_overflow())


def test_parameter_says_since_when() -> None:
    """A parameter that was bad for some steps sends the user to the first of them."""
    assert "in parameter head.weight[0, 3] since step 3" in plain(bad_parameter())


def test_marks_only_remedies_that_were_tried() -> None:
    """verified=None has no mark."""
    text = plain(gan_log())

    assert "1. use binary" in text
    assert "2. [verified] clamp" in text
    assert "3. [tried, did not help] train" in text


def test_says_when_there_is_more() -> None:
    """Evidence and remedies past the screen are counted, and the report says where they are."""
    remedies = tuple(Remedy(f"try {number}") for number in range(5))
    evidence = tuple(f"fact {number}" for number in range(7))
    text = plain(report(gan_log().snapshot, Diagnosis(Cause.LOG_DOMAIN, "likely", evidence, remedies)))

    assert "... 2 more suggestions in report.remedies" in text
    assert "... 3 more sentences in report.evidence" in text


def test_control_characters_are_spelled_out() -> None:
    """Nothing in a name can move the cursor, repaint the screen, or reorder a line."""
    text = plain(hostile())

    assert not set(text) & set("\x1b\x07\r\u202e\u200b")
    assert "\\x1b[2J" in text


def test_hostile_names_do_not_make_a_wall() -> None:
    """A 300-character name everywhere still leaves a report that can be read."""
    lines = plain(hostile()).splitlines()

    assert len(lines) < 60
    assert max(map(len, lines)) <= 100


def test_markup_in_names_is_shown_not_obeyed() -> None:
    """Square brackets in a name are no rich markup."""
    assert "[bold red]" in printed(hostile(), 100, colour=False)


def test_rich_says_the_same_as_plain() -> None:
    """Both faces print one story; only the glyphs differ."""
    told = printed(gan_log(), 100, colour=False, encoding="ascii")

    assert told.split() == plain(gan_log(), 100).split()


def test_rich_has_colour() -> None:
    """A colour terminal gets escape sequences, around the same text."""
    assert "\x1b[1;31m-inf" in printed(gan_log(), 100)


def test_rich_falls_back_to_ascii() -> None:
    """A console that shows only ASCII gets the twin of every glyph, and escapes for foreign names."""
    base = gan_log()
    made = report(replace(base.snapshot, symptom=Symptom("gradient", "gewöhnlich")), base.diagnosis)

    assert "gew\\xf6hnlich" in printed(made, 100, encoding="ascii")


def test_plain_for_another_encoding() -> None:
    """What an encoding lacks is spelled as an escape."""
    base = gan_log()
    made = report(replace(base.snapshot, symptom=Symptom("gradient", "gewöhnlich")), base.diagnosis)

    assert "gew\\xf6hnlich" in plain(made, encoding="ascii")
    assert "gewöhnlich" in plain(made)


@pytest.mark.parametrize(
    "origin",
    [
        Origin("log", None),
        Origin("log", ""),
        Origin("log", "fc", source=Source("", 0, "")),
        Origin("log", "fc", source=Source("x.py", 3, "f", code="y = log(x)")),
        Origin("log", "fc", source=Source("x.py", 3, "f", code="y = (", expression="(\n  a")),
    ],
)
def test_missing_parts_are_left_out(origin: Origin) -> None:
    """No source, no expression (an old Python), no example: a shorter report, never a crash."""
    snapshot = Snapshot(0, "loss", Symptom("loss", value=NAN), origin)
    text = plain(report(snapshot, Diagnosis(Cause.LOG_DOMAIN, "likely")))

    assert "None" not in text
    assert "log" in text


def test_nothing_known_is_said() -> None:
    """An origin that is not known is a sentence, not an empty section."""
    assert "its origin is not known" in plain(nothing_known()).splitlines()[0]


def test_the_fixes_end_with_the_entry_of_the_cause() -> None:
    """The catalogue says more about the cause; where none is known there is nothing to read on."""
    known, unknown = REPORTS["sqrt_backward"](), nothing_known()

    assert "       More: nantrace explain singular-gradient\n\nState" in plain(known)
    assert "nantrace explain" not in plain(unknown)


def test_import_is_fast_and_free_of_torch() -> None:
    """Importing the text face loads none of the heavy libraries."""
    heavy = "{'torch', 'rich', 'networkx', 'graphviz', 'jinja2'}"
    code = f"import sys, nantrace.rendering.text; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_full_report_is_tightened_to_one_screen() -> None:
    """Where the story is too long for a screen there is less of each part, and the rest is counted."""
    base = t5_overflow()
    evidence = tuple(f"fact {number}: " + "words " * 18 for number in range(4))
    remedies = tuple(Remedy(f"remedy {number}: " + "words " * 18, "code") for number in range(3))
    text = plain(report(base.snapshot, Diagnosis(Cause.OVERFLOW, "likely", evidence, remedies)))

    assert len(text.splitlines()) <= 40
    assert "1 more suggestion in report.remedies" in text


def test_switches_that_are_off_are_left_out() -> None:
    """Of an optimizer's settings only those that do something are listed."""
    base = REPORTS["optimizer_update"]()
    assert base.snapshot.optimizer is not None
    optimizer = replace(base.snapshot.optimizer, settings={"lr": 0.1, "amsgrad": False, "weight_decay": 0})
    text = plain(report(replace(base.snapshot, optimizer=optimizer), base.diagnosis))

    assert "Adam with lr 0.1.\n" in text
