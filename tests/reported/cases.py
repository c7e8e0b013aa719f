"""What a program modelled after a public report is, and what the report on it must say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

import nantrace


@dataclass(frozen=True)
class Training:
    """A training run: what is watched, one step of it, and how many steps there are."""

    watched: tuple[nn.Module, ...]
    step: Callable[[int], Tensor | None]
    steps: int = 4

    def run(self) -> list[Tensor | None]:
        """All steps, and what each gave back (its loss)."""
        return [self.step(i) for i in range(self.steps)]


@dataclass(frozen=True)
class Birth:
    """Where the first non-finite value is born and why. A tuple holds all the answers that an expert accepts."""

    step: int | tuple[int, ...]
    phase: str | tuple[str, ...]
    op: str | tuple[str, ...]
    module: str | tuple[str | None, ...] | None  # None: outside every watched module
    line: str | tuple[str, ...]  # a part of the line's text
    cause: str | tuple[str, ...]
    remedy: str | tuple[str, ...]  # a word of the advice

    def misses(self, report: nantrace.Report) -> dict[str, tuple[Any, Any]]:
        """The fields in which a report says something else: expected and found."""
        found = said_by(report)
        return {
            each.name: (getattr(self, each.name), found[each.name])
            for each in fields(self)
            if not _accepts(each.name, getattr(self, each.name), found[each.name])
        }


@dataclass(frozen=True)
class Failure:
    """A program that fails, and the birth of its first non-finite value."""

    build: Callable[[], Training]
    birth: Birth
    error: type[Exception] = nantrace.NumericalAnomaly  # what leaves the watched block
    missing: str = ""  # what nantrace cannot do yet, in a sentence

    @property
    def name(self) -> str:
        return self.build.__name__


@dataclass
class Programs:
    """The programs of this folder, in the order of their definition."""

    failures: list[Failure] = field(default_factory=list)
    innocent: list[Callable[[], Training]] = field(default_factory=list)


PROGRAMS = Programs()


def failure(
    *, error: type[Exception] = nantrace.NumericalAnomaly, missing: str = "", **birth: Any
) -> Callable[..., Callable[[], Training]]:
    """Register a program that fails; the other keywords are those of `Birth`."""

    def register(build: Callable[[], Training]) -> Callable[[], Training]:
        PROGRAMS.failures.append(Failure(build, Birth(**birth), error, missing))
        return build

    return register


def innocent(build: Callable[[], Training]) -> Callable[[], Training]:
    """Register a program whose infinities and NaNs are meant or harmless."""
    PROGRAMS.innocent.append(build)
    return build


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """The usual end of a training step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def said_by(report: nantrace.Report) -> dict[str, Any]:
    """The fields of a `Birth` as a report states them."""
    origin = report.origin
    source = origin.source if origin is not None else None
    return {
        "step": report.step,
        "phase": report.phase,
        "op": origin.op if origin is not None else None,
        "module": origin.module if origin is not None else None,
        "line": source.code if source is not None else None,
        "cause": str(report.cause),
        "remedy": " ".join(f"{remedy.text} {remedy.code or ''}" for remedy in report.remedies).lower(),
    }


def _accepts(name: str, expected: Any, found: Any) -> bool:
    accepted = expected if isinstance(expected, tuple) else (expected,)
    if name in ("line", "remedy"):
        return found is not None and any(part in found for part in accepted)
    return found in accepted
