"""Values born of size: a learning rate that diverges, float16 that overflows."""

from __future__ import annotations

from dataclasses import replace

from nantrace.model import (
    Cause,
    Diagnosis,
    Example,
    History,
    OperandValue,
    OptimizerFacts,
    Origin,
    Remedy,
    ReplayFacts,
    Snapshot,
    Status,
    StepRecord,
    Symptom,
)
from nantrace.report import Report

from .builders import INF, NAN, REFUSED, chain, line, op, report, tensor


def diverging() -> Report:
    """A learning rate far too high: the loss grows for steps, then a square overflows."""
    source = line("train.py", 30, "loss = ((model(x) - y) ** 2).mean()", "(model(x) - y) ** 2")
    error = tensor((64, 1), min=-3.1e19, max=4.4e19, name="self")
    result = tensor((64, 1), min=1e36, max=3.2e38, pos_inf=7)
    ops = (
        op(
            4,
            "pow",
            "loss",
            Status.GENERATED,
            source=source,
            inputs=(error,),
            outputs=(result,),
            autograd_node="PowBackward0",
        ),
        op(5, "mean", "loss", Status.PROPAGATED, source=source, inputs=(result,), outputs=(tensor((), pos_inf=1),)),
    )
    losses = (2.31, 8.9, 310.0, 4.1e7, 2.2e19, 7.7e32, INF)
    steps = tuple(StepRecord(step, loss, loss**0.5, 0.5, 20) for step, loss in enumerate(losses, start=31))
    example = Example(
        (11, 0), INF, (OperandValue("self", "element", (4.4e19,), (11, 0)), OperandValue("exponent", "element", (2.0,)))
    )
    origin = Origin("pow", None, None, "PowBackward0", source, (error,), (result,), example, id=4)
    snapshot = Snapshot(
        step=37,
        phase="loss",
        symptom=Symptom("loss", value=INF, where=REFUSED),
        origin=origin,
        path=(4, 5),
        ops=ops,
        edges=chain(ops),
        history=History(steps, (), 64),
        replay=ReplayFacts(
            False, ("the parameters changed since the step ran", "the batch was changed in place"), 40, 0.05
        ),
        optimizer=OptimizerFacts("SGD", {"lr": 0.5}),
    )
    remedies = (
        Remedy(
            "lower the learning rate by a factor of 100 or more", "torch.optim.SGD(model.parameters(), lr=5e-3)", True
        ),
        Remedy("warm the learning rate up over the first 100 steps"),
    )
    evidence = (
        "The loss grew by a factor of 2.9e+13 over 6 recorded steps before anything overflowed.",
        "One update changes the weights by 41% of their norm (healthy: below 1%).",
    )
    return report(snapshot, Diagnosis(Cause.LEARNING_RATE, "likely", evidence, remedies, (Cause.OVERFLOW,)))


def t5_overflow() -> Report:
    """T5 in half precision: the feed-forward's wo leaves the range of float16; a long path."""
    source = line("modeling_t5.py", 93, "hidden_states = self.wo(hidden_states)", "self.wo(hidden_states)", "forward")
    owner = "encoder.block.5.layer.1.DenseReluDense.wo"
    row = tensor((64, 512), "float16", min=0.0, max=13200.0, name="self")
    weight = tensor((512, 128), "float16", min=-4.2, max=5.6, name="mat2", label=f"parameter {owner}.weight")
    result = tensor((64, 128), "float16", min=-61000.0, max=64992.0, pos_inf=3, neg_inf=1)
    ops = [
        op(
            100,
            "relu",
            "forward",
            module="encoder.block.5.layer.1.DenseReluDense.act",
            module_type="ReLU",
            outputs=(row,),
        ),
        op(
            101,
            "mm",
            "forward",
            Status.GENERATED,
            owner,
            "Linear",
            "MmBackward0",
            None,
            source,
            (row, weight),
            (result,),
        ),
    ]
    bad = tensor((64, 128), "float16", nan=8192)
    parts = (
        ("layer_norm", "T5LayerNorm"),
        ("SelfAttention.q", "Linear"),
        ("SelfAttention", "T5Attention"),
        ("DenseReluDense.wi", "Linear"),
    )
    for number in range(24):
        part, kind = parts[number % 4]
        path = f"decoder.block.{number // 8}.layer.{number % 8 // 4}.{part}"
        held = replace(result, shape=(64, 128)) if number < 2 else bad
        name = ("add", "mean", "mm", "softmax")[number % 4]
        ops.append(
            op(
                102 + number,
                name,
                "forward",
                Status.PROPAGATED,
                path,
                kind,
                outputs=(held,),
                source=line("modeling_t5.py", 100 + number, f"x = self.{part}(x)", f"self.{part}(x)", "forward"),
            )
        )
    ops.append(
        op(
            126,
            "nll_loss",
            "forward",
            Status.PROPAGATED,
            "",
            "T5ForConditionalGeneration",
            outputs=(tensor((), "float16", nan=1),),
        )
    )
    row_values = OperandValue(
        "self",
        "row",
        (13200.0, 0.0, 811.0, *[0.0] * 61),
        None,
        tensor((512,), "float16", min=0.0, max=13200.0, zero=498),
    )
    column = OperandValue(
        "mat2", "column", (5.1, -0.3, 0.7, *[0.1] * 61), None, tensor((512,), "float16", min=-1.2, max=5.6)
    )
    origin = Origin(
        "mm",
        owner,
        "Linear",
        "MmBackward0",
        source,
        (row, weight),
        (result,),
        Example((7, 33), INF, (row_values, column)),
        id=101,
    )
    snapshot = Snapshot(
        step=0,
        phase="forward",
        symptom=Symptom(
            "loss",
            value=NAN,
            where=REFUSED,
        ),
        origin=origin,
        path=tuple(range(101, 127)),
        ops=tuple(ops),
        edges=chain(tuple(ops)),
        ops_left_out=2210,
        modules={op.module or "": op.module_type or "" for op in ops},
        replay=ReplayFacts(True, ops=2337, seconds=1.9),
    )
    remedies = (
        Remedy(
            "run wo in float32 (transformers keeps it there by _keep_in_fp32_modules)",
            "model.encoder.block[5].layer[1].DenseReluDense.wo.float()",
            True,
        ),
        Remedy(
            "use bfloat16 instead of float16: its range is that of float32",
            "T5ForConditionalGeneration.from_pretrained(..., torch_dtype=torch.bfloat16)",
        ),
    )
    evidence = (
        "The largest finite float16 is 65504; the exact sum of the products at [7, 33] is 67320.",
        "4 of 8192 elements left the range.",
    )
    return report(snapshot, Diagnosis(Cause.OVERFLOW, "certain", evidence, remedies))
