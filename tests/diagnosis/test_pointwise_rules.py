"""Overflow, domains and division: concluded from operand values, never from the op's name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nantrace.diagnosis import diagnose
from nantrace.model import Cause, Edge, Example, Origin

from .builders import INF, NAN, many, op, pointwise, record_of, remedy_text, snapshot, tensor


@pytest.mark.parametrize(
    ("origin", "cause", "sentence"),
    [
        (pointwise("log", -INF, self=0.0), Cause.LOG_DOMAIN, "out[3, 17] = log(0) = -inf"),
        (pointwise("log", NAN, self=-2.0), Cause.LOG_DOMAIN, "out[3, 17] = log(-2) = nan"),
        (pointwise("log1p", -INF, self=-1.0), Cause.LOG_DOMAIN, "out[3, 17] = log1p(-1) = -inf"),
        (pointwise("xlogy", -INF, self=0.5, other=0.0), Cause.LOG_DOMAIN, "out[3, 17] = xlogy(0.5, 0) = -inf"),
        (pointwise("logit", INF, self=1.0), Cause.LOG_DOMAIN, "out[3, 17] = logit(1) = log(1 / (1 - 1)) = inf"),
        (pointwise("div", INF, self=3.0, other=0.0), Cause.ZERO_DIVISION, "out[3, 17] = 3 / 0 = inf"),
        (pointwise("reciprocal", INF, self=0.0), Cause.ZERO_DIVISION, "out[3, 17] = 1 / 0 = inf"),
        (pointwise("rsqrt", INF, self=0.0), Cause.ZERO_DIVISION, "out[3, 17] = 1 / sqrt(0) = inf"),
        (pointwise("pow", INF, self=0.0, exponent=-0.5), Cause.ZERO_DIVISION, "out[3, 17]: 0 ** -0.5 = 1 / 0 ** 0.5"),
        (pointwise("remainder", NAN, self=3.0, other=0.0), Cause.ZERO_DIVISION, "out[3, 17] = 3 / 0 = nan"),
        (pointwise("sqrt", NAN, self=-1.5), Cause.SQRT_DOMAIN, "out[3, 17] = sqrt(-1.5) = nan"),
        (pointwise("pow", NAN, self=-2.0, exponent=0.5), Cause.POW_DOMAIN, "out[3, 17] = (-2) ** 0.5 = nan"),
        (pointwise("acos", NAN, self=1.5), Cause.DOMAIN, "out[3, 17] = acos(1.5) = nan"),
        (pointwise("atanh", INF, self=1.0), Cause.DOMAIN, "out[3, 17] = atanh(1) = inf"),
        (pointwise("acosh", NAN, self=0.5), Cause.DOMAIN, "out[3, 17] = acosh(0.5) = nan"),
        (pointwise("lgamma", INF, self=0.0), Cause.DOMAIN, "out[3, 17] = lgamma(0), a pole = inf"),
        (pointwise("mul", NAN, self=0.0, other=INF), Cause.INF_ARITHMETIC, "out[3, 17] = 0 * inf = nan"),
        (pointwise("sub", NAN, self=-INF, other=-INF), Cause.INF_ARITHMETIC, "out[3, 17] = -inf - -inf = nan"),
        (pointwise("add", NAN, self=-INF, other=INF), Cause.INF_ARITHMETIC, "out[3, 17] = -inf + inf = nan"),
        (pointwise("div", NAN, self=INF, other=-INF), Cause.INF_ARITHMETIC, "out[3, 17] = inf / -inf = nan"),
        (
            pointwise("exp", INF, self=91.4),
            Cause.OVERFLOW,
            "out[3, 17] = inf: exp(91.4) = 4.9e+39, float32 ends at 3.4e+38",
        ),
        (
            pointwise("mul", INF, "float16", self=300.0, other=400.0),
            Cause.OVERFLOW,
            "out[3, 17] = inf: 300 * 400 = 120000, float16 ends at 65504",
        ),
        (
            pointwise("pow", INF, self=1e20, exponent=2.0),
            Cause.OVERFLOW,
            "out[3, 17] = inf: 1e+20 ** 2 = 1e+40, float32 ends at 3.4e+38",
        ),
        (
            pointwise("div", INF, "float16", self=1.0, other=1e-6),
            Cause.OVERFLOW,
            "out[3, 17] = inf: 1 / 1e-06 = 1e+06, float16 ends at 65504",
        ),
    ],
    ids=lambda value: f"{value.op}" if isinstance(value, Origin) else None,
)
def test_values_prove_the_cause(origin: Origin, cause: Cause, sentence: str) -> None:
    """The operands at the failing element give a certain cause and the sentence that proves it."""
    diagnosis = diagnose(snapshot(origin))

    assert (diagnosis.cause, diagnosis.confidence) == (cause, "certain")
    assert sentence in diagnosis.evidence
    assert diagnosis.remedies


@pytest.mark.parametrize(
    "origin",
    [
        pointwise("log", NAN, self=0.5),
        pointwise("log", NAN, self=NAN),
        pointwise("div", NAN, self=3.0, other=2.0),
        pointwise("sqrt", NAN, self=4.0),
        pointwise("pow", NAN, self=-2.0, exponent=2.0),
        pointwise("acos", NAN, self=0.99),
        pointwise("exp", INF, self=3.0),
        pointwise("mul", INF, self=2.0, other=3.0),
        pointwise("mul", NAN, self=2.0, other=NAN),
        Origin("log", "net"),
        Origin("exp", "net"),
        Origin("div", "net"),
        Origin("softmax", "net"),
        Origin("mm", "net"),
        Origin("mean", "net", outputs=(tensor(NAN, name=""),)),
        Origin("nll_loss", "net", outputs=(tensor(NAN, name=""),)),
    ],
    ids=lambda origin: f"{origin.op} {len(origin.inputs)}",
)
def test_an_op_name_alone_proves_nothing(origin: Origin) -> None:
    """Operands in the domain, or none known, leave the cause undetermined."""
    diagnosis = diagnose(snapshot(origin))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.UNDETERMINED, "undetermined")
    assert diagnosis.evidence


@pytest.mark.parametrize(
    ("op_name", "values", "result", "cause"),
    [
        ("log", (0.0, 0.5), -INF, Cause.LOG_DOMAIN),
        ("sqrt", (-1.0, 0.5), NAN, Cause.SQRT_DOMAIN),
        ("rsqrt", (0.0, 0.5), INF, Cause.ZERO_DIVISION),
        ("acos", (0.0, 1.5), NAN, Cause.DOMAIN),
        ("exp", (0.0, 300.0), INF, Cause.OVERFLOW),
    ],
)
def test_statistics_without_the_element_are_only_likely(
    op_name: str, values: tuple[float, ...], result: float, cause: Cause
) -> None:
    """Where the failing element is not known, the operand's statistics give a likely cause, not a certain one."""
    origin = replace(pointwise(op_name, result, self=0.0), inputs=(tensor(*values),), example=None)
    diagnosis = diagnose(snapshot(origin))

    assert (diagnosis.cause, diagnosis.confidence) == (cause, "likely")


def test_a_plain_number_can_be_the_operand() -> None:
    """x / 0 and x ** 0.5 with a Python number: the number is among the op's arguments."""
    by_zero = replace(pointwise("div", INF, self=3.0), arguments={"other": 0})
    by_half = replace(pointwise("pow", NAN, self=-3.0), arguments={"exponent": 0.5})

    assert diagnose(snapshot(by_zero)).cause is Cause.ZERO_DIVISION
    assert diagnose(snapshot(by_half)).cause is Cause.POW_DOMAIN


def test_a_cast_past_the_range_is_an_overflow() -> None:
    """The evidence of a cast names both dtypes."""
    origin = replace(pointwise("to_copy", INF, "float16", self=70000.0), inputs=(tensor(70000.0, dtype="float32"),))
    diagnosis = diagnose(snapshot(origin))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.OVERFLOW, "certain")
    assert "70000 cast from float32 to float16, float16 ends at 65504" in diagnosis.evidence[0]


def test_a_bound_on_a_product_is_only_likely() -> None:
    """Of a row longer than what was kept, only a bound on the product is known."""
    row = many("row", "self", [1e3] * 200, "float16")
    column = many("column", "mat2", [1.0] * 200, "float16")
    origin = Origin(
        "mm", "net", outputs=(tensor(INF, name="", dtype="float16"),), example=Example((0, 0), INF, (row, column))
    )
    diagnosis = diagnose(snapshot(origin))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.OVERFLOW, "likely")


def test_a_saturated_softmax_gets_log_softmax() -> None:
    """The advice follows the op that made the zero."""
    origin = pointwise("log", -INF, code="loss = -torch.log(p).mean()", self=0.0)
    softmax = op(9, "softmax", [tensor(0.0, 200.0)], [tensor(0.0, 1.0, name="")])
    diagnosis = diagnose(snapshot(origin, ops=(softmax, record_of(origin)), edges=(Edge(9, 10, 0),)))

    assert "the softmax upstream has saturated: it reached the end of its range in float32" in diagnosis.evidence
    codes = [remedy.code for remedy in diagnosis.remedies]
    assert codes == ["loss = -torch.log(p.clamp_min(1e-8)).mean()", "F.log_softmax(logits, dim=-1)"]


def test_the_remedy_stands_in_the_users_line() -> None:
    """torch.log(p) becomes torch.log(p.clamp_min(1e-8)), the rest of the line is kept."""
    diagnosis = diagnose(snapshot(pointwise("log", -INF, code="loss = -(y * torch.log(p)).sum()", self=0.0)))

    assert diagnosis.remedies[0].code == "loss = -(y * torch.log(p.clamp_min(1e-8))).sum()"


def test_a_denominator_that_may_be_negative_is_not_clamped() -> None:
    """clamp_min would turn -3 into 1e-8, so zeros alone are replaced."""
    origin = pointwise("div", INF, code="y = a / d", self=1.0, other=0.0)
    origin = replace(origin, inputs=(tensor(1.0), tensor(-3.0, 0.0, 2.0, name="other")))
    diagnosis = diagnose(snapshot(origin))

    assert diagnosis.remedies[0].code == "y = a / d.where(d != 0, 1e-8)"


def test_precision_comes_before_division() -> None:
    """A denominator that underflowed in half precision is precision first, a division by zero too."""
    origin = pointwise("div", NAN, "float16", self=0.0, other=0.0)
    square = op(9, "pow", [tensor(1e-5, 0.5, dtype="float16")], [tensor(0.0, 0.25, name="", dtype="float16")])
    diagnosis = diagnose(snapshot(origin, ops=(square, record_of(origin)), edges=(Edge(9, 10, 1),)))

    assert diagnosis.cause is Cause.PRECISION
    assert diagnosis.also == (Cause.ZERO_DIVISION,)
    assert "float32" in remedy_text(diagnosis)


def test_an_eps_that_the_dtype_holds_is_not_blamed() -> None:
    """1e-12 is a number in float32: a zero denominator there has another reason."""
    origin = pointwise("div", NAN, self=0.0, other=0.0)
    added = op(9, "add", [tensor(0.0, 1.0)], [tensor(0.0, 1.0, name="")], {"other": 1e-12})
    diagnosis = diagnose(snapshot(origin, ops=(added, record_of(origin)), edges=(Edge(9, 10, 1),)))

    assert diagnosis.cause is Cause.ZERO_DIVISION
    assert Cause.PRECISION not in diagnosis.also


def test_a_bound_that_rounds_to_one_is_precision() -> None:
    """clamp(p, eps, 1 - 1e-12) is clamp(p, eps, 1) in float32, and log(1 - p) is log(0)."""
    origin = pointwise("log", -INF, self=0.0)
    clamp = op(8, "clamp", [tensor(1.0)], [tensor(1.0, name="")], {"min": 1e-12, "max": 1 - 1e-12})
    rsub = op(9, "rsub", [tensor(1.0)], [tensor(0.0, name="")], {"other": 1})
    diagnosis = diagnose(snapshot(origin, ops=(clamp, rsub, record_of(origin)), edges=(Edge(8, 9, 0), Edge(9, 10, 0))))

    assert diagnosis.cause is Cause.PRECISION
    assert "rounds to 1 in float32" in diagnosis.evidence[0]
    assert Cause.LOG_DOMAIN in diagnosis.also


def test_zeros_that_were_not_counted_are_seen_in_the_range() -> None:
    """Of ops that ran cleanly only the range is taken: a least value of 0 says that there is a zero."""
    origin = pointwise("div", NAN, "float16", self=0.0, other=0.0)
    given, made = tensor(0.0, 0.5, dtype="float16"), tensor(0.0, 0.5, name="", dtype="float16")
    added = op(9, "add", [replace(given, zero=None)], [replace(made, zero=None)], {"other": 1e-12})
    diagnosis = diagnose(snapshot(origin, ops=(added, record_of(origin)), edges=(Edge(9, 10, 1),)))

    assert diagnosis.cause is Cause.PRECISION
    assert diagnosis.evidence[0] == "eps=1e-12 rounds to 0 in float16 (smallest positive value 6e-08)"
