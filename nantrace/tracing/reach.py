"""Which elements of an operand can have reached one element of the result.

A region is an index per dimension, an int or a slice. Ops that only move elements are asked directly: the op is run
on the positions of its operand's elements, and the answer is the position that came out.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch

from ..recording.flatten import replace_tensors
from .microscope import Kept, Seen

Region = tuple["int | slice", ...]
Index = tuple[int, ...]

_ALL = slice(None)
_EVERY_DIM = frozenset(
    {"softmax", "log_softmax", "cumsum", "cumprod", "logcumsumexp", "topk", "sort", "cummax", "cummin"}
)
_RUNNING = frozenset({"cumsum", "cumprod", "logcumsumexp", "cummax", "cummin"})  # read what stands before, no more
_REDUCTIONS = frozenset(
    {
        "sum", "mean", "nansum", "nanmean", "amax", "amin", "aminmax", "max", "min", "prod", "logsumexp", "norm",
        "linalg_vector_norm", "var", "std", "var_mean", "std_mean", "median", "all", "any", "argmax", "argmin",
    }
)  # fmt: skip
_MOVERS = frozenset(
    {
        "index", "index_select", "gather", "flip", "roll", "cat", "stack", "constant_pad_nd", "repeat", "take", "rot90",
        "unfold_copy", "index_put", "scatter", "slice_scatter", "select_scatter", "masked_scatter", "diagonal_scatter",
        "index_copy", "masked_select", "repeat_interleave", "tril", "triu", "reflection_pad1d", "reflection_pad2d",
        "replication_pad1d", "replication_pad2d", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "im2col",
    }
)  # fmt: skip
_SAME_ELEMENT = frozenset({"to_copy", "clone", "copy", "dropout", "alias_copy", "expand_copy", "bernoulli"})


def regions(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    """The operands that can have reached `output[index]`, each with the region that can."""
    rule = _rule_for(seen)
    try:
        return rule(seen, output, index)
    except (IndexError, RuntimeError, KeyError, ValueError, TypeError, NotImplementedError):
        return everything(seen, output, index)  # a shape the rule does not know: all of every operand


def everything(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    """All of every operand: never wrong, only wide."""
    return [(i, tuple(_ALL for _ in kept.place.shape)) for i, kept in enumerate(seen.kept_inputs)]


def _rule_for(seen: Seen) -> Callable[[Seen, int, Index], list[tuple[int, Region]]]:
    name = seen.facts.name
    if seen.sparse:
        return everything  # which element a stored value is, its indices say
    if seen.facts.is_foreach:
        return _foreach
    if "backward" in seen.facts.aten:  # named after its forward op, but with operands of its own
        return _along_dim if name in _EVERY_DIM else everything
    rule = _RULES.get(name)
    if rule is not None:
        return rule
    if name in _MOVERS and not seen.arguments.get("accumulate"):
        return _moved
    if name in _REDUCTIONS:
        return _reduced
    if name in _EVERY_DIM:
        return _along_dim
    if seen.facts.is_pointwise or name in _SAME_ELEMENT:
        return _pointwise
    return everything


def broadcast(index: Index, shape: tuple[int, ...]) -> Region:
    """The element of a broadcast operand at an index of the result."""
    aligned = index[len(index) - len(shape) :] if shape else ()
    return tuple(0 if size == 1 else i for i, size in zip(aligned, shape, strict=True))


def _pointwise(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    skip = 0 if seen.facts.name == "copy" else -1  # what copy_ overwrites does not reach the result
    return [(i, broadcast(index, kept.place.shape)) for i, kept in enumerate(seen.kept_inputs) if i != skip]


def _reshaped(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    """The element of the same place in the flattened order."""
    shape, own = seen.kept_outputs[output].place.shape, seen.kept_inputs[0].place.shape
    flat = sum(at * prod(shape[d + 1 :]) for d, at in enumerate(index))
    return [(0, tuple(flat // prod(own[d + 1 :]) % size for d, size in enumerate(own)))]


def _max_pooled(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    """The op itself says which element of the window it took: its second result."""
    flat = int(seen.kept_outputs[1].tensor[index])
    width = seen.kept_inputs[0].place.shape[-1]
    return [(0, (*index[:-2], flat // width, flat % width))]


def _foreach(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    found: list[tuple[int, Region]] = []
    for i, kept in enumerate(seen.kept_inputs):
        if kept.name.endswith(f"[{output}]"):
            region = broadcast(index, kept.place.shape) if len(index) == len(kept.place.shape) else None
            found.append((i, region or tuple(_ALL for _ in kept.place.shape)))
        elif "[" not in kept.name:
            found.append((i, tuple(_ALL for _ in kept.place.shape)))
    return found


def _where(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    condition = operand(seen, "condition")
    chosen = "self" if bool(condition.tensor[broadcast(index, condition.place.shape)]) else "other"
    return [(i, broadcast(index, k.place.shape)) for i, k in enumerate(seen.kept_inputs) if k.name == chosen]


def _masked_fill(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    mask = operand(seen, "mask")
    chosen = "value" if bool(mask.tensor[broadcast(index, mask.place.shape)]) else "self"
    return [(i, broadcast(index, k.place.shape)) for i, k in enumerate(seen.kept_inputs) if k.name == chosen]


def _reduced(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    shape = seen.kept_inputs[0].place.shape
    dims = seen.arguments.get("dim")
    if dims is None or dims == []:
        region: Region = tuple(_ALL for _ in shape)
    else:
        reduced = {d % len(shape) for d in (dims if isinstance(dims, list) else [dims])}
        rest = iter(index)
        if len(index) == len(shape):
            region = tuple(_ALL if d in reduced else i for d, i in enumerate(index))
        else:
            region = tuple(_ALL if d in reduced else next(rest) for d in range(len(shape)))
    return [(0, region)]


def _along_dim(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    dim = int(seen.arguments.get("dim", -1))
    found: list[tuple[int, Region]] = []
    for i, kept in enumerate(seen.kept_inputs):
        if kept.place.shape == seen.kept_outputs[output].place.shape and index:
            along = slice(index[dim % len(index)] + 1) if seen.facts.name in _RUNNING else _ALL
            found.append((i, tuple(along if d == dim % len(index) else at for d, at in enumerate(index))))
        else:
            found.append((i, tuple(_ALL for _ in kept.place.shape)))
    return found


def _product(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    """mm, bmm, addmm, baddbmm, mv, addmv: a row, a column, and the element of what is added."""
    found: list[tuple[int, Region]] = []
    factors = [i for i, kept in enumerate(seen.kept_inputs) if kept.name in _FACTORS[seen.facts.name]]
    *batch, row = index if seen.facts.name.endswith("mv") else index[:-1]
    for i, kept in enumerate(seen.kept_inputs):
        if i not in factors:
            found.append((i, broadcast(index, kept.place.shape)))
        elif i == factors[0]:
            found.append((i, (*batch, row, _ALL)))
        elif seen.facts.name.endswith("mv"):
            found.append((i, (_ALL,)))
        else:
            found.append((i, (*batch, _ALL, index[-1])))
    return found


_FACTORS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "mv": ("self", "vec"),
    "addmv": ("mat", "vec"),
}


def _embedding(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    indices = operand(seen, "indices")
    row = int(indices.tensor[index[:-1]])
    return [(0, (row, _ALL if len(index) == 0 else index[-1]))]


def _leading(count: int) -> Callable[[Seen, int, Index], list[tuple[int, Region]]]:
    """Ops that work on each sample (or each sample and channel) alone: the first `count` dims of the input are kept."""

    def rule(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
        if output != 0:
            return everything(seen, output, index)
        found: list[tuple[int, Region]] = []
        for i, kept in enumerate(seen.kept_inputs):
            if (
                kept.name in ("input", "self", "query", "key", "value")
                and kept.place.shape[:count] == _shape(seen)[:count]
            ):
                found.append((i, (*index[:count], *(_ALL for _ in kept.place.shape[count:]))))
            else:
                found.append((i, tuple(_ALL for _ in kept.place.shape)))
        return found

    return rule


def _shape(seen: Seen) -> tuple[int, ...]:
    return seen.kept_outputs[0].place.shape


def _weight_norm(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    """A row of v over its norm: every operand's part of that row."""
    if output != 0:
        return everything(seen, output, index)
    dim = int(seen.arguments.get("dim", 0))
    row = tuple(index[d] if d == dim else _ALL for d in range(len(index)))
    return [(i, row) for i in range(len(seen.kept_inputs))]


def _layer_norm(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    width = len(seen.arguments.get("normalized_shape", [0]))
    if output != 0:
        return everything(seen, output, index)
    found: list[tuple[int, Region]] = [(0, (*index[: len(index) - width], *(_ALL for _ in range(width))))]
    found += [(i, index[len(index) - width :]) for i in range(1, len(seen.kept_inputs))]
    return found


def _batch_norm(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    """In training the statistics of the batch are used: the running ones reach nothing but their own update."""
    training = bool(seen.arguments.get("training", True))
    channel = index[1] if output == 0 else index[0]
    running = () if training and output == 0 else ("running_mean", "running_var")
    found: list[tuple[int, Region]] = []
    for i, kept in enumerate(seen.kept_inputs):
        if kept.name == "input":
            whole: Region = (_ALL, channel, *(_ALL for _ in kept.place.shape[2:]))
            found.append((i, index if output == 0 and not training else whole))
        elif kept.name in ("weight", "bias", *running):
            found.append((i, (channel,)))
    return found


def _convolution(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    if seen.arguments.get("transposed"):
        return everything(seen, output, index)
    found: list[tuple[int, Region]] = []
    for i, kept in enumerate(seen.kept_inputs):
        first = {"input": index[0], "weight": index[1], "bias": index[1]}.get(kept.name)
        found.append((i, (_ALL if first is None else first, *(_ALL for _ in kept.place.shape[1:]))))
    return found


def _nll_loss(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    """A reduced loss reads one class per sample; what stands at the other classes cannot reach it."""
    scores, target = operand(seen, "self"), operand(seen, "target")
    if index:
        return [(0, (*index[:1], int(target.tensor[index]), *index[1:]))]
    picked = torch.nonzero(target.tensor.reshape(-1) != seen.arguments.get("ignore_index", -100)).flatten()
    if scores.tensor.dim() != 2:
        return everything(seen, output, index)
    found: list[tuple[int, Region]] = []
    for i in picked.tolist():
        at = (i, int(target.tensor.reshape(-1)[i]))
        if not bool(torch.isfinite(scores.tensor[at])):
            found.append((0, at))
            break
    return found


def _moved(seen: Seen, output: int, index: Index) -> list[tuple[int, Region]]:
    """Run the op on positions: each floating element is numbered, and the number that comes out names the source."""
    starts: list[tuple[int, int]] = []  # (first number, operand)
    total = 0
    numbered: dict[str, torch.Tensor] = {}
    for i, kept in enumerate(seen.kept_inputs):
        if kept.tensor.is_floating_point() or kept.tensor.is_complex():
            count = kept.tensor.numel()
            numbered[kept.name] = torch.arange(total, total + count, device=kept.tensor.device).reshape(
                kept.tensor.shape
            )
            starts.append((total, i))
            total += count
    names = iter([kept.name for kept in seen.kept_inputs])
    by_name = {kept.name: kept.tensor for kept in seen.kept_inputs}

    def number(tensor: torch.Tensor) -> torch.Tensor:
        name = next(names)
        return numbered.get(name, by_name[name])

    args = replace_tensors(seen.args, number)
    kwargs = {k: (-1 if k == "value" else v) for k, v in seen.kwargs.items()}
    if seen.facts.name == "constant_pad_nd":
        args = (args[0], args[1], -1)
    moved = _out_of_place(seen, args, kwargs)
    source = int(moved[index])
    if source < 0:
        return []  # padding: written by the op's own literal
    start, which = max((start, i) for start, i in starts if start <= source)
    shape = seen.kept_inputs[which].place.shape
    return [(which, tuple(int(i) for i in torch.unravel_index(torch.tensor(source - start), shape)) if shape else ())]


def _out_of_place(seen: Seen, args: Any, kwargs: Any) -> torch.Tensor:
    result = seen.func(*args, **kwargs)  # an in-place mover writes into the numbers, which are ours
    first: torch.Tensor = result[0] if isinstance(result, (tuple, list)) else result
    return first


def operand(seen: Seen, name: str) -> Kept:
    """The kept operand of that name; KeyError where there is none."""
    for kept in seen.kept_inputs:
        if kept.name == name:
            return kept
    raise KeyError(name)


_RULES: dict[str, Callable[[Seen, int, Index], list[tuple[int, Region]]]] = {
    "where": _where,
    "masked_fill": _masked_fill,
    "mm": _product,
    "bmm": _product,
    "addmm": _product,
    "baddbmm": _product,
    "mv": _product,
    "addmv": _product,
    "embedding": _embedding,
    "layer_norm": _layer_norm,
    "weight_norm_interface": _weight_norm,
    "batch_norm": _batch_norm,
    "batch_norm_legit": _batch_norm,
    "batch_norm_with_update": _batch_norm,
    "group_norm": _leading(1),
    "convolution": _convolution,
    "nll_loss": _nll_loss,
    "max_pool2d": _max_pooled,
    "unsafe_view": _reshaped,
    "avg_pool2d": _leading(2),
    "adaptive_avg_pool2d": _leading(2),
    "scaled_dot_product_flash_attention": _leading(2),
}
