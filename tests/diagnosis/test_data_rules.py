"""Inputs, labels, parameters, indices, masks and empty reductions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nantrace.diagnosis import diagnose
from nantrace.model import (
    BadSource,
    Cause,
    Example,
    ExceptionFacts,
    IndexFacts,
    OperandValue,
    Origin,
    ReplayFacts,
    Symptom,
)

from .builders import INF, NAN, history, many, op, pointwise, remedy_text, snapshot, source, tensor

OUT_OF_RANGE = ExceptionFacts("IndexError", "Target 10 is out of bounds.")


def reduction(name: str, values: list[float], value: float = NAN, **arguments: object) -> Origin:
    """A reduction that read one slice."""
    return Origin(
        name,
        "net",
        inputs=(tensor(*values, shape=(len(values),)),),
        outputs=(tensor(value, name="", shape=()),),
        example=Example((), value, (many("slice", "self", values),)),
        arguments=arguments,
        id=10,
    )


def test_a_label_past_the_classes_is_explained() -> None:
    """How many classes there are, what labels may be, and that labels which start at 1 must be shifted."""
    facts = IndexFacts("nll_loss", "target", 10, (3,), 0, 10, 2)
    origin = Origin("nll_loss", None, arguments={"ignore_index": -100})
    diagnosis = diagnose(snapshot(origin, "loss", index=facts, exception=OUT_OF_RANGE))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.INDEXING, "certain")
    assert diagnosis.also == (Cause.BAD_LABEL,)
    assert diagnosis.evidence[0] == (
        "target[3] = 10, but there are 10 classes: labels must lie in [0, 10) or equal ignore_index=-100; "
        "2 labels are out of range"
    )
    assert diagnosis.remedies[0].code == "target = target - 1"


def test_a_token_past_the_vocabulary_is_explained() -> None:
    """An embedding says num_embeddings, and the table that would be large enough."""
    facts = IndexFacts("embedding", "indices", 52, (0, 5), 0, 50, 1, (50, 16))
    diagnosis = diagnose(snapshot(Origin("embedding", "embed"), index=facts, exception=OUT_OF_RANGE))

    assert "num_embeddings=50" in diagnosis.evidence[0]
    assert diagnosis.remedies[0].code == "nn.Embedding(53, 16)"
    assert Cause.BAD_LABEL not in diagnosis.also


def test_an_index_error_without_facts_is_read_from_its_message() -> None:
    """Only torch's message is known: likely, with the range that it names."""
    told = ExceptionFacts("IndexError", "index 5 is out of bounds for dimension 0 with size 3")
    diagnosis = diagnose(snapshot(Origin("index", "net"), exception=told))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.INDEXING, "likely")
    assert "0 <= index < 3" in diagnosis.evidence[0]


def test_another_exception_is_not_explained() -> None:
    """Out of memory is no index."""
    told = ExceptionFacts("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB")
    diagnosis = diagnose(snapshot(Origin("mm", "net", inputs=(tensor(1.0),)), exception=told))

    assert diagnosis.cause is Cause.UNDETERMINED


def test_a_refused_empty_reduction_is_explained() -> None:
    """max() of nothing raises; the operand without elements is the evidence."""
    told = ExceptionFacts("IndexError", "max(): Expected reduction dim to be specified for input.numel() == 0.")
    origin = Origin("max", "net", inputs=(tensor(shape=(0, 4)),))
    diagnosis = diagnose(snapshot(origin, exception=told))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.EMPTY_REDUCTION, "certain")


def test_a_negative_index_that_reads_an_unwritten_row_wraps() -> None:
    """Index -1 reads the last row, and the evidence says so."""
    bank = tensor(0.5, 0.5, NAN, NAN, shape=(2, 2), label="buffer bank")
    operands = (OperandValue("indices[0]", "index", (-1.0,), (7,)), OperandValue("self", "read", (NAN,), (1, 0)))
    origin = Origin("index", "net", inputs=(bank,), example=Example((7, 0), NAN, operands))
    diagnosis = diagnose(snapshot(origin))

    assert diagnosis.cause is Cause.INDEXING
    assert diagnosis.evidence[0] == "index -1 (which wraps to row 1) reads bank[-1] = nan"


def test_a_table_that_is_bad_altogether_is_a_bad_parameter() -> None:
    """Where no row is finite, the index is not to blame."""
    bank = tensor(NAN, NAN, shape=(2, 1), label="buffer bank")
    bad = BadSource("buffer", "bank", bank, (0, 0), NAN, since_step=2)
    diagnosis = diagnose(snapshot(Origin("index", "net", inputs=(bank,)), "parameters", source_value=bad))

    assert diagnosis.cause is Cause.BAD_PARAMETER
    assert "it has been bad since step 2; this is step 5" in diagnosis.evidence


def test_minus_infinity_in_a_table_was_written_on_purpose() -> None:
    """A forbidden transition is no memory that nobody wrote: the remedy is a finite number."""
    scores = tensor(-INF, 0.5, 0.1, label="parameter transitions")
    bad = BadSource("parameter", "transitions", scores, (0,), -INF)
    diagnosis = diagnose(snapshot(Origin("index", "", inputs=(scores,)), "parameters", source_value=bad))

    assert diagnosis.cause is Cause.BAD_PARAMETER
    assert "large finite negative number" in diagnosis.remedies[0].text


def test_the_consumer_of_a_bad_input_is_not_accused() -> None:
    """log of a NaN that came in with the batch is a bad input, and nothing else."""
    bad = BadSource("input", "x", tensor(NAN, 1.0), (0,), NAN, entry="net")
    diagnosis = diagnose(snapshot(pointwise("log", NAN, self=NAN), "input", source_value=bad))

    assert (diagnosis.cause, diagnosis.also) == (Cause.BAD_INPUT, ())


def test_softmax_over_a_partly_masked_row_is_innocent() -> None:
    """-inf beside finite scores is an ordinary mask."""
    diagnosis = diagnose(snapshot(reduction("softmax", [-INF, 0.5], 0.0, dim=-1)))

    assert diagnosis.cause is Cause.UNDETERMINED


def test_a_fully_masked_row_is_named() -> None:
    """The row is the failing element's index without the softmax dimension."""
    row = many("slice", "self", [-INF] * 4)
    origin = Origin("softmax", "attn", example=Example((2, 1, 3), NAN, (row,)), arguments={"dim": -1})
    diagnosis = diagnose(snapshot(origin))

    assert diagnosis.evidence[0] == "row [2, 1] of the softmax holds nothing but -inf (all 4 entries)"


def test_an_attention_that_made_nan_of_masks_alone_is_likely_masked() -> None:
    """Finite scores and -inf give NaN only where a row is all -inf."""
    origin = Origin("softmax", "attn", inputs=(tensor(0.3, -INF),), outputs=(tensor(NAN, 0.5, name=""),))
    diagnosis = diagnose(snapshot(origin))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.MASKED_SOFTMAX, "likely")


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (reduction("mean", []), "mean of 0 elements"),
        (reduction("std", [3.0]), "std of 1 element (it divides by 1 - 1 = 0)"),
        (reduction("var", [3.0, 4.0], correction=2), "var of 2 elements (it divides by 2 - 2 = 0)"),
        (reduction("mse_loss", []), "mse_loss of 0 elements"),
    ],
    ids=["mean", "std", "var", "mse_loss"],
)
def test_a_reduction_over_nothing_is_certain(origin: Origin, words: str) -> None:
    """The number of elements proves it."""
    diagnosis = diagnose(snapshot(origin))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.EMPTY_REDUCTION, "certain")
    assert words in diagnosis.evidence[0]


def test_a_deviation_of_several_elements_is_innocent() -> None:
    """std of two numbers exists, and of one number without correction too."""
    assert diagnose(snapshot(reduction("std", [3.0, 4.0]))).cause is Cause.UNDETERMINED
    assert diagnose(snapshot(reduction("std", [3.0], unbiased=False))).cause is Cause.UNDETERMINED


def test_labels_of_which_one_counts_are_innocent() -> None:
    """Ignored labels beside one that counts do not make the mean divide by zero."""
    target = tensor(-100.0, 4.0, name="target", dtype="int64")
    origin = Origin(
        "nll_loss", None, inputs=(tensor(-1.0), target), outputs=(tensor(NAN, name=""),), example=Example((), NAN)
    )

    assert diagnose(snapshot(origin, "loss")).cause is Cause.UNDETERMINED


def test_labels_without_weight_are_an_empty_reduction() -> None:
    """Class weights of 0 for every class that occurs: the total weight is 0."""
    target = tensor(1.0, 1.0, name="target", dtype="int64")
    origin = Origin(
        "nll_loss",
        None,
        inputs=(tensor(-1.0), target),
        outputs=(tensor(NAN, shape=()), tensor(0.0, shape=())),
        example=Example((), NAN),
    )

    assert "total weight 0" in diagnose(snapshot(origin, "loss")).evidence[0]


def test_a_ctc_target_longer_than_its_input_is_a_bad_label() -> None:
    """The lengths prove that no alignment exists."""
    origin = Origin(
        "ctc_loss",
        None,
        inputs=(tensor(-1.0),),
        outputs=(tensor(INF, name=""),),
        example=Example((1,), INF),
        arguments={"input_lengths": [10, 4], "target_lengths": [3, 6]},
    )
    diagnosis = diagnose(snapshot(origin, "loss"))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.BAD_LABEL, "certain")
    assert "zero_infinity=true" in remedy_text(diagnosis)


def test_a_finite_replay_is_transient() -> None:
    """The step was replayed, and no op made anything non-finite."""
    replay = ReplayFacts(False, ops=40)
    diagnosis = diagnose(snapshot(None, replay=replay, ops=(op(1, "mm"),), symptom=Symptom("loss", value=NAN)))

    assert (diagnosis.cause, diagnosis.confidence) == (Cause.TRANSIENT, "likely")


def test_without_a_replay_nothing_is_transient() -> None:
    """No replay, or one that reproduced: not transient."""
    for reproduced in (None, True):
        assert diagnose(snapshot(None, replay=ReplayFacts(reproduced, ops=40))).cause is Cause.UNDETERMINED


def test_undetermined_says_what_is_known() -> None:
    """The op, its operands and their ranges stand in the evidence."""
    origin = replace(pointwise("mystery", NAN, self=0.5), source=source("y = mystery(x)"))
    diagnosis = diagnose(snapshot(origin, history=history([1.0, 1.1])))

    assert diagnosis.evidence[0] == "mystery made out[3, 17] = nan of self[3, 17] = 0.5"
    assert "self (float32) goes from 0.5 to 1" in diagnosis.evidence
