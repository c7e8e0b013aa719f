"""The 26 publicly reported failures, as the snapshots that a trace of them gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nantrace.diagnosis import diagnose
from nantrace.model import (
    BadSource,
    Cause,
    Edge,
    Example,
    OperandValue,
    OptimizerFacts,
    Origin,
    Snapshot,
    Symptom,
)

from .builders import (
    INF,
    NAN,
    derivative,
    element,
    event,
    history,
    many,
    op,
    pointwise,
    record_of,
    remedy_text,
    snapshot,
    source,
    tensor,
)

STEADY = history([2.3, 2.2, 2.4, INF], [1.0, 1.1, 0.9, None], lr=1e-4)


def half_precision_linear() -> Snapshot:
    row, column = [8000.0, 6000.0, 7000.0], [12.0, -1.0, 3.0]
    origin = Origin(
        op="mm",
        module="encoder.block.1.ff.wo",
        source=source("return self.wo(h)", "self.wo(h)"),
        inputs=(tensor(*row, name="self", dtype="float16"), tensor(*column, name="mat2", dtype="float16")),
        outputs=(tensor(1.0, INF, name="", dtype="float16"),),
        example=Example((0, 1), INF, (many("row", "self", row, "float16"), many("column", "mat2", column, "float16"))),
        id=10,
    )
    activations = [event(step, value) for step, value in enumerate([1.0, 1.1, 0.9, 8000.0])]
    return snapshot(origin, step=3, history=history([2.3, 2.2, 2.4, INF], events=activations, lr=1e-4))


def coupling_exp() -> Snapshot:
    return snapshot(pointwise("exp", INF, code="b = b * torch.exp(log_s) + t", self=170.0), history=STEADY)


def softmax_by_hand() -> Snapshot:
    return snapshot(pointwise("exp", INF, code="e = torch.exp(scores)", self=2400.0), history=STEADY)


def saturated_discriminator() -> Snapshot:
    origin = pointwise("log", -INF, code="torch.log(1.0 - fake).mean()", self=0.0)
    sigmoid = op(7, "sigmoid", [tensor(40.0)], [tensor(0.3, 1.0, name="")])
    rsub = op(8, "rsub", [tensor(0.3, 1.0)], [tensor(0.7, 0.0, name="")], {"other": 1.0})
    return snapshot(origin, "loss", ops=(sigmoid, rsub, record_of(origin)), edges=(Edge(7, 8, 0), Edge(8, 10, 0)))


def gumbel_noise() -> Snapshot:
    return snapshot(pointwise("log", -INF, code="g = -torch.log(-torch.log(u))", self=0.0))


def iou_without_overlap() -> Snapshot:
    return snapshot(pointwise("log", -INF, code="return -torch.log(inter / union)", self=0.0), "loss")


def empty_sample() -> Snapshot:
    origin = pointwise("div", NAN, code="return total / mask.sum(1)", self=0.0, other=0.0)
    return snapshot(origin)


def all_labels_ignored() -> Snapshot:
    target = tensor(*[-100.0] * 12, name="target", dtype="int64")
    origin = Origin(
        op="nll_loss",
        module=None,
        inputs=(tensor(-3.0, -1.0, name="self"), target),
        outputs=(tensor(NAN, name="", shape=()), tensor(0.0, name="")),
        example=Example((), NAN),
        arguments={"ignore_index": -100, "reduction": 1},
        source=source("loss = criterion(logits.flatten(0, 1), labels.flatten())"),
    )
    return snapshot(origin, "loss")


def adam_in_half_precision() -> Snapshot:
    state = [("param", 0.25), ("grad", 0.0), ("exp_avg", 0.0), ("exp_avg_sq", 0.0)]
    operands = tuple(OperandValue(name, "state", (value,), (20, 0)) for name, value in state)
    origin = Origin("adam", "embed", source=source("opt.step()"), example=Example((20, 0), NAN, operands))
    facts = OptimizerFacts("Adam", {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}, "embed.weight", "float16")
    return snapshot(origin, "optimizer", optimizer=facts, symptom=Symptom("parameter", "embed.weight"))


def layer_norm_eps() -> Snapshot:
    origin = pointwise("div", NAN, "float16", "x = (x - u) / torch.sqrt(s + self.eps)", self=0.0, other=0.0)
    added = op(
        8, "add", [tensor(0.0, 0.5, dtype="float16")], [tensor(0.0, 0.5, name="", dtype="float16")], {"other": 1e-12}
    )
    root = op(9, "sqrt", added.outputs, [tensor(0.0, 0.7, name="", dtype="float16")])
    return snapshot(origin, ops=(added, root, record_of(origin)), edges=(Edge(8, 9, 0), Edge(9, 10, 1)))


def mask_of_lowest() -> Snapshot:
    code = "p = F.softmax(s * x.shape[-1] ** -0.5 + mask, dim=-1)"
    return snapshot(pointwise("add", -INF, "float16", code, self=-30.0, other=-65504.0), history=STEADY)


def cancelled_variance() -> Snapshot:
    origin = pointwise("sqrt", NAN, code="std = torch.sqrt(sq - mean * mean)", self=-0.03125)
    sub = op(9, "sub", [tensor(490000.0, 1.0), tensor(490000.0, 1.0, name="other")], [tensor(-0.03125, 1.0, name="")])
    return snapshot(origin, ops=(sub, record_of(origin)), edges=(Edge(9, 10, 0),))


def negative_contrast() -> Snapshot:
    code = "return 1 - torch.prod(torch.stack(mcs) ** weights, dim=0).mean()"
    return snapshot(pointwise("pow", NAN, code=code, self=-0.4, exponent=0.0448), "loss")


def cosine_above_one() -> Snapshot:
    return snapshot(pointwise("acos", NAN, code="theta = torch.acos(cos)", self=1.00000012), "loss")


def unfilled_rows() -> Snapshot:
    bank = tensor(*[0.5] * 400, *[NAN] * 624, name="self", shape=(128, 8), label="buffer queue.bank")
    index = OperandValue("indices[0]", "index", (49.0,), (23,))
    read = OperandValue("self", "read", (NAN,), (49, 0))
    origin = Origin(
        "index",
        "queue",
        inputs=(bank,),
        example=Example((23, 0), NAN, (index, read)),
        source=source("return self.bank[idx]"),
    )
    return snapshot(
        origin, "parameters", source_value=BadSource("buffer", "queue.bank", bank, (50, 0), NAN, since_step=0)
    )


def unreachable_state() -> Snapshot:
    row = many("slice", "self", [-INF] * 4)
    origin = Origin(
        "logsumexp",
        "crf",
        inputs=(tensor(1.0, *[-INF] * 4),),
        outputs=(tensor(NAN, name=""),),
        example=Example((0, 0, 3), NAN, (row, element("grad", 0.0))),
        derivative=True,
        derivative_aten="aten::mul.Tensor",
        id=90,
    )
    return snapshot(origin, "backward")


def zero_times_infinity() -> Snapshot:
    origin = pointwise("mul", NAN, code="return -(teacher_p * logp).sum(-1).mean()", self=0.0, other=-INF)
    return snapshot(origin, "loss")


def nothing_to_attend_to() -> Snapshot:
    row = many("slice", "self", [-INF] * 6)
    origin = Origin(
        "softmax",
        "encoder.layers.0.self_attn",
        inputs=(tensor(0.1, *[-INF] * 6),),
        outputs=(tensor(*[NAN] * 6, *[0.2] * 6, name="", shape=(2, 6)),),
        example=Example((1, 0), NAN, (row,)),
        arguments={"dim": -1},
        id=10,
    )
    return snapshot(origin)


def missing_feature() -> Snapshot:
    found = tensor(*[0.3] * 111, NAN, shape=(8, 14), name="x")
    origin = Origin("addmm", "encoder.fc1", inputs=(found,), source=source("h = F.relu(self.fc1(x))"))
    return snapshot(origin, "input", source_value=BadSource("input", "x", found, (3, 9), NAN, entry=""))


def missing_target() -> Snapshot:
    found = tensor(*[0.3] * 30, *[NAN] * 10, shape=(8, 5), name="target")
    origin = Origin(
        "mse_loss",
        None,
        inputs=(tensor(0.1), found),
        source=source('loss = F.mse_loss(pred, target, reduction="none")'),
    )
    return snapshot(
        origin,
        "input",
        source_value=BadSource("label", "target", found, (0, 2), NAN),
        symptom=Symptom("gradient", "assays.weight"),
    )


def uninitialised_parameter() -> Snapshot:
    found = tensor(*[NAN] * 16, shape=(1, 16), name="tensors[1]")
    origin = Origin("cat", "", inputs=(tensor(0.1, name="tensors[0]"), found))
    return snapshot(
        origin,
        "parameters",
        step=0,
        source_value=BadSource("parameter", "bg_embeddings", found, (0, 0), NAN, since_step=0),
    )


def recurrent_explosion() -> Snapshot:
    made = [
        op(100 + t, "mm", [], [tensor(10.0 ** (t * 0.9), name="", shape=(2, 16))], phase="backward") for t in range(42)
    ]
    row, column = [1e38, -2e38, 3e38], [20.0, 30.0, 25.0]
    origin = Origin(
        "addmm",
        "dynamics.cell.w_h",
        inputs=(tensor(0.9), tensor(*column, name="mat2")),
        outputs=(tensor(INF, name=""),),
        example=Example((0, 3), INF, (many("row", "self", row), many("column", "mat2", column))),
        derivative=True,
        derivative_aten="aten::mm.default",
        id=142,
    )
    forward = [event(0, 1.0, "dynamics.cell.w_h", order=t) for t in range(60)]
    return snapshot(origin, "backward", step=0, ops=tuple(made), history=history([0.3], events=forward))


def diverged_regression() -> Snapshot:
    losses = [0.4 * 1.9**step for step in range(117)]
    origin = pointwise("mse_loss", INF, code="loss = F.mse_loss(model(x), y)", self=3e19, target=0.5)
    facts = OptimizerFacts("SGD", {"lr": 0.9})
    return snapshot(origin, "loss", step=117, history=history([*losses, INF], lr=0.9), optimizer=facts)


def where_trap() -> Snapshot:
    code = "d = torch.where(d2 > 0, d2.sqrt(), d2)"
    origin = derivative("sqrt", NAN, grad=0.0, code=code, self=0.0)
    root = op(10, "sqrt", [tensor(0.0, 1.0)], [tensor(0.0, 1.0, name="")])
    where = op(11, "where", [tensor(1.0)], [tensor(0.0, 1.0, name="")], source=source(code))
    back = op(90, "div", [tensor(0.0)], [tensor(NAN, name="")], phase="backward", forward_id=10)
    return snapshot(origin, "backward", ops=(root, where, back), edges=(Edge(10, 11, 1),))


def clamped_at_one() -> Snapshot:
    origin = derivative("acos", -INF, grad=0.2, code="angle = torch.acos(cos.clamp(-1, 1))", self=1.0)
    return snapshot(origin, "backward")


def signed_square_root() -> Snapshot:
    origin = derivative("signedsqrt", INF, grad=0.01, code="return SignedSqrt.apply(x)", x=0.0)
    return snapshot(replace(origin, derivative_aten="aten::div.Tensor"), "backward")


@pytest.mark.parametrize(
    ("build", "cause", "keyword"),
    [
        (half_precision_linear, Cause.OVERFLOW, "float32"),
        (coupling_exp, Cause.OVERFLOW, "tanh"),
        (softmax_by_hand, Cause.OVERFLOW, "log_softmax"),
        (saturated_discriminator, Cause.LOG_DOMAIN, "logsigmoid"),
        (gumbel_noise, Cause.LOG_DOMAIN, "clamp"),
        (iou_without_overlap, Cause.LOG_DOMAIN, "eps"),
        (empty_sample, Cause.ZERO_DIVISION, "clamp"),
        (all_labels_ignored, Cause.EMPTY_REDUCTION, "ignore_index"),
        (adam_in_half_precision, Cause.PRECISION, "eps"),
        (layer_norm_eps, Cause.PRECISION, "float32"),
        (mask_of_lowest, Cause.OVERFLOW, "finfo"),
        (cancelled_variance, Cause.SQRT_DOMAIN, "variance"),
        (negative_contrast, Cause.POW_DOMAIN, "clamp"),
        (cosine_above_one, Cause.DOMAIN, "atan2"),
        (unfilled_rows, Cause.INDEXING, "written"),
        (unreachable_state, Cause.INF_ARITHMETIC, "large finite negative"),
        (zero_times_infinity, Cause.INF_ARITHMETIC, "where"),
        (nothing_to_attend_to, Cause.MASKED_SOFTMAX, "row"),
        (missing_feature, Cause.BAD_INPUT, "impute"),
        (missing_target, Cause.BAD_LABEL, "before"),
        (uninitialised_parameter, Cause.BAD_PARAMETER, "init"),
        (recurrent_explosion, Cause.EXPLODING_GRADIENT, "clip"),
        (diverged_regression, Cause.LEARNING_RATE, "learning rate"),
        (where_trap, Cause.SINGULAR_GRADIENT, "double"),
        (clamped_at_one, Cause.SINGULAR_GRADIENT, "clamp"),
        (signed_square_root, Cause.SINGULAR_GRADIENT, "eps"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_reported_failures_are_named(build, cause, keyword):  # type: ignore[no-untyped-def]
    """Each reported failure gets the cause an expert names, evidence with numbers, and advice that says the word."""
    diagnosis = diagnose(build())

    assert diagnosis.cause is cause
    assert any(any(letter.isdigit() for letter in sentence) for sentence in diagnosis.evidence)
    assert keyword in remedy_text(diagnosis)
    assert 1 <= len(diagnosis.remedies) <= 4
