"""Every cause in one plain line, for headlines, the list of causes, and the entries."""

from __future__ import annotations

from typing import NoReturn

from ...model import Cause


def meaning(cause: Cause) -> str:
    """The cause in plain words, to stand after a colon in a headline."""
    match cause:
        case Cause.OVERFLOW:
            return "a finite result too large for its dtype"
        case Cause.LOG_DOMAIN:
            return "logarithm of zero or a negative number"
        case Cause.ZERO_DIVISION:
            return "division by zero"
        case Cause.SQRT_DOMAIN:
            return "square root of a negative number"
        case Cause.POW_DOMAIN:
            return "negative base with a fractional exponent"
        case Cause.DOMAIN:
            return "operand outside the function's domain"
        case Cause.INF_ARITHMETIC:
            return "arithmetic on an infinity that was put there on purpose (inf - inf, 0 * inf)"
        case Cause.MASKED_SOFTMAX:
            return "softmax over a row in which everything is masked"
        case Cause.EMPTY_REDUCTION:
            return "mean, deviation or loss over nothing"
        case Cause.INDEXING:
            return "index out of range, or one that reads what was never written"
        case Cause.BAD_INPUT:
            return "the batch already held NaN or Inf"
        case Cause.BAD_LABEL:
            return "missing or impossible labels"
        case Cause.BAD_PARAMETER:
            return "a parameter or buffer was not finite before the step"
        case Cause.SINGULAR_GRADIENT:
            return "finite value whose derivative is infinite or undefined there"
        case Cause.MASKED_GRADIENT:
            return "a mask hides a bad value in forward, and 0 * inf brings it back in backward"
        case Cause.LEARNING_RATE:
            return "training diverged step by step until something overflowed"
        case Cause.EXPLODING_GRADIENT:
            return "the gradient grew through depth or time until it overflowed"
        case Cause.PRECISION:
            return "the dtype is too coarse for a small number that matters here"
        case Cause.OPTIMIZER:
            return "finite gradients, but the update made a parameter non-finite"
        case Cause.TRANSIENT:
            return "did not happen again when the same step was replayed"
        case Cause.UNDETERMINED:
            return "no rule has evidence"
        case _:
            _unreachable(cause)


def _unreachable(cause: NoReturn) -> NoReturn:
    # typing.assert_never is Python 3.11's.
    raise AssertionError(f"the catalogue has no entry for {cause!r}")


MEANING: dict[Cause, str] = {cause: meaning(cause) for cause in Cause}
