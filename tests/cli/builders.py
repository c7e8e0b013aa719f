"""A small anomaly written by hand, and a child Python to run commands in."""

from __future__ import annotations

import os
import subprocess
import sys

from nantrace.model import (
    Edge,
    Event,
    Example,
    History,
    Op,
    OperandValue,
    Origin,
    Snapshot,
    Source,
    Status,
    StepRecord,
    Symptom,
    TensorSummary,
)

INF, NAN = float("inf"), float("nan")


def negative_logarithm() -> Snapshot:
    """log(0) in the loss of step 3."""
    p = TensorSummary((8, 10), "float32", "cpu", 0.0, 1.0, 0.1, 0.3, zero=1, negative=0, name="self")
    log_p = TensorSummary((8, 10), "float32", "cpu", -14.0, 0.0, neg_inf=1)
    source = Source("train.py", 12, "loss", "return -torch.log(p).mean()", "torch.log(p)")
    example = Example((2, 7), -INF, (OperandValue("self", "element", (0.0,), (2, 7)),))
    return Snapshot(
        step=3,
        phase="loss",
        symptom=Symptom("loss", value=INF, where="the optimizer SGD was about to step"),
        origin=Origin("log", None, None, "LogBackward0", source, (p,), (log_p,), example, {}, 2, "aten::log.default"),
        path=(2,),
        ops=(
            Op(1, "addmm", "aten::addmm.default", "forward", module="fc", module_type="Linear", outputs=(p,)),
            Op(2, "log", "aten::log.default", "loss", Status.GENERATED, source=source, inputs=(p,), outputs=(log_p,)),
            Op(3, "relu", "aten::relu.default", "forward", module="", outputs=(p,)),
        ),
        edges=(Edge(1, 2, 0),),
        ops_left_out=40,
        modules={"": "Net", "fc": "Linear", "fc.inner": "Linear"},
        history=History(
            steps=(StepRecord(2, 1.5, 0.25, 0.1, 2), StepRecord(3, INF, None, 0.1, 3, 7)),
            events=(
                _event(2, "fc", -1.0, 1.0),
                _event(2, "fc.inner", -5.0, 2.0),
                _event(3, "fc", -2.0, 0.5),
                _event(3, "fc.inner", NAN, NAN),
                _event(3, "", 0.0, 3.0),
            ),
            capacity=2,
            evicted_steps=2,
        ),
    )


def _event(step: int, module: str, low: float, high: float) -> Event:
    return Event(step, 0, "forward", module, 0, 80, "float32", low, high, 0.0, 0.5, True)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a child Python with the same path and these changes to the environment; never fails by itself."""
    changed = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, encoding="utf-8", env=changed, timeout=60
    )
