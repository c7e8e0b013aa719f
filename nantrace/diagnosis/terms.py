"""Which term of the loss made the value, or carries the gradient that exploded: whose weight to lower."""

from __future__ import annotations

from math import isfinite

from ..model import Cause, LossTerm, Remedy, Snapshot
from .finding import Finding
from .numbers import plural, show
from .rates import round_down, spelled

_GROWN = (Cause.LEARNING_RATE, Cause.EXPLODING_GRADIENT)
_CARRIES = 0.8  # of the gradient: then it is this term's weight that matters
_SHOWN = 3  # terms in a sentence


def with_terms(snapshot: Snapshot, finding: Finding) -> Finding:
    """The finding with what the terms of the loss say about it, and the advice to lower the weight of one."""
    terms = snapshot.terms
    if len(terms) < 2 or snapshot.source_value is not None:
        return finding
    sentence = _by_value(terms)
    heavy = None
    if finding.cause in _GROWN:
        heavy = _heaviest(terms)
        sentence = _by_gradient(terms) or sentence
    if not sentence:
        return finding
    position = 1 if finding.cause in _GROWN else len(finding.evidence)
    evidence = (*finding.evidence[:position], sentence, *finding.evidence[position:])
    remedies = finding.remedies
    if heavy is not None and (advice := _lighter(heavy, terms)) is not None:
        remedies = (*remedies[:1], advice, *remedies[1:])
    return Finding(finding.cause, finding.confidence, evidence, remedies)


def _by_value(terms: tuple[LossTerm, ...]) -> str:
    """Which terms are not finite, where others are."""
    bad = [term for term in terms if term.value is not None and not isfinite(term.value)]
    good = [term for term in terms if term.value is not None and isfinite(term.value)]
    if not bad or not good:
        return ""
    fine = ", ".join(_valued(term) for term in good[:_SHOWN]) + (", ..." if len(good) > _SHOWN else "")
    is_bad = " and ".join(f"`{term.name}`{_times(term)} is {show(term.value or 0.0)}" for term in bad[:_SHOWN])
    return f"of the {plural(len(terms), 'term')} of the loss {is_bad}; finite: {fine}"


def _by_gradient(terms: tuple[LossTerm, ...]) -> str:
    """Which term the gradient comes from, with its share."""
    norms = [term.gradient_norm for term in terms]
    if any(norm is None for norm in norms):
        return ""
    bad = [term for term in terms if not isfinite(term.gradient_norm or 0.0)]
    good = [term for term in terms if isfinite(term.gradient_norm or 0.0)]
    if bad and good:
        which = " and ".join(f"`{term.name}`{_times(term)}{_weighted(term)}" for term in bad[:_SHOWN])
        rest = ", ".join(f"{term.name} {show(term.gradient_norm or 0.0)}" for term in good[:_SHOWN])
        return (
            f"of the {plural(len(terms), 'term')} of the loss {which} has a gradient that is not finite; norms of the "
            f"others: {rest}"
        )
    total = sum(norm for norm in norms if norm is not None)
    if bad or total <= 0:
        return ""
    ranked = sorted(terms, key=lambda term: term.gradient_norm or 0.0, reverse=True)
    first = ranked[0]
    rest = ", ".join(f"{term.name} {show(term.gradient_norm or 0.0)}" for term in ranked[1 : _SHOWN + 1])
    share = 100 * (first.gradient_norm or 0.0) / total
    return (
        f"{share:.3g}% of the gradient comes from the term `{first.name}`{_times(first)}{_weighted(first)}, with a "
        f"norm of {show(first.gradient_norm or 0.0)}; the others: {rest}"
    )


def _heaviest(terms: tuple[LossTerm, ...]) -> LossTerm | None:
    """The one term that carries the gradient, or the only one whose gradient is not finite."""
    norms = [term.gradient_norm for term in terms if term.gradient_norm is not None]
    if len(norms) != len(terms):
        return None
    bad = [term for term in terms if not isfinite(term.gradient_norm or 0.0)]
    if bad:
        return bad[0] if len(bad) == 1 else None
    first = max(terms, key=lambda term: term.gradient_norm or 0.0)
    return first if (first.gradient_norm or 0.0) >= _CARRIES * sum(norms) else None


def _lighter(heavy: LossTerm, terms: tuple[LossTerm, ...]) -> Remedy | None:
    """A weight with which its gradient is as large as that of the others together; a tenth where that is open."""
    norm = heavy.gradient_norm or 0.0
    others = sum(term.gradient_norm or 0.0 for term in terms if term is not heavy)
    if heavy.weight == 0:
        return None
    part = others / norm if isfinite(norm) and norm > 0 and others > 0 else 0.1
    weight = round_down(abs(heavy.weight) * part) * (1 if heavy.weight > 0 else -1)
    reason = "its gradient is then as large as that of the other terms together" if part != 0.1 else "a tenth"
    code = f"{spelled(weight)} * {heavy.name}  # in the sum of the loss, now {show(heavy.weight)} * {heavy.name}"
    return Remedy(f"Lower the weight of `{heavy.name}` from {show(heavy.weight)} to {spelled(weight)}: {reason}.", code)


def _valued(term: LossTerm) -> str:
    return f"{term.name} = {show(term.value)}" if term.value is not None else term.name


def _weighted(term: LossTerm) -> str:
    return f" (weight {show(term.weight)})" if term.weight != 1 else ""


def _times(term: LossTerm) -> str:
    return f" (the sum of {term.count})" if term.count > 1 else ""
