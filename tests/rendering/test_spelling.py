"""The user's own words for operands, only where they are certain."""

from __future__ import annotations

import pytest

from nantrace.rendering.spelling import operand_names


@pytest.mark.parametrize(
    ("expression", "op", "names"),
    [
        ("torch.log(1.0 - fake)", "log", {"self": "(1.0 - fake)"}),
        ("x.log()", "log", {"self": "x"}),
        ("a / b.sum()", "div", {"self": "a", "other": "b.sum()"}),
        ("x @ self.weight", "mm", {"self": "x", "mat2": "self.weight"}),
        ("self.log(x)", "log", {}),
        ("F.cross_entropy(out, y)", "log_softmax", {}),
        ("x ** 0.5", "pow", {"self": "x"}),
        ("broken (", "log", {}),
        ("", "log", {}),
    ],
)
def test_operand_names(expression: str, op: str, names: dict[str, str]) -> None:
    """A name is given only when the expression is the call of that very op."""
    assert operand_names(expression, op) == names
