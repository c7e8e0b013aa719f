"""The harness itself: an edit goes where it belongs, and a run that is not finite is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from nantrace.model import Frame, Remedy

from .applying import edited, losses_of, report_of, trains_on, written
from .programs import of_parameter

LOGARITHM = of_parameter([0.0, 1.0], "p = self.w * 2\nreturn torch.log(p)  # the loss")


def edit(path: Path, line: int, old: str, new: str) -> Remedy:
    return Remedy("", new, replaces=Frame(str(path), line, "forward", old))


def test_an_edit_takes_the_place_of_its_line(tmp_path: Path) -> None:
    """The code stands where the line stood, indented as the line was, be it one line or more."""
    path = written(tmp_path, LOGARITHM)
    line = report_of(path).origin.source.line

    text = edited(path, edit(path, line, "return torch.log(p)  # the loss", "p = p + 1\nreturn p.log()"))

    assert text.splitlines()[line - 2 : line + 1] == [
        "        p = self.w * 2",
        "        p = p + 1",
        "        return p.log()",
    ]


def test_an_edit_for_another_line_is_refused(tmp_path: Path) -> None:
    """The line that an edit replaces must read as the edit says."""
    path = written(tmp_path, LOGARITHM)

    with pytest.raises(AssertionError, match="line 3 is"):
        edited(path, edit(path, 3, "return torch.log(p)", "return p"))


def test_an_edit_that_helps_trains_on_and_one_that_does_not_is_found_out(tmp_path: Path) -> None:
    """Every loss, gradient and parameter of every step counts, not the failing value alone."""
    path = written(tmp_path, LOGARITHM)
    line = report_of(path).origin.source.line
    old = "return torch.log(p)  # the loss"

    assert len(trains_on(path, edit(path, line, old, "return torch.log(p.clamp_min(1e-8))"))) == 4
    with pytest.raises(Exception, match="log"):
        trains_on(path, edit(path, line, old, "return torch.log(p + 0)"))


def test_a_healthy_program_trains(tmp_path: Path) -> None:
    """A program without a fault gives its losses."""
    path = written(tmp_path, of_parameter([1.0, 2.0], "return self.w ** 2"))

    assert losses_of(path) == sorted(losses_of(path), reverse=True)
