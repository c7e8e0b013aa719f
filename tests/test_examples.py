"""Each example, run as a user runs it, ends with a report on screen that names the right op and cause."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import nantrace

EXAMPLES = Path(__file__).parents[1] / "examples"

# example -> what the report says: the op, where it ran, the cause
EXPECTED = {
    "bad_label": ("mse_loss", "outside every watched module", "bad-label"),
    "bad_parameter": ("sigmoid", "1 (Gate)", "bad-parameter"),
    "empty_reduction": ("nll_loss", "outside every watched module", "empty-reduction"),
    "exploding_gradient": ("mul", "cell (Cell)", "exploding-gradient"),
    "index_out_of_range": ("embedding", "words (Embedding)", "indexing"),
    "learning_rate": ("mse_loss", "outside every watched module", "learning-rate"),
    "log_of_zero": ("log", "outside every watched module", "log-domain"),
    "masked_gradient": ("log", "the root module (Attention)", "masked-gradient"),
    "masked_softmax": ("softmax", "attention (Attention)", "masked-softmax"),
    "nan_input": ("batch_norm", "norm (BatchNorm1d)", "bad-input"),
    "overflow_softmax": ("exp", "the root module (Matcher)", "overflow"),
    "pow_of_negative": ("pow", "curve (Curve)", "pow-domain"),
    "precision": ("adam", "0 (Embedding)", "precision"),
    "sqrt_gradient_at_zero": ("sqrt", "outside every watched module", "singular-gradient"),
    "sqrt_of_negative": ("sqrt", "pool (StatisticsPooling)", "sqrt-domain"),
    "zero_division": ("div", "means (ClassMeans)", "zero-division"),
}


def run(example: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(nantrace.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    command = [sys.executable, str(EXAMPLES / f"{example}.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


@pytest.fixture(scope="module")
def finished() -> dict[str, subprocess.CompletedProcess[str]]:
    """Every example, run once; most of their time is the import of torch, so several run at a time."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(EXPECTED, pool.map(run, EXPECTED), strict=True))


def where_of(text: str) -> str:
    """The paragraph of the report that says where it was, on one line."""
    paragraph = text[text.index("\nWhere ") :].split("\nWhy ")[0]
    return " ".join(paragraph.split())


@pytest.mark.parametrize("example", sorted(EXPECTED))
def test_an_example_ends_with_its_report(example: str, finished: dict[str, subprocess.CompletedProcess[str]]) -> None:
    """The program fails with the report: op, module and cause stand in it, and the exit code is 1."""
    op, module, cause = EXPECTED[example]
    ended = finished[example]

    assert ended.returncode == 1
    assert ended.stdout == ""
    where = where_of(ended.stderr)
    assert where.startswith(f"Where op {op}")
    assert module in where
    assert f"\nWhy    {cause} (" in ended.stderr
    assert f"{example}.py:" in ended.stderr


def test_every_example_is_run() -> None:
    """No example is left out of the table above."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_to_see(path: Path) -> None:
    """At most 40 lines, with a docstring that says what a user sees, and nothing is caught."""
    text = path.read_text(encoding="utf-8")

    assert len(text.splitlines()) <= 40
    assert text.startswith('"""')
    assert "What you see:" in text
    assert "except" not in text
