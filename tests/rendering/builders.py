"""Short ways to write snapshots by hand: a tensor, an op, a line of code, a report."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from nantrace.model import Diagnosis, Edge, Frame, Op, Snapshot, Source, Status, TensorSummary
from nantrace.report import Report

NAN, INF = float("nan"), float("inf")
REFUSED = "the optimizer Adam was about to step; its update was refused, the weights are as they were before the step"


def report(snapshot: Snapshot, diagnosis: Diagnosis) -> Report:
    """A report whose diagnosis is given instead of concluded."""
    made = Report(snapshot)
    made.__dict__["diagnosis"] = diagnosis
    return made


def tensor(shape: tuple[int, ...], dtype: str = "float32", **facts: Any) -> TensorSummary:
    """A tensor on the CPU."""
    return TensorSummary(shape, dtype, "cpu", **facts)


def line(file: str, number: int, code: str, expression: str = "", function: str = "train", **more: Any) -> Source:
    """A line of the user's program, with one frame of stack."""
    frame = Frame(f"/home/me/run/{file}", number, function, code, expression)
    return Source(frame.file, number, function, code, expression, stack=(frame,), **more)


def chain(ops: tuple[Op, ...]) -> tuple[Edge, ...]:
    """Every op reads the result of the one before it."""
    return tuple(Edge(up.id, down.id, 0) for up, down in pairwise(ops))


def op(number: int, name: str, phase: str, status: Status = Status.CLEAN, *details: Any, **more: Any) -> Op:
    """One op, with ATen's name made of the plain one."""
    return Op(number, name, f"aten::{name}.default", phase, status, *details, **more)
