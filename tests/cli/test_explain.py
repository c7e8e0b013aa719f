"""`nantrace explain`: the catalogue of causes on the command line."""

from __future__ import annotations

import json

import pytest

from nantrace.cli import main
from nantrace.diagnosis.catalogue import MEANING, entry
from nantrace.model import Cause

from .builders import python


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `nantrace explain` prints; it must succeed and say nothing on stderr."""
    assert main(["explain", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What it says on stderr where it cannot answer: exit code 2, nothing on stdout."""
    assert main(["explain", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_alone_it_lists_every_cause(capsys: pytest.CaptureFixture[str]) -> None:
    """One line per cause, with its meaning."""
    lines = printed(capsys).splitlines()

    assert [line.split(maxsplit=1) for line in lines[: len(Cause)]] == [[str(c), MEANING[c]] for c in Cause]


def test_an_entry_is_printed_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    """What it is, how it arises, the example, the fixes as changed lines, how it is recognised, how to run it."""
    page = printed(capsys, "log-domain")

    headings = [line for line in page.splitlines() if line and line[0].isupper() and not line.endswith(".")]
    assert page.startswith("log-domain: logarithm of zero or a negative number\n\nThe logarithm of 0 is -inf")
    assert headings[-4:] == ["How it arises", "Example", "Fixes", "How nantrace recognises it"]
    assert "\n        loss = -torch.log(p).mean()\n" in page
    assert "\n  -     loss = -torch.log(p).mean()\n  +     loss = -nn.functional.logsigmoid(logits).mean()\n" in page
    assert "\n    certain: the operand at the failing element was read" in page
    assert page.endswith("\nnantrace explain log-domain --example > try.py\npython try.py\n")


@pytest.mark.parametrize("width", ["60", "80", "100"])
@pytest.mark.parametrize("cause", list(Cause))
def test_it_fits_its_columns(cause: Cause, width: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No line is longer than the width, and no line of code is cut."""
    page = printed(capsys, str(cause), "--width", width)

    assert max(map(len, page.splitlines())) <= int(width)
    assert all(f"    {line}\n" in page for line in entry(cause).example.splitlines() if line)
    assert all(f"  {line[0]} {line[1:]}\n" in page for fix in entry(cause).fixes for line in fix.change if line)


@pytest.mark.parametrize("width", ["60", "100"])
def test_the_list_fits_its_columns(width: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A meaning that is too long goes on below."""
    assert max(map(len, printed(capsys, "--width", width).splitlines())) <= int(width)


@pytest.mark.parametrize(
    "spelling", [["LOG_DOMAIN"], ["log", "domain"], ["Log Domain"], ["logdomain"], ["Cause.LOG_DOMAIN"]]
)
def test_any_spelling_will_do(spelling: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands in the report, in Python, or as one would say it."""
    assert printed(capsys, *spelling, "--example") == entry(Cause.LOG_DOMAIN).example


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("log-domian", "log-domain"),
        ("devision", "zero-division"),
        ("lr rate", "learning-rate"),
        ("gradients", "singular-gradient or masked-gradient or exploding-gradient"),
    ],
)
def test_an_unknown_cause(wrong: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest is suggested, and how to see them all."""
    said = refused(capsys, wrong)

    assert said == f"nantrace: there is no cause '{wrong}'; did you mean {meant}? `nantrace explain` lists them all\n"


def test_a_cause_like_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is suggested where nothing is near."""
    assert refused(capsys, "xyzzy") == "nantrace: there is no cause 'xyzzy'; `nantrace explain` lists them all\n"


def test_the_cause_of_a_dump(dump: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A dump's path stands for its cause."""
    assert printed(capsys, dump) == printed(capsys, "log-domain")


def test_a_dump_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """A path that ends as dumps do is a path, not a misspelt cause."""
    assert refused(capsys, "none.nantrace").startswith("nantrace: there is no dump ")


def test_only_the_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """--example and --fixed print a program and nothing else."""
    example, fixed = printed(capsys, "pow-domain", "--example"), printed(capsys, "pow-domain", "--fixed")

    assert (example, fixed) == (entry(Cause.POW_DOMAIN).example, entry(Cause.POW_DOMAIN).fixed)
    assert "brighter = image**0.45\n" in example
    assert "brighter = image.clamp_min(1e-6) ** 0.45\n" in fixed


@pytest.mark.parametrize("form", ["--example", "--fixed"])
def test_a_program_of_no_cause(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a cause there is no program to print."""
    assert "say of which cause" in refused(capsys, form)


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """A program gets every field."""
    page = json.loads(printed(capsys, "sqrt-domain", "--json"))

    found = entry(Cause.SQRT_DOMAIN)
    assert set(page) == {"cause", "meaning", "what", "arises", "example", "fixed", "fixes", "recognised"}
    assert (page["cause"], page["example"], page["fixed"]) == ("sqrt-domain", found.example, found.fixed)
    assert page["fixes"][0] == {"text": found.fixes[0].text, "change": list(found.fixes[0].change)}
    assert page["recognised"][0]["rule"] == "sqrt_domain"


def test_the_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Every cause with its meaning."""
    assert {one["cause"]: one["meaning"] for one in json.loads(printed(capsys, "--json"))} == {
        cause.value: meaning for cause, meaning in MEANING.items()
    }


def test_colour_is_asked_for_by_the_environment() -> None:
    """A pipe has no colours, FORCE_COLOR gives them, NO_COLOR takes them away; the lines stay the same."""
    plain = python("-m", "nantrace", "explain", "domain", FORCE_COLOR="", NO_COLOR="", COLUMNS="80")
    forced = python("-m", "nantrace", "explain", "domain", FORCE_COLOR="1", NO_COLOR="", TERM="xterm", COLUMNS="80")
    refused = python("-m", "nantrace", "explain", "domain", FORCE_COLOR="1", NO_COLOR="1", TERM="xterm", COLUMNS="80")

    assert "\x1b" not in plain.stdout
    assert "\x1b[1;36mFixes" in forced.stdout
    assert "36m" not in refused.stdout
    assert len(forced.stdout.splitlines()) == len(plain.stdout.splitlines())
