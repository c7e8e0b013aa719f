"""For every test: one thread, a known random state, nothing of ours left behind, and no fault of our own in the log."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from nantrace.diagnosis.rules import RULES

from .keeping_word import keeping_its_word
from .traces_left import traces_left


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests of tiny tensors are faster on one thread, and bit-identical on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def known_seed() -> None:
    """Every test begins with the same random streams."""
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No hook, patch or dispatch mode of ours outlives a test."""
    yield
    assert traces_left() == []


@pytest.fixture(autouse=True)
def rules_keep_their_word(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a rule finds in any test is what it declares, and is as sure as its docstring says it can be."""
    broken: list[str] = []
    monkeypatch.setattr("nantrace.diagnosis.RULES", tuple(keeping_its_word(rule, broken) for rule in RULES))
    yield
    assert broken == []


@pytest.fixture(autouse=True)
def no_fault_of_ours(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A fault of our own is logged and swallowed in a training run; in a test it is a failure."""
    yield
    messages = [record.getMessage() for record in caplog.get_records("call") if record.name == "nantrace"]
    assert [message for message in messages if message.startswith("nantrace:")] == []
