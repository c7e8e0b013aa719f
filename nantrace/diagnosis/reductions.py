"""Reductions over nothing, and deviations of one element."""

from __future__ import annotations

from ..model import Cause, Origin, Remedy, Snapshot
from .finding import Finding
from .guards import for_empty, for_ignored_labels, for_one_element, for_weightless_labels
from .numbers import number, plural, show
from .reading import equation, generated_at, made_nan, operand, place, summary

_LIKELIHOODS = ("nll_loss", "nll_loss2d", "nll_loss_nd", "cross_entropy", "cross_entropy_loss")
_AVERAGES = frozenset(
    {
        "mean",
        "nanmean",
        "median",
        "nanmedian",
        "quantile",
        "nanquantile",
        "std",
        "var",
        "std_mean",
        "var_mean",
        "amax",
        "amin",
        "max",
        "min",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "kl_div",
        "soft_margin_loss",
        "poisson_nll_loss",
        "cosine_embedding_loss",
        "margin_ranking_loss",
        "triplet_margin_loss",
        "ctc_loss",
        "logsumexp",
    }
)
_DEVIATIONS = ("std", "var", "std_mean", "var_mean")


def empty_reduction(snapshot: Snapshot) -> Finding | None:
    """A mean, a deviation or a loss was taken over nothing (or a deviation over one element).

    Certain: the operand has no elements, or too few for the divisor n - 1; or every label is ignore_index, or their
    weights add up to 0.
    Likely: torch refused a reduction over nothing, and the operand is not known.
    """
    if snapshot.exception is not None:
        return _refused(snapshot)
    origin = generated_at(snapshot)
    if origin is None or not (made_nan(origin) or origin.example is None):
        return None
    if origin.op in _LIKELIHOODS:
        return _all_ignored(snapshot, origin)
    if origin.op not in _AVERAGES:
        return None
    found = operand(origin, "self", "input")
    whole = (found.summary if found is not None else None) or summary(origin, "self", "input")
    size = len(found.values) if found is not None and found.summary is None and found.kind == "slice" else None
    size = whole.numel if size is None and whole is not None else size
    certain = found is not None and found.kind == "slice"
    if size == 0 or any(given.numel == 0 for given in origin.inputs):
        shape = next((given.shape for given in origin.inputs if given.numel == 0), whole.shape if whole else ())
        text = equation(origin, f"{origin.op} of 0 elements (shape {_shape(shape)})")
        return Finding(Cause.EMPTY_REDUCTION, "certain", (text,), for_empty(snapshot, origin))
    correction = number(origin.arguments.get("correction"))
    if origin.arguments.get("unbiased") is False:
        correction = 0.0
    correction = 1.0 if correction is None else correction
    if origin.op in _DEVIATIONS and certain and size is not None and size - correction <= 0:
        text = equation(
            origin, f"{origin.op} of {plural(size, 'element')} (it divides by {size} - {show(correction)} = 0)"
        )
        return Finding(Cause.EMPTY_REDUCTION, "certain", (text,), for_one_element(snapshot, origin, size))
    return None


def _all_ignored(snapshot: Snapshot, origin: Origin) -> Finding | None:
    target = summary(origin, "target")
    read = operand(origin, "target")
    target = target or (read.summary if read is not None else None)
    if target is None:
        return None
    ignored = number(origin.arguments.get("ignore_index"))
    ignored = -100.0 if ignored is None else ignored
    if target.numel == 0:
        text = f"{place(origin.example)}: {origin.op} was given 0 labels (shape {_shape(target.shape)})"
    elif target.min == target.max == ignored:
        text = f"every one of the {target.numel} labels is ignore_index={show(ignored)}, so the mean divides by 0"
    elif (
        len(origin.outputs) > 1 and origin.outputs[1].numel == 1 and origin.outputs[1].min == origin.outputs[1].max == 0
    ):
        text = f"the labels that count have total weight 0, so the mean over {target.numel} labels divides by 0"
    else:
        return None
    weightless = "total weight 0" in text
    advice = (
        for_weightless_labels(snapshot, origin) if weightless else for_ignored_labels(snapshot, origin, show(ignored))
    )
    return Finding(Cause.EMPTY_REDUCTION, "certain", (text,), advice)


def _refused(snapshot: Snapshot) -> Finding | None:
    """The user's program was stopped by torch, which refused a reduction over nothing."""
    origin, exception = snapshot.origin, snapshot.exception
    message = exception.message if exception is not None else ""
    told = ("numel() == 0", "Expected more than 1 value per channel", "non-zero size for reduction", "empty tensor")
    if not any(phrase in message for phrase in told):
        return None
    empty = [given for given in origin.inputs if given.numel == 0] if origin is not None else []
    shapes = f"; an operand has shape {_shape(empty[0].shape)}, 0 elements" if empty else ""
    name = origin.op if origin is not None else "a reduction"
    text = f"{name} was refused: {message.splitlines()[0][:120]}{shapes}"
    advice = list(for_empty(snapshot, origin)) if empty and origin is not None else []
    advice.append(
        Remedy("Guard the empty case: skip the batch or the group that has no elements.", "if x.numel() > 0: ...")
    )
    if "per channel" in message:
        advice.append(
            Remedy(
                "BatchNorm needs more than one value per channel: drop the last batch.",
                "DataLoader(..., drop_last=True)",
            )
        )
    return Finding(Cause.EMPTY_REDUCTION, "certain" if empty else "likely", (text,), tuple(advice))


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"
