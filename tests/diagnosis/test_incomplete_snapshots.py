"""Rules meet snapshots in which anything may be missing: none may raise, none may claim certainty without values."""

from __future__ import annotations

import random

import pytest

from nantrace.diagnosis import diagnose
from nantrace.model import (
    BadSource,
    Cause,
    Edge,
    Example,
    ExceptionFacts,
    History,
    IndexFacts,
    OperandValue,
    OptimizerFacts,
    Origin,
    ReplayFacts,
    Snapshot,
    StepRecord,
    Symptom,
    TensorSummary,
)

from .builders import INF, NAN, event, op, source, tensor

# fmt: off
OPS = (
    "log", "log1p", "xlogy", "logit", "logdet", "div", "reciprocal", "rsqrt", "pow", "sqrt", "acos", "atanh",
    "acosh", "erfinv", "lgamma", "exp", "mul", "add", "sub", "rsub", "mm", "addmm", "bmm", "sum", "mean", "std",
    "norm", "softmax", "log_softmax", "logsumexp", "nll_loss", "mse_loss", "ctc_loss", "index", "embedding",
    "convolution", "to_copy", "layer_norm", "batch_norm", "hypot", "linalg_eigh", "scaled_dot_product_attention",
    "where", "cat", "adam", "sgd", "mystery",
)
# fmt: on
NAMES = ("self", "other", "input", "weight", "mat1", "mat2", "target", "exponent", "grad", "exp_avg_sq", "param")
KINDS = ("element", "slice", "row", "column", "index", "read", "state")
NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 1e-12, 1e-320, 1e38, -1e38, 1e300, 65504.0, 1e9, INF, -INF, NAN)
DTYPES = ("float16", "bfloat16", "float32", "float64", "int64", "bool", "complex64", "float8_e4m3fn", "quint8")
LINES = ("y = torch.log(x)", "return a / b", "loss = criterion(", "", "y = (a\n / b)", "ä = x.log()", "lambda: x ** 2")


def some(draw: random.Random, of: tuple[object, ...], most: int) -> list[object]:
    return [draw.choice(of) for _ in range(draw.randint(0, most))]


def summary(draw: random.Random) -> TensorSummary:
    if draw.random() < 0.2:
        return TensorSummary((0, 3) if draw.random() < 0.5 else (), draw.choice(DTYPES), "cpu", name=draw.choice(NAMES))
    values = [draw.choice(NUMBERS) for _ in range(draw.randint(1, 4))]
    return tensor(*values, name=draw.choice(NAMES), dtype=draw.choice(DTYPES))


def operand(draw: random.Random) -> OperandValue:
    values = tuple(draw.choice(NUMBERS) for _ in range(draw.choice((0, 1, 1, 1, 3))))
    index = draw.choice((None, (), (3,), (0, 2)))
    return OperandValue(
        draw.choice(NAMES), draw.choice(KINDS), values, index, summary(draw) if draw.random() < 0.3 else None
    )


def incomplete(draw: random.Random) -> Snapshot:
    """A snapshot in which everything is drawn, and much is missing."""
    arguments = {
        name: draw.choice((*NUMBERS, None, True, "mean", [1])) for name in ("dim", "eps", "other", "exponent", "max")
    }
    origin = Origin(
        draw.choice(OPS),
        draw.choice((None, "", "net.head")),
        source=draw.choice((None, source(draw.choice(LINES)), source(draw.choice(LINES), draw.choice(LINES)))),
        inputs=tuple(summary(draw) for _ in range(draw.randint(0, 3))),
        outputs=tuple(summary(draw) for _ in range(draw.randint(0, 2))),
        example=Example(
            draw.choice(((), (3,), (0, 2))),
            draw.choice(NUMBERS),
            tuple(operand(draw) for _ in range(draw.randint(0, 3))),
        )
        if draw.random() < 0.7
        else None,
        arguments=arguments if draw.random() < 0.5 else {},
        id=draw.choice((None, 1, 3, 99)),
        derivative=draw.random() < 0.4,
        derivative_aten=draw.choice(("", "aten::div.Tensor", "aten::mul.Tensor", "nonsense")),
    )
    steps = tuple(
        StepRecord(i, draw.choice((None, *NUMBERS)), draw.choice((None, *NUMBERS)), draw.choice((None, 0.0, 0.1, NAN)))
        for i in range(draw.randint(0, 6))
    )
    events = tuple(
        event(draw.randint(0, 6), draw.choice(NUMBERS), kind=draw.choice(("forward", "gradient"))) for _ in range(6)
    )
    ops = tuple(
        op(
            i,
            draw.choice(OPS),
            [summary(draw) for _ in range(draw.randint(0, 2))],
            [summary(draw) for _ in range(draw.randint(0, 2))],
            arguments,
            draw.choice(("forward", "loss", "backward", "optimizer")),
            forward_id=draw.choice((None, 1, 77)),
        )
        for i in range(draw.randint(0, 6))
    )
    return Snapshot(
        step=5,
        phase=draw.choice(("input", "forward", "loss", "backward", "optimizer", "parameters")),
        symptom=Symptom(
            draw.choice(("loss", "gradient", "parameter", "result", "exception")), value=draw.choice((None, NAN))
        ),
        origin=origin if draw.random() < 0.9 else None,
        ops=ops,
        edges=tuple(
            Edge(draw.randint(0, 5), draw.randint(0, 5), draw.randint(0, 2)) for _ in range(draw.randint(0, 8))
        ),
        history=History(steps, events if draw.random() < 0.5 else (), 8, draw.choice((0, 3))),
        replay=ReplayFacts(draw.choice((None, True, False)), ("a tensor changed in place",), draw.choice((0, 5))),
        source_value=BadSource(draw.choice(("input", "label", "parameter", "buffer")), "x", summary(draw), (0,), NAN)
        if draw.random() < 0.2
        else None,
        index=IndexFacts(draw.choice(OPS), "target", draw.randint(-3, 9), (0,), 0, 5, 1)
        if draw.random() < 0.1
        else None,
        optimizer=OptimizerFacts(
            draw.choice(("Adam", "SGD", "Mine")), {"lr": draw.choice(NUMBERS), "eps": draw.choice(NUMBERS)}
        )
        if draw.random() < 0.5
        else None,
        exception=ExceptionFacts("IndexError", draw.choice(("", "index out of range in self", "what")))
        if draw.random() < 0.1
        else None,
    )


@pytest.mark.parametrize("seed", range(6))
def test_no_rule_raises(seed: int) -> None:
    """Whatever is missing, there is a diagnosis in the contract's words (a rule that raised would be in the log)."""
    draw = random.Random(seed)
    for _ in range(400):
        diagnosis = diagnose(incomplete(draw))

        assert diagnosis.confidence in ("certain", "likely", "undetermined")
        assert (diagnosis.cause is Cause.UNDETERMINED) == (diagnosis.confidence == "undetermined")
        assert diagnosis.evidence and all(isinstance(sentence, str) and sentence for sentence in diagnosis.evidence)
        assert len(diagnosis.remedies) <= 4
