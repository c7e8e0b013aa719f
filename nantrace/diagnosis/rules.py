"""The rules, deepest cause first: where several have evidence, the first is the cause."""

from __future__ import annotations

from .casts import narrowed_gradient
from .division import zero_division
from .domains import domain, pow_domain, sqrt_domain
from .factorizations import refused_factorization
from .finding import Rule
from .gradients import masked_gradient, singular_gradient
from .indexing import indexing
from .infinities import inf_arithmetic
from .logarithms import log_domain
from .optimizers import inner_eps, inner_op, optimizer, optimizer_precision
from .overflow import overflow, overflow_in_backward
from .precision import underflowed_denominator, underflowed_operand, vanished_eps
from .reductions import empty_reduction, masked_softmax
from .sources import bad_input, bad_label, bad_parameter
from .training import divergence, exploding_gradient, learning_rate
from .unexplained import transient

RULES: tuple[Rule, ...] = (
    # What came in from outside: no op of the step is to blame.
    transient,
    indexing,
    bad_input,
    bad_label,
    bad_parameter,
    # What the whole run did, told by the history; the overflow it ended in follows.
    learning_rate,
    exploding_gradient,
    # The dtype, where a finer one would have had no problem.
    optimizer_precision,
    optimizer,
    vanished_eps,
    inner_eps,
    underflowed_denominator,
    # The structure of the data: nothing to reduce, nothing left by the mask.
    masked_softmax,
    empty_reduction,
    refused_factorization,
    # The op at its operands.
    log_domain,
    zero_division,
    sqrt_domain,
    pow_domain,
    domain,
    singular_gradient,
    masked_gradient,
    inf_arithmetic,
    overflow,
    narrowed_gradient,
    overflow_in_backward,
    # True as well, but never the first thing to say.
    underflowed_operand,
    divergence,
    inner_op,
)
