"""Snapshots written by hand, and dumps put together member by member."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from nantrace.model import (
    BadSource,
    Change,
    Edge,
    Event,
    Example,
    ExceptionFacts,
    Expected,
    Frame,
    History,
    IndexFacts,
    LossTerm,
    Op,
    OperandValue,
    OptimizerFacts,
    Origin,
    ReplayFacts,
    Snapshot,
    Source,
    Status,
    StepRecord,
    Symptom,
    TensorSummary,
    Trial,
)

NAN, INF = float("nan"), float("inf")


def small() -> Snapshot:
    """The least that a snapshot can be."""
    return Snapshot(step=0, phase="loss", symptom=Symptom("loss"))


def event(step: int = 0, order: int = 0, module: str = "fc", **facts: Any) -> Event:
    """One recorded output."""
    facts = {"numel": 12, "min": -1.5, "max": 2.0, "mean": 0.25, "rms": 0.75, "finite": True, **facts}
    return Event(step, order, "forward", module, 0, dtype="float32", **facts)


def full() -> Snapshot:
    """A snapshot that uses every class of the model, with numbers that JSON cannot spell."""
    frames = (Frame("train.py", 3, "main", "fit()"), Frame("\u00fcber.py", 9, "loss", "x = a.log()", "a.log()"))
    context = ((8, "def loss(a):"), (9, "    x = a.log()"))
    source = Source("train.py", 9, "loss", "x = a.log()", "a.log()", frames, context)
    summary = TensorSummary((2, 3), "float32", "cpu", 0.0, 1.5, 0.1, 0.2, 1, 2, 3, 4, 5, "self", "parameter fc.weight")
    operands = (
        OperandValue("self", "slice", (NAN, -INF, -0.0, 1e-320, 2**60 + 1), None, summary),
        OperandValue("other", "element", (0.5,), (1, 2)),
    )
    origin = Origin(
        "log", "fc", "Linear", "LogBackward0", source, (summary,), (summary,), Example((0, 2), -INF, operands),
        {"dim": (0, 1), "keepdim": False, "eps": NAN}, 7, "aten::log.default", True, "aten::div.Tensor",
    )  # fmt: skip
    ops = (
        Op(
            6, "mm", "aten::mm.default", "forward", Status.CLEAN, "fc", "Linear", "MmBackward0", None, source,
            (summary, summary), (summary,), {"dims": (1, -1)},
        ),
        Op(7, "log", "aten::log.default", "loss", Status.GENERATED, source=source, inputs=(summary,), forward_id=6),
    )  # fmt: skip
    settings = {"lr": 1e-3, "betas": (0.9, 0.999), "foreach": None}
    optimizer = OptimizerFacts("Adam", settings, "fc.weight", "float16", operands, "exp_avg", 0, 64)
    history = History(
        steps=(StepRecord(0, 1.25, 3.5, 0.1, 2, 0, 9.5), StepRecord(1, NAN, None, None, 1, 4)),
        events=(event(0, 0), event(0, 1, "fc.\u03b2", min=NAN, max=NAN, finite=False), event(1, 0, "", rms=INF)),
        capacity=100,
        evicted_steps=17,
    )
    made = Frame("model.py", 4, "__init__", "self.fc = nn.Linear(4, 4)")
    return Snapshot(
        step=1,
        phase="loss",
        symptom=Symptom("loss", "fc.weight", summary, NAN, "the optimizer Adam was about to step", True),
        origin=origin,
        path=(6, 7),
        ops=ops,
        edges=(Edge(6, 7, 0), Edge(6, 7, 1, 2)),
        ops_left_out=3,
        modules={"": "Net", "fc": "Linear"},
        history=history,
        replay=ReplayFacts(False, ("other random numbers",), 12, 0.25, ("a tensor changed in place",), ("state",)),
        source_value=BadSource("input", "x", summary, (0, 1), NAN, "", 0, made),
        index=IndexFacts("embedding", "indices", -1, (0, 3), 0, 10, 2, (10, 4), -1, 9, made),
        optimizer=replace(optimizer, made=made),
        exception=ExceptionFacts("IndexError", "index out of range in self"),
        expected=(Expected("a mask of -inf", "declared", 2),),
        also=(origin,),
        trials=(Trial(Change("clamp", 4, "self", (1e-8, INF), "log"), False, "still not finite"),),
        terms=(LossTerm("kl", INF, 0.5, NAN, source, 3),),
        environment={"torch": "2.13.0", "rank": 0, "threads": 2, "$odd": [1, {"deep": INF}]},
    )


def members_of(path: Path) -> dict[str, bytes]:
    """The members of a dump, to be changed and put together again."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def put_together(path: Path, members: dict[str, bytes]) -> Path:
    """A dump of these members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def edited(content: bytes, **changes: Any) -> bytes:
    """A JSON member with some keys of its outermost object changed."""
    return json.dumps({**json.loads(content), **changes}).encode()
