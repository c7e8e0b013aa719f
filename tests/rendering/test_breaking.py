"""Code that is too long for a line: broken where Python allows it, so that what is taken over runs."""

from __future__ import annotations

import ast

import pytest

from nantrace.rendering.breaking import broken
from nantrace.rendering.harmless import cells

LONG = {
    "a call": "factor = torch.where(theta > 0, torch.sin(theta / 2) / torch.where(theta > 0, theta, 1.0), 0.5)",
    "a string with spaces": 'print("a b c d e f g h i j", first, "k l m n o p q r s t u v w", second, third, fourth)',
    "arithmetic": "out = (first_operand * second_operand + third_operand * fourth_operand - fifth_operand) / sixth",
}


@pytest.mark.parametrize("code", LONG.values(), ids=LONG)
def test_broken_code_means_the_same(code: str) -> None:
    """Every line fits, and together they are the statement that was broken."""
    lines = broken(code, 40)

    assert len(lines) > 1
    assert max(map(cells, lines)) <= 40
    assert ast.dump(ast.parse("\n".join(lines))) == ast.dump(ast.parse(code))


@pytest.mark.parametrize("code", ["x = 1", "total = first_operand_of_all + second_operand + third_operand + fourth"])
def test_code_that_fits_or_has_no_brackets_stays_one_line(code: str) -> None:
    """A statement outside brackets would end with its line."""
    assert broken(code, 40) == [code]
