"""Softmax rows with nothing left in them, and reductions over nothing."""

from __future__ import annotations

from ..model import Cause, Origin, Remedy, Snapshot
from .finding import Finding
from .numbers import number, plural, show, show_index
from .reading import element, equation, generated_at, made_nan, maker, operand, place, summary
from .rewriting import atom, operand_text, rewritten

_SOFTMAXES = ("softmax", "log_softmax", "safe_softmax", "masked_softmax", "sparse_softmax", "softmin", "gumbel_softmax")
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


def masked_softmax(snapshot: Snapshot) -> Finding | None:
    """A softmax read a row in which every entry is -inf.

    Certain: the row was read and all its entries are -inf; or a softmax by hand subtracts the row's maximum, -inf,
    from -inf.
    Likely: finite scores and -inf alone made NaN, which only a row without a finite entry does.
    """
    origin = snapshot.origin
    if origin is None or snapshot.source_value is not None:
        return None
    if origin.op not in _SOFTMAXES and "attention" not in origin.op:
        return _softmax_by_hand(snapshot)
    row = operand(origin, "self", "input", "attn_mask", "scores")
    if row is not None and row.kind == "slice":
        whole = row.summary
        total, masked = (whole.numel, whole.neg_inf) if whole is not None else (len(row.values), _masked(row.values))
        if not total or masked != total:
            return None
        at = show_index(_row_index(origin))
        evidence = (
            f"row {at or '0'} of the {origin.op} holds nothing but -inf (all {plural(total, 'entry', 'entries')})"
        )
        return Finding(Cause.MASKED_SOFTMAX, "certain", (evidence, *_nan_rows(origin)), _for_row(origin))
    scores = summary(origin, "self", "input", "attn_mask")
    # Finite numbers and -inf alone give NaN only where a row has no finite number at all.
    if scores is None or not scores.neg_inf or scores.nan or scores.pos_inf or not made_nan(origin):
        return None
    entries = plural(scores.neg_inf, "entry", "entries")
    evidence = f"the {origin.op} made NaN of finite scores and {entries} -inf: some row is all -inf"
    return Finding(Cause.MASKED_SOFTMAX, "likely", (evidence, *_nan_rows(origin)), _for_row(origin))


def _softmax_by_hand(snapshot: Snapshot) -> Finding | None:
    origin = generated_at(snapshot, "sub")
    if origin is None:
        return None
    a, b = element(origin, "self"), element(origin, "other")
    made = maker(snapshot, "other")
    if a != float("-inf") or b != a or made is None or made.name not in ("amax", "max", "logsumexp"):
        return None
    text = equation(origin, f"-inf - -inf: the {made.name} of the row is -inf, so everything in it is masked")
    return Finding(Cause.MASKED_SOFTMAX, "certain", (text,), _for_row(origin))


def _masked(values: tuple[float, ...]) -> int:
    return sum(value == float("-inf") for value in values)


def _row_index(origin: Origin) -> tuple[int, ...]:
    index = list(origin.example.index) if origin.example is not None else []
    dim = number(origin.arguments.get("dim"))
    if index and dim is not None and -len(index) <= int(dim) < len(index):
        del index[int(dim)]
    return tuple(index)


def _nan_rows(origin: Origin) -> tuple[str, ...]:
    if not origin.outputs or not origin.outputs[0].nan:
        return ()
    out = origin.outputs[0]
    dim = number(origin.arguments.get("dim"))
    rank = len(out.shape)
    width = out.shape[int(dim)] if dim is not None and -rank <= int(dim) < rank else 0
    if not width or out.nan % width:
        return (f"{out.nan} of {out.numel} results are NaN",)
    return (f"{plural(out.nan // width, 'row')} of {out.numel // width} came out as NaN",)


def _for_row(origin: Origin) -> tuple[Remedy, ...]:
    scores = operand_text(origin, 0, "scores")
    return (
        Remedy(
            "Guard rows in which everything is masked (an empty sequence, padding only): leave one position of them "
            "unmasked, or drop the sample.",
            "empty = pad.all(dim=-1, keepdim=True)  # rows without anything to attend to\npad = pad & ~empty",
        ),
        Remedy(
            "Or mask with a large finite number: the row becomes uniform instead of NaN; zero its result afterwards.",
            rewritten(
                origin,
                0,
                "{}.clamp_min(torch.finfo(" + atom(scores) + ".dtype).min)",
                f"{scores} = {atom(scores)}.masked_fill(pad, torch.finfo({atom(scores)}.dtype).min)",
            ),
        ),
    )


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
        return _all_ignored(origin)
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
        return Finding(Cause.EMPTY_REDUCTION, "certain", (text,), _for_empty(origin))
    correction = number(origin.arguments.get("correction"))
    if origin.arguments.get("unbiased") is False:
        correction = 0.0
    correction = 1.0 if correction is None else correction
    if origin.op in _DEVIATIONS and certain and size is not None and size - correction <= 0:
        text = equation(
            origin, f"{origin.op} of {plural(size, 'element')}, which divides by {size} - {show(correction)} = 0"
        )
        advice = Remedy(
            f"A deviation of one element does not exist: use unbiased=False (correction=0), or guard groups of {size}.",
            f"{origin.op}(dim=..., unbiased=False)",
        )
        return Finding(Cause.EMPTY_REDUCTION, "certain", (text,), (advice,))
    return None


def _all_ignored(origin: Origin) -> Finding | None:
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
    advice = (
        Remedy(
            "Skip the loss where no label counts (every one is ignored), or make sure that a batch always has one.",
            f"if (labels != {show(ignored)}).any():\n    loss = criterion(logits, labels)\nelse:\n    loss = "
            "logits.sum() * 0",
        ),
        Remedy(
            "Or sum and divide by a count of at least 1.",
            f'F.cross_entropy(logits, labels, ignore_index={show(ignored)}, reduction="sum") '
            f"/ (labels != {show(ignored)}).sum().clamp_min(1)",
        ),
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
    advice = [
        Remedy("Guard the empty case: skip the batch or the group that has no elements.", "if x.numel() > 0: ...")
    ]
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


def _for_empty(origin: Origin) -> tuple[Remedy, ...]:
    x = operand_text(origin, 0, "x")
    return (
        Remedy(
            f"Guard the empty case: {x} has no elements in this step, so skip the term or count it as 0.",
            f"loss = {atom(x)}.{origin.op}() if {atom(x)}.numel() else {atom(x)}.sum()  # the sum of nothing is 0",
        ),
        Remedy(
            "Or divide the sum by a count of at least 1.",
            f"{atom(x)}.sum() / max({atom(x)}.numel(), 1)",
        ),
    )
