"""What a remedy would change in the step, as plain data, and what came of trying it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """One change to the step that a replay can try: what the remedy's code does to the values.

    `act` says what is done, `op` to which executed op (its id among the snapshot's ops; for a derivative the
    forward op). Every execution of the same line of code is changed with it, as by an edit of that line. An empty
    `operand`, for an act on an operand, is every tensor operand of the op; the operand "out" is the op's result. Of an
    act without an `op` the whole step is meant.

    | act | meaning of `operand`, `values`, `name` |
    |---|---|
    | "clamp" | the operand clamped to [values[0], values[1]]; an infinite bound is none |
    | "add" | the operand + values[0] |
    | "fill" | elements of the operand outside the open interval (values[0], values[1]) become values[2] |
    | "nonzero" | elements of the operand that are exactly 0 become values[0] |
    | "finite" | non-finite elements of the operand become values[0] |
    | "scale" | the operand * values[0] |
    | "subtract-max" | the operand minus its own maximum over the dimension values[0], kept |
    | "tanh" | values[0] * tanh(operand / values[0]) |
    | "unmask" | slices of the operand along dimension values[0] that are masked as a whole are opened |
    | "jitter" | the operand (square matrices) + values[0] * identity |
    | "spread" | the operand (square matrices) + values[0] * a diagonal of 1, 2, 3, ...: equal eigenvalues part |
    | "where-zero" | elements of the operand become values[0] where the op's other operand is exactly 0 |
    | "argument" | the non-tensor argument `operand` (eps, p, the other of x + 1e-8, ...) becomes values[0] |
    | "dtype" | the op runs in the dtype `name`, outside autocast; its result is cast back where what follows needs it |
    | "dtype" without `op` | parameters, buffers and inputs of the narrow dtype are of the dtype `name`, and so is |
    | | what autocast and casts make of others |
    | "zero" | the op's result, where not finite, counts as 0 and has no gradient: the empty case is skipped |
    | "fused" | the op and what made its operand become one op: `name` "log_softmax", "logsigmoid" (also of |
    |         | 1 - sigmoid(x), as logsigmoid(-x)), "logsumexp", "softplus" (of log(1 + exp(x))), |
    |         | "sigmoid" (of 1 / (1 + exp(-x))) |
    | "select" | elements at which the operand is not finite leave the op: all its operands are indexed with the rest |
    | "agree" | non-finite elements of the operand become those of the op's other operand, detached: no loss there |
    | "samples" | samples with a non-finite value (or an impossible label) leave the batch |
    | "parameter" | the non-finite elements of the parameter or buffer `name` become values[0] |
    | "setting" | the optimizer's setting `name` (lr, eps, ...) becomes values[0] |
    | "clip" | the gradients are clipped to the total 2-norm values[0] before the update |
    """

    act: str
    op: int | None = None
    operand: str = ""
    values: tuple[float, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """A change that was tried in a replay of the step, on copies, and whether loss and gradients became finite."""

    change: Change
    finite: bool | None  # None: it could not be tried, `said` tells why
    said: str = ""  # what came of it, in a sentence
