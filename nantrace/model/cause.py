"""The closed set of causes."""

from __future__ import annotations

from enum import Enum


class Cause(str, Enum):
    """Why a non-finite value came into being. The value is the spelling users see."""

    OVERFLOW = "overflow"
    LOG_DOMAIN = "log-domain"
    ZERO_DIVISION = "zero-division"
    SQRT_DOMAIN = "sqrt-domain"
    POW_DOMAIN = "pow-domain"
    DOMAIN = "domain"
    INF_ARITHMETIC = "inf-arithmetic"
    MASKED_SOFTMAX = "masked-softmax"
    EMPTY_REDUCTION = "empty-reduction"
    INDEXING = "indexing"
    BAD_INPUT = "bad-input"
    BAD_LABEL = "bad-label"
    BAD_PARAMETER = "bad-parameter"
    SINGULAR_GRADIENT = "singular-gradient"
    MASKED_GRADIENT = "masked-gradient"
    LEARNING_RATE = "learning-rate"
    EXPLODING_GRADIENT = "exploding-gradient"
    PRECISION = "precision"
    OPTIMIZER = "optimizer"
    TRANSIENT = "transient"
    UNDETERMINED = "undetermined"

    def __str__(self) -> str:
        return self.value
