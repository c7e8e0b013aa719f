"""Linear algebra on a matrix that is singular, not positive definite, or too ill-conditioned."""

from __future__ import annotations

import re
from math import inf

from ..model import Cause, Origin, Remedy, Snapshot, TensorSummary
from .edits import Edit, change, edit_call, edit_operand
from .finding import Finding
from .numbers import limits, plural, show, show_index
from .reading import generated_at, made_nan, makers, summary
from .rewriting import atom, call_of, operand_text, target

_REFUSALS = (
    (re.compile(r"not positive-definite"), "is not positive definite"),
    (re.compile(r"singular"), "is singular"),
    (re.compile(r"failed to converge|did not converge|ill-conditioned"), "has equal or too many close singular values"),
)
_INVERSES = {"linalg_inv_ex", "linalg_solve_ex", "linalg_lu_factor_ex", "linalg_cholesky_ex", "inverse"}
_TRIANGULAR = {"linalg_solve_triangular", "triangular_solve", "cholesky_solve", "cholesky_inverse", "linalg_lu_solve"}


def refused_factorization(snapshot: Snapshot) -> Finding | None:
    """torch.linalg would not decompose or invert a matrix whose entries are all finite, or found a pivot of 0.

    Certain: torch refused a matrix whose entries were read and are all finite; or its elimination met a pivot of
    exactly 0, or a triangular matrix has a 0 on its diagonal.
    Likely: the matrix is not known, and the message of the exception tells; or an inverse of finite entries is not
    finite.
    """
    origin, exception = snapshot.origin, snapshot.exception
    if origin is None:
        return None
    if exception is None:
        return _singular(snapshot)
    reason = next((words for pattern, words in _REFUSALS if pattern.search(exception.message)), None)
    if reason is None or any(given.nonfinite for given in origin.inputs):
        return None
    evidence = [f"{origin.op} was refused: {exception.message.splitlines()[0][:160]}"]
    if origin.inputs:
        evidence.append(_matrix(origin, origin.inputs[0], reason))
    certain = "certain" if origin.inputs else "likely"
    return Finding(Cause.DOMAIN, certain, tuple(evidence), jittered(snapshot, origin))


def log_determinant(snapshot: Snapshot) -> Finding | None:
    """The logarithm of a determinant that is zero or negative was taken.

    Certain: the sign of the determinant was read: 0 for a singular matrix, or -1.
    Likely: the log-determinant of a finite matrix is not finite.
    """
    origin = generated_at(snapshot)
    if origin is None or not any(found.nonfinite for found in origin.outputs):
        return None
    if origin.op in ("logdet", "slogdet", "linalg_slogdet"):
        given = origin.inputs[0] if origin.inputs else None
        if given is None or given.nonfinite:
            return None
        sign = origin.outputs[0] if len(origin.outputs) > 1 else None
        # slogdet says itself that the determinant is 0: its sign is 0 then, and nowhere else.
        certain = sign is not None and sign.numel == 1 and sign.min == sign.max == 0
        made = "negative" if made_nan(origin) else "zero"
        text = f"the determinant is {made}{', so the matrix is singular' if made == 'zero' else ''}"
        evidence = (_matrix(origin, given, f"has no log-determinant: {text}"),)
        return Finding(Cause.LOG_DOMAIN, "certain" if certain else "likely", evidence, jittered(snapshot, origin))
    if origin.op == "where" and _logdet_called(origin):
        return _negative_determinant(snapshot, origin)
    return None


def _singular(snapshot: Snapshot) -> Finding | None:
    """An inverse or a solution of a finite matrix came out infinite or NaN."""
    origin = generated_at(snapshot, *_INVERSES, *_TRIANGULAR)
    given = _given(origin) if origin is not None else None
    if origin is None or given is None or any(found.nonfinite for found in origin.inputs):
        return None
    status = origin.outputs[-1] if origin.op.endswith("_ex") and len(origin.outputs) > 1 else None
    pivot = int(status.max) if status is not None and status.max else 0
    at = _zero_on_the_diagonal(origin) if not pivot else None
    if pivot:
        told = f"is singular: elimination met a pivot of exactly 0 in column {pivot}"
    elif at is not None:
        told = f"is singular: its diagonal is 0 at {show_index((at, at))}"
    else:
        told = "is singular or nearly so: its inverse is not finite"
    # The status is that of every matrix of a batch; the pivot is the first bad one's.
    evidence = [_matrix(origin, given, told)]
    if "not finite" in told:
        count = sum(found.nonfinite for found in origin.outputs[:1])
        evidence.append(f"{plural(count, 'value')} that {origin.op} made of finite operands are not finite")
    sure = "certain" if pivot or at is not None else "likely"
    return Finding(Cause.DOMAIN, sure, tuple(evidence), jittered(snapshot, origin))


def _given(origin: Origin) -> TensorSummary | None:
    return summary(origin, "A", "LU", "self", "input") or (origin.inputs[0] if origin.inputs else None)


def _zero_on_the_diagonal(origin: Origin) -> int | None:
    """Where the diagonal of a triangular matrix is 0, for a matrix that is small enough to be known."""
    operands = origin.example.operands if origin.example is not None else ()
    found = next((one for one in operands if one.name in ("A", "self", "input") and one.summary is not None), None)
    if origin.op not in _TRIANGULAR or found is None or found.summary is None or len(found.summary.shape) != 2:
        return None
    rows, columns = found.summary.shape
    if rows != columns or len(found.values) != rows * columns:
        return None
    return next((i for i in range(rows) if found.values[i * (rows + 1)] == 0), None)


def _logdet_called(origin: Origin) -> bool:
    """Whether the `where` is torch.logdet's own, which chooses a NaN where the determinant is negative."""
    source = origin.source
    return source is not None and "logdet(" in (source.expression or source.code)


def _negative_determinant(snapshot: Snapshot, origin: Origin) -> Finding | None:
    made = next((op for op in makers(snapshot, "condition", depth=3) if op.name == "linalg_slogdet"), None)
    sign = made.outputs[0] if made is not None and made.outputs else None
    if sign is not None and sign.min is not None and sign.min >= 0:
        return None
    matrix = operand_text(Origin("linalg_slogdet", origin.module, source=origin.source), 0, "A")
    told = f": {made.inputs[0].dtype}{list(made.inputs[0].shape)}" if made is not None and made.inputs else ""
    evidence = f"the determinant of {matrix} is negative, and a negative number has no logarithm{told}"
    call = call_of(Origin("linalg_slogdet", origin.module, source=origin.source))
    only = f"torch.linalg.slogdet({matrix})[1]"
    asked = Origin("linalg_slogdet", origin.module, source=origin.source)
    edit = edit_call(asked, only, only) if call is not None and "torch." in call.line else Edit(only)
    advice = (
        edit.remedy("If only the volume matters, take the logarithm of the determinant's magnitude: slogdet."),
        Remedy(
            "If the matrix is a covariance, build it so that it is positive definite: L @ L.T plus a small eps * I.",
            f"{target(matrix)} = {atom(matrix)} @ {atom(matrix)}.mT + 1e-6 * torch.eye({atom(matrix)}.shape[-1])",
        ),
    )
    return Finding(Cause.LOG_DOMAIN, "certain" if sign is not None else "likely", (evidence,), advice)


def _matrix(origin: Origin, given: TensorSummary, told: str) -> str:
    """The matrix with its range: "A is singular: float32[2, 2], 1 .. 4"."""
    shape = ", ".join(str(size) for size in given.shape)
    ends = (0 if given.min is None else given.min, 0 if given.max is None else given.max)
    return f"{operand_text(origin, 0, 'A')} {told}: {given.dtype}[{shape}], {show(ends[0])} .. {show(ends[1])}"


def jittered(snapshot: Snapshot, origin: Origin) -> tuple[Remedy, ...]:
    """A multiple of the identity on the matrix: half of the dtype's digits of its largest entry."""
    given = _given(origin)
    grain = limits(given.dtype) if given is not None else None
    eps = float(f"{(grain.eps if grain is not None else 1e-7) ** 0.5 * (given.absmax or 1.0 if given else 1.0):.0e}")
    name = operand_text(origin, 0, "A")
    call = call_of(origin)
    eye = "torch.eye({}.shape[-1], dtype={}.dtype, device={}.device)"
    eye = eye if call is None or "torch." in call.line else "{}.new_ones({}.shape[-1]).diag()"
    template = "{} + " + f"{eps:g} * " + eye
    edit = edit_operand(origin, 0, template, f"{target(name)} = {template.replace('{}', atom(name))}")
    operand = given.name if given is not None else "A"
    jitter = edit.remedy(
        f"Add a small multiple of the identity, eps * I, to the matrix: {eps:g} is half of the digits of its largest "
        "entry, so that neither the result nor its gradient leaves the dtype.",
        change(snapshot, "jitter", operand, eps) if eps < inf else None,
    )
    finer = Remedy("Or decompose in float64, which has twice the digits.", f"{atom(name)}.double()")
    return (jitter, finer)
