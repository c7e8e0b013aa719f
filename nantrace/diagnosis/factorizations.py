"""A decomposition that torch refused: a matrix that is singular, not positive definite, or too ill-conditioned."""

from __future__ import annotations

import re

from ..model import Cause, Remedy, Snapshot
from .finding import Finding
from .numbers import limits, show
from .rewriting import atom, operand_text

_REFUSALS = (
    (re.compile(r"not positive-definite"), "is not positive definite"),
    (re.compile(r"singular"), "is singular"),
    (re.compile(r"failed to converge|did not converge|ill-conditioned"), "has equal or too many close singular values"),
)


def refused_factorization(snapshot: Snapshot) -> Finding | None:
    """torch.linalg would not decompose or invert a matrix whose entries are all finite.

    Certain: torch refused a matrix whose entries were read and are all finite.
    Likely: the matrix is not known; the message of the exception tells.
    """
    origin, exception = snapshot.origin, snapshot.exception
    if origin is None or exception is None:
        return None
    reason = next((words for pattern, words in _REFUSALS if pattern.search(exception.message)), None)
    if reason is None or any(given.nonfinite for given in origin.inputs):
        return None
    matrix = operand_text(origin, 0, "A")
    evidence = [f"{origin.op} was refused: {exception.message.splitlines()[0][:160]}"]
    eps = "1e-6"
    if origin.inputs:
        given = origin.inputs[0]
        shape = ", ".join(str(size) for size in given.shape)
        evidence.append(f"{matrix} {reason}: {given.dtype}[{shape}], {show(given.min or 0)} .. {show(given.max or 0)}")
        grain = limits(given.dtype)
        if grain is not None and given.absmax:
            eps = show(8 * grain.eps * given.absmax)
    jitter = Remedy(
        f"Add a small multiple of the identity, a few roundings of the largest entry ({eps}), to the matrix.",
        f"{matrix} = {atom(matrix)} + {eps} * torch.eye({atom(matrix)}.shape[-1], device={atom(matrix)}.device)",
    )
    finer = Remedy("Or decompose in float64, which has twice the digits.", f"{atom(matrix)}.double()")
    return Finding(Cause.DOMAIN, "certain" if origin.inputs else "likely", tuple(evidence), (jitter, finer))
