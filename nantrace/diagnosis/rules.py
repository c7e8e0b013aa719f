"""The rules, deepest cause first, and the causes that each may find: where several have evidence, the first counts."""

from __future__ import annotations

from collections.abc import Mapping

from ..model import Cause
from .alignments import impossible_alignment
from .casts import narrowed_gradient
from .division import zero_division
from .domains import domain, pow_domain, sqrt_domain
from .factorizations import log_determinant, refused_factorization
from .finding import Rule
from .gradients import masked_gradient, singular_gradient, tamed_value
from .hidden import hidden_branch
from .indexing import indexing
from .infinities import inf_arithmetic
from .logarithms import log_domain
from .optimizers import inner_eps, inner_op, optimizer, optimizer_precision
from .overflow import overflow, overflow_in_backward
from .precision import underflowed_denominator, underflowed_operand, vanished_eps
from .reductions import empty_reduction
from .softmaxes import masked_softmax
from .sources import bad_input, bad_label, bad_parameter
from .training import divergence, exploding_gradient, learning_rate
from .unexplained import transient

CAUSES_OF: Mapping[Rule, tuple[Cause, ...]] = {
    # What came in from outside: no op of the step is to blame.
    transient: (Cause.TRANSIENT,),
    indexing: (Cause.INDEXING,),
    bad_input: (Cause.BAD_INPUT,),
    impossible_alignment: (Cause.BAD_LABEL,),
    bad_label: (Cause.BAD_LABEL,),
    bad_parameter: (Cause.BAD_PARAMETER,),
    # What the whole run did, told by the history; the overflow it ended in follows.
    learning_rate: (Cause.LEARNING_RATE,),
    exploding_gradient: (Cause.EXPLODING_GRADIENT,),
    # The dtype, where a finer one would have had no problem.
    optimizer_precision: (Cause.PRECISION,),
    optimizer: (Cause.OPTIMIZER,),
    vanished_eps: (Cause.PRECISION,),
    inner_eps: (Cause.PRECISION,),
    underflowed_denominator: (Cause.PRECISION,),
    # The structure of the data: nothing to reduce, nothing left by the mask.
    masked_softmax: (Cause.MASKED_SOFTMAX,),
    empty_reduction: (Cause.EMPTY_REDUCTION,),
    refused_factorization: (Cause.DOMAIN,),
    log_determinant: (Cause.LOG_DOMAIN,),
    # What a mask hides from the loss.
    hidden_branch: (Cause.MASKED_GRADIENT,),
    # The op at its operands.
    log_domain: (Cause.LOG_DOMAIN,),
    zero_division: (Cause.ZERO_DIVISION,),
    sqrt_domain: (Cause.SQRT_DOMAIN,),
    pow_domain: (Cause.POW_DOMAIN,),
    domain: (Cause.DOMAIN,),
    singular_gradient: (Cause.SINGULAR_GRADIENT,),
    tamed_value: (Cause.LOG_DOMAIN, Cause.ZERO_DIVISION, Cause.OVERFLOW, Cause.DOMAIN),
    masked_gradient: (Cause.MASKED_GRADIENT,),
    inf_arithmetic: (Cause.INF_ARITHMETIC,),
    overflow: (Cause.OVERFLOW,),
    narrowed_gradient: (Cause.OVERFLOW,),
    overflow_in_backward: (Cause.OVERFLOW,),
    # True as well, but never the first thing to say.
    underflowed_operand: (Cause.PRECISION,),
    divergence: (Cause.LEARNING_RATE,),
    inner_op: (Cause.OPTIMIZER,),
}
RULES: tuple[Rule, ...] = tuple(CAUSES_OF)
