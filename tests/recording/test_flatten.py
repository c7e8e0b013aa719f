"""Finding and replacing tensors inside whatever a module takes and returns."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from nantrace.recording.flatten import named_leaves, replace_tensors, tensors_in

A, B, C = torch.ones(1), torch.ones(2), torch.ones(3)
Pair = namedtuple("Pair", "left right")


@dataclass
class Output:
    """A structured output."""

    loss: Any
    rest: Any = None


@dataclass(frozen=True)
class Frozen:
    """One that cannot be written."""

    value: Any


VALUES = [
    (A, [A]),
    ((A, [B, "text"], None, 3), [A, B]),
    ({"x": A, "y": {"z": B}}, [A, B]),
    (OrderedDict(x=A, y=B), [A, B]),
    (Output(A, (B, Output(C))), [A, B, C]),
    (Frozen((A,)), [A]),
    (Pair(A, B), [A, B]),
    ("text", []),
    ([], []),
]


@pytest.mark.parametrize(("value", "expected"), VALUES)
def test_tensors_are_found_in_order(value: Any, expected: list[torch.Tensor]) -> None:
    """Through tuples, lists, mappings, named tuples and dataclasses."""
    found = list(tensors_in(value))

    assert len(found) == len(expected)
    assert all(a is b for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("value", "expected"), VALUES)
def test_replacing_keeps_the_containers(value: Any, expected: list[torch.Tensor]) -> None:
    """The types stay, the tensors change, and the original is left as it was."""
    twin = replace_tensors(value, lambda tensor: tensor + 1)

    assert type(twin) is type(value)
    assert [t.tolist() for t in tensors_in(twin)] == [(t + 1).tolist() for t in expected]
    assert all(a is b for a, b in zip(tensors_in(value), expected, strict=True))


def test_nothing_to_replace_gives_the_same_object() -> None:
    """A value without tensors is not copied."""
    value = {"a": [1, (2, "b")]}

    assert replace_tensors(value, lambda tensor: tensor) is value


def test_leaves_are_named_as_a_user_would_write_them() -> None:
    """`batch['ids'][0].mask`."""
    names = [name for name, _ in named_leaves({"ids": [A, Output(B)]}, torch.Tensor, "batch")]

    assert names == ["batch['ids'][0]", "batch['ids'][1].loss"]


def test_a_container_that_holds_itself_does_not_hang() -> None:
    """A cycle is left alone below a certain depth."""
    value: list[Any] = [A]
    value.append(value)

    assert A in list(tensors_in(value))
    replace_tensors(value, lambda tensor: tensor + 1)
