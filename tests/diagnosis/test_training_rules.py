"""Gradients, divergence over the steps, and optimizers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nantrace.diagnosis import diagnose
from nantrace.model import Cause, Edge, Example, History, OperandValue, OptimizerFacts, Origin, Snapshot, Symptom

from .builders import (
    INF,
    NAN,
    derivative,
    element,
    event,
    history,
    op,
    pointwise,
    remedy_text,
    snapshot,
    source,
    tensor,
)

OUTPUTS = [event(step, value) for step, value in enumerate([1.0, 4.0, 4e5, 1e22])]
DIVERGING = [0.5, 0.6, 1.2, 12.0, 130.0, 1.4e3, 1.5e4, 1.6e5, INF]


def stepped(type: str, settings: dict[str, float], dtype: str = "float32", **state: float) -> Snapshot:
    """An optimizer made a parameter non-finite; `state` is what it read at that element."""
    operands = tuple(OperandValue(name, "state", (value,), (2, 1)) for name, value in state.items())
    origin = Origin(type.lower(), "fc", source=source("opt.step()"), example=Example((2, 1), NAN, operands))
    facts = OptimizerFacts(type, settings, "fc.weight", dtype)
    return snapshot(origin, "optimizer", optimizer=facts, symptom=Symptom("parameter", "fc.weight"))


def test_an_overflow_that_the_history_led_to_is_the_learning_rate() -> None:
    """The deepest cause wins; the overflow stays in the evidence and in `also`."""
    diagnosis = diagnose(snapshot(pointwise("exp", INF, self=95.0), step=8, history=history(DIVERGING, lr=0.1)))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.LEARNING_RATE, "likely")
    assert diagnosis.evidence[0].startswith("loss grew ")
    assert any("exp(95)" in sentence for sentence in diagnosis.evidence)
    assert Cause.OVERFLOW in diagnosis.also
    assert "lr=" in remedy_text(diagnosis)


def test_an_overflow_in_one_outlier_batch_is_not_the_learning_rate() -> None:
    """A steady history and one bad step: the overflow itself is the cause."""
    outlier = history([2.3, 2.2, 2.4, INF], events=[event(s, v) for s, v in enumerate([1.0, 1.1, 0.9, 9e4])])
    diagnosis = diagnose(snapshot(pointwise("exp", INF, self=95.0), step=3, history=outlier))

    assert (diagnosis.cause, diagnosis.also) == (Cause.OVERFLOW, ())


def test_a_diverging_history_does_not_hide_a_proven_domain() -> None:
    """log(0) is log(0); that the loss had grown is said second."""
    losses = [10.0**i for i in range(9)]
    diagnosis = diagnose(snapshot(pointwise("log", -INF, self=0.0), "loss", history=history(losses)))

    assert (diagnosis.cause, diagnosis.also) == (Cause.LOG_DOMAIN, (Cause.LEARNING_RATE,))


def test_growing_activations_name_the_first_module() -> None:
    """Where no loss was recorded, the module outputs tell."""
    events = [event(step, 10.0**step, "backbone") for step in range(8)]
    diagnosis = diagnose(snapshot(pointwise("exp", INF, self=95.0), step=8, history=history([None] * 9, events=events)))

    assert diagnosis.cause is Cause.LEARNING_RATE
    assert diagnosis.evidence[0].startswith("the first module to grow: the output of backbone grew 10x per step")


def test_one_huge_sgd_update_is_the_learning_rate() -> None:
    """lr * gradient norm of the last step explains the size of the parameter that overflowed."""
    weight = tensor(4e19, -2e19, name="mat2", label="parameter fc.weight")
    origin = Origin("mm", "fc", inputs=(tensor(3e19, name="self"), weight), outputs=(tensor(INF, name=""),), id=10)
    recorded = history([2.0, INF], [5e13, None], lr=1e6)
    diagnosis = diagnose(snapshot(origin, step=1, history=recorded, optimizer=OptimizerFacts("SGD", {"lr": 1e6})))

    assert diagnosis.cause is Cause.LEARNING_RATE
    assert "lr * gradient norm = 1e+06 * 5e+13 = 5e+19" in diagnosis.evidence[0]


def with_weights(recorded: History, norms: list[float]) -> History:
    """The same steps, with the norm of the weights before each update."""
    steps = zip(recorded.steps, norms, strict=True)
    return replace(recorded, steps=tuple(replace(step, weight_norm=norm) for step, norm in steps))


@pytest.mark.parametrize(
    ("weights", "cause"), [([4.9, 8.4, 672.0, 4e10], Cause.LEARNING_RATE), ([1e3, 1e3, 2e3, 4e10], Cause.OVERFLOW)]
)
def test_a_gradient_that_jumps_at_replaced_weights_is_no_bad_batch(weights: list[float], cause: Cause) -> None:
    """An update as long as the weights came before the jump, or a healthy one did: that tells two causes apart."""
    recorded = history([15.0, 94.0, 3e11, INF], [2.2, 225.0, 1.4e10, None], lr=3.0, events=OUTPUTS)
    origin = pointwise("square", INF, self=1e22)
    facts = OptimizerFacts("SGD", {"lr": 3.0})
    found = diagnose(snapshot(origin, step=3, history=with_weights(recorded, weights), optimizer=facts))

    assert found.cause is cause


@pytest.mark.parametrize(("evicted", "cause"), [(15, Cause.LEARNING_RATE), (0, Cause.OVERFLOW)])
def test_one_step_that_the_ring_kept_makes_no_usual_gradient(evicted: int, cause: Cause) -> None:
    """A gradient that stands out against one step is a bad batch at the start of a run, not in the midst of one."""
    losses = [1.2e7 * 10.0**step for step in range(12)]
    recorded = history([*losses, INF], [1.2e4, 1.3e6, *[2e4] * 10, None], lr=1e-9, evicted=evicted)
    facts = OptimizerFacts("SGD", {"lr": 1e-9})
    weighed = with_weights(recorded, [1e5] * 13)

    found = diagnose(snapshot(pointwise("square", INF, self=1e22), step=evicted + 12, history=weighed, optimizer=facts))

    assert found.cause is cause


def test_one_update_that_left_nothing_of_the_weights_is_the_learning_rate() -> None:
    """The first step already: no growth to see, and an op fails of which no rule knows why."""
    origin = derivative("scaled_dot_product_flash_attention", NAN, grad=1e-3, query=-5e5, key=-1e5)
    recorded = history([3.3, 1.4e7], [1.3, None], lr=5e4, events=[event(0, 3.0), event(1, 1.4e7)])
    facts = OptimizerFacts("SGD", {"lr": 5e4})
    failing = snapshot(origin, "backward", step=1, history=with_weights(recorded, [33.0, 6.5e4]), optimizer=facts)
    small = replace(failing, history=with_weights(recorded, [1e9, 1e9]))

    found = diagnose(failing)

    assert (found.cause, found.confidence) == (Cause.LEARNING_RATE, "likely")
    assert "the update of step 0 was 2e+03 times as long as the weights themselves" in found.evidence[0]
    assert "the largest output was 3 in step 0 and is 1.4e+07 in step 1" in found.evidence
    assert diagnose(small).cause is Cause.UNDETERMINED


def test_two_gradients_whose_sum_overflows_are_told() -> None:
    """Where a value was used twice: both gradients were read, and their sum is past the end of the dtype."""
    origin = Origin(
        "t",
        "layer",
        example=Example((13, 3), -INF, (element("grad", -3.384e38, (13, 3)), element("grad", -4.633e36, (13, 3)))),
        id=90,
        derivative=True,
    )
    added = op(90, "add", outputs=[tensor(-INF, 1.0)], phase="backward")
    diagnosis = diagnose(snapshot(origin, "backward", ops=(added,)))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.OVERFLOW, "certain")
    assert "-3.384e+38 and -4.633e+36, make -3.43e+38" in diagnosis.evidence[0]


def test_a_gradient_that_grew_a_million_fold_at_untouched_weights_explodes() -> None:
    """In the very first step, whose forward values were large already: no update can be to blame."""
    origin = derivative("mul", INF, grad=3e38, self=40.0, other=30.0)
    through = tuple(op(i, "mm", outputs=[tensor(10.0**i)], phase="backward") for i in range(18, 38))
    events = [event(0, 7e18, "layer")]
    facts = OptimizerFacts("SGD", {"lr": 0.01})
    first = snapshot(
        origin, "backward", step=0, ops=through, optimizer=facts, history=history([3e36], lr=0.01, events=events)
    )

    assert diagnose(first).cause is Cause.EXPLODING_GRADIENT


def test_a_gradient_that_grows_through_depth_explodes() -> None:
    """Gradient events of one step grow from module to module while the outputs stay small."""
    events = [event(0, 1.0, f"layers.{i}", order=i) for i in range(12)]
    events += [event(0, 10.0 ** (3 * i), f"layers.{11 - i}", "gradient", order=20 + i) for i in range(12)]
    origin = derivative("mul", INF, grad=3e38, self=40.0, other=30.0)
    diagnosis = diagnose(snapshot(origin, "backward", step=0, history=history([0.7], events=events)))

    assert diagnosis.cause is Cause.EXPLODING_GRADIENT
    assert (
        "grew 1e+03x per module call" in diagnosis.evidence[0] or "grew 1000x per module call" in diagnosis.evidence[0]
    )
    assert "clip_grad_norm_" in remedy_text(diagnosis)


def test_an_overflow_in_backward_without_growth_is_an_overflow() -> None:
    """No series, no explosion."""
    origin = derivative("exp", INF, grad=1e10, self=80.0)
    diagnosis = diagnose(snapshot(origin, "backward"))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.OVERFLOW, "certain")
    assert "gradient 1e+10 times exp'(80)" in diagnosis.evidence[0]


@pytest.mark.parametrize(
    "origin",
    [
        derivative("sqrt", INF, grad=1.0, self=0.0),
        derivative("pow", INF, grad=1.0, self=0.0, exponent=0.5),
        derivative("asin", INF, grad=1.0, self=1.0),
        derivative("hypot", NAN, grad=1.0, self=0.0, other=0.0),
        derivative("xlogy", NAN, grad=1.0, self=0.0, other=0.0),
        derivative("acosh", INF, grad=1.0, self=1.0),
    ],
    ids=lambda origin: origin.op,
)
def test_a_finite_value_with_an_infinite_derivative_is_singular(origin: Origin) -> None:
    """The operand at the failing element proves it."""
    diagnosis = diagnose(snapshot(origin, "backward"))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.SINGULAR_GRADIENT, "certain")
    assert diagnosis.remedies


@pytest.mark.parametrize(
    "origin", [derivative("sqrt", INF, grad=1.0, self=4.0), derivative("acos", NAN, grad=0.0, self=0.5)]
)
def test_a_regular_derivative_is_not_blamed(origin: Origin) -> None:
    """sqrt'(4) is 0.25: something else made the value."""
    assert diagnose(snapshot(origin, "backward")).cause is Cause.UNDETERMINED


@pytest.mark.parametrize(
    "origin",
    [
        derivative("log", NAN, grad=0.0, self=0.0),
        derivative("div", NAN, grad=0.0, self=0.0, other=0.0),
        derivative("sqrt", NAN, grad=0.0, self=-1.0),
        derivative("exp", NAN, grad=0.0, self=200.0),
        derivative("pow", NAN, grad=0.0, self=0.0, exponent=-1.0),
    ],
    ids=lambda origin: origin.op,
)
def test_a_bad_branch_that_forward_hid_is_a_masked_gradient(origin: Origin) -> None:
    """The op's own value was not finite, a mask took it out, and 0 * inf brings it back."""
    diagnosis = diagnose(snapshot(origin, "backward"))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.MASKED_GRADIENT, "certain")
    assert "0 * inf = nan" in diagnosis.evidence[1]
    assert "double where" in remedy_text(diagnosis)


def test_the_double_where_uses_the_users_condition() -> None:
    """The condition of the torch.where around the op is the one to fill with."""
    code = "y = torch.where(mask, torch.log(x), zero)"
    diagnosis = diagnose(snapshot(derivative("log", NAN, grad=0.0, code=code, self=0.0), "backward"))

    assert diagnosis.remedies[0].code == "y = torch.where(mask, torch.log(torch.where(mask, x, 1.0)), zero)"


def test_a_backward_that_divides_by_zeros_is_likely_singular() -> None:
    """eigh of equal eigenvalues: the backward's own record shows the zeros it divided by."""
    origin = Origin(
        "linalg_eigh", "net", inputs=(tensor(1.0, 2.0),), derivative=True, derivative_aten="aten::div.Tensor", id=90
    )
    zeros = tensor(0.0, 0.0, 1.5, name="other")
    back = op(90, "div", [tensor(1.0), zeros], [tensor(NAN, name="")], phase="backward", forward_id=10)
    diagnosis = diagnose(snapshot(origin, "backward", ops=(op(10, "linalg_eigh"), back), edges=(Edge(10, 90, 0),)))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.SINGULAR_GRADIENT, "likely")
    assert "eigenvalues" in diagnosis.evidence[0]


def test_an_eps_of_zero_is_the_optimizers_cause() -> None:
    """In float32 nothing rounds away: eps=0 and a zero second moment divide by zero."""
    made = stepped("Adam", {"lr": 1e-3, "eps": 0.0}, param=0.1, grad=0.0, exp_avg=0.0, exp_avg_sq=0.0)
    diagnosis = diagnose(made)

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.OPTIMIZER, "certain")
    assert diagnosis.evidence == ("exp_avg_sq = 0 at fc.weight[2, 1] and eps=0: the update divides by 0",)


def test_a_learning_rate_that_is_not_a_number_is_named() -> None:
    """A scheduler that divided by zero set it."""
    diagnosis = diagnose(stepped("SGD", {"lr": NAN}, param=0.1, grad=0.5))

    assert diagnosis.evidence == ("SGD stepped with lr=nan",)


def test_an_update_past_the_dtype_is_the_optimizers_cause() -> None:
    """lr * gradient does not fit; with a diverging history it is the learning rate."""
    made = stepped("SGD", {"lr": 1e10}, param=0.1, grad=1e30)

    assert diagnose(made).cause is Cause.OPTIMIZER
    assert "1e+10 * 1e+30 = 1e+40" in diagnose(made).evidence[0]
    assert diagnose(replace(made, history=history(DIVERGING))).cause is Cause.LEARNING_RATE


def test_a_finite_update_of_unknown_state_is_likely_the_optimizer() -> None:
    """The gradient was finite and the parameter is not: the optimizer, with the values that are known."""
    diagnosis = diagnose(stepped("Custom", {"lr": 0.1}, param=0.1, grad=0.5))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.OPTIMIZER, "likely")


def test_an_infinite_gradient_is_not_the_optimizers_cause() -> None:
    """What came in bad is not born in the optimizer."""
    assert diagnose(stepped("SGD", {"lr": 0.1}, param=0.1, grad=INF)).cause is Cause.UNDETERMINED


@pytest.mark.parametrize("aten", ["aten::div.Tensor", "aten::pow.Tensor_Scalar", "aten::rsqrt.default"])
def test_a_custom_backward_with_a_pole_at_zero_is_singular(aten: str) -> None:
    """A custom Function whose backward divides by, or takes a power of, what is 0 at the failing element."""
    origin = replace(derivative("signedsqrt", INF, grad=0.01, x=0.0), derivative_aten=aten)

    assert diagnose(snapshot(origin, "backward")).cause is Cause.SINGULAR_GRADIENT


def test_a_custom_backward_away_from_zero_is_not_blamed() -> None:
    """The same ops at x = 2 have no pole."""
    origin = replace(derivative("signedsqrt", INF, grad=0.01, x=2.0), derivative_aten="aten::div.Tensor")

    assert diagnose(snapshot(origin, "backward")).cause is Cause.UNDETERMINED


def test_a_zero_gradient_that_meets_a_declared_infinity_is_inf_arithmetic() -> None:
    """The forward product was masked out; its backward multiplies 0 by the infinite factor."""
    origin = derivative("mul", NAN, grad=0.0, self=1.0, other=-INF)
    diagnosis = diagnose(snapshot(origin, "backward"))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.INF_ARITHMETIC, "certain")


def test_a_gradient_norm_that_grows_over_the_steps_explodes() -> None:
    """The loss stays where it is while the gradient grows until it overflows: an explosion, no learning rate."""
    norms = [1.0, 1.2, 11.0, 120.0, 1.3e3, 1.4e4, 1.5e5, None]
    origin = derivative("exp", INF, grad=1e10, self=80.0)
    diagnosis = diagnose(snapshot(origin, "backward", step=7, history=history([0.7] * 8, norms)))

    assert diagnosis.cause is Cause.EXPLODING_GRADIENT
    assert any(sentence.startswith("the gradient norm grew 1") for sentence in diagnosis.evidence)
