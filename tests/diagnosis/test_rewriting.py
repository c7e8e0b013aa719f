"""Remedies written into the user's own line."""

from __future__ import annotations

import pytest

from nantrace.diagnosis.rewriting import atom, call_of, rewritten
from nantrace.model import Origin

from .builders import source


def at(op: str, code: str, expression: str = "") -> Origin:
    return Origin(op, "net", source=source(code, expression))


@pytest.mark.parametrize(
    ("op", "code", "expression", "position", "expected"),
    [
        ("log", "loss = torch.log(p).mean()", "", 0, "loss = torch.log(p.clamp_min(1)).mean()"),
        ("log", "loss = p.log().mean()", "", 0, "loss = p.clamp_min(1).log().mean()"),
        ("log", "loss = torch.log(1 - p)", "", 0, "loss = torch.log((1 - p).clamp_min(1))"),
        ("log", "loss = (1 - p).log()", "", 0, "loss = (1 - p).clamp_min(1).log()"),
        ("log", "g = -torch.log(-torch.log(u))", "torch.log(u)", 0, "g = -torch.log(-torch.log(u.clamp_min(1)))"),
        ("div", "return a / b.sum(1)", "", 1, "return a / b.sum(1).clamp_min(1)"),
        ("div", "return a / (b - c)", "", 1, "return a / ((b - c).clamp_min(1))"),
        ("div", "if (a / b).any():", "", 1, "if (a / b.clamp_min(1)).any():"),
        ("pow", "y = x ** w", "", 0, "y = x.clamp_min(1) ** w"),
    ],
)
def test_the_operand_is_edited_where_it_stands(
    op: str, code: str, expression: str, position: int, expected: str
) -> None:
    """Function, method and operator forms; the exact expression decides between two of a kind."""
    new = rewritten(at(op, code, expression), position, "{}.clamp_min(1)", "generic")

    assert compile(new.removeprefix("return ") + (" pass" if new.endswith(":") else ""), "line", "exec")
    assert new.replace("((", "(").replace("))", ")") == expected.replace("((", "(").replace("))", ")")


@pytest.mark.parametrize(
    ("op", "code"),
    [
        ("log", "g = -torch.log(-torch.log(u))"),
        ("log", "loss = criterion(p, target)"),
        ("log", "loss = torch.log(p,"),
        ("log", ""),
    ],
    ids=["two places", "not there", "does not parse", "no line"],
)
def test_a_line_that_is_not_understood_is_left_alone(op: str, code: str) -> None:
    """Never the first of several places, never a guess: the generic snippet is shown."""
    assert call_of(at(op, code)) is None
    assert rewritten(at(op, code), 0, "{}.clamp_min(1)", "generic") == "generic"


@pytest.mark.parametrize(
    ("text", "expected"), [("x", "x"), ("a.b[0]", "a.b[0]"), ("f(x)", "f(x)"), ("a - b", "(a - b)")]
)
def test_only_compound_operands_get_parentheses(text: str, expected: str) -> None:
    """An attribute can follow a name, a call or a subscript as it stands."""
    assert atom(text) == expected
