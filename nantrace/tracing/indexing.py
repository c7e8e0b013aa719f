"""An index out of range, read from the operands of the op that raised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..model import IndexFacts
from .failures import Failure
from .microscope import FailedOp
from .schema import operands, scalars


def index_out_of_range(failure: Failure) -> IndexFacts | None:
    """The first index outside its range, where it was that which an op refused."""
    if failure.op is None or not isinstance(failure.error, (IndexError, RuntimeError)):
        return None
    return _out_of_range(failure.op)


def _out_of_range(failed: FailedOp) -> IndexFacts | None:
    """The first index that lies outside its range."""
    for name, index, size, wraps, ignored, table in _indices(failed):
        low = -size if wraps else 0
        wrong = (index < low) | (index >= size)
        if ignored is not None:
            wrong &= index != ignored
        if bool(wrong.any()):
            at = tuple(int(i) for i in wrong.nonzero()[0]) if index.dim() else ()
            value, count = int(index[at]), int(wrong.sum())
            meant = index if ignored is None else index[index != ignored]
            least, most = (int(end) for end in meant.aminmax())
            return IndexFacts(failed.facts.name, name, value, at, low, size, count, tuple(table.shape), least, most)
    return None


def _indices(failed: FailedOp) -> Iterator[tuple[str, torch.Tensor, int, bool, int | None, torch.Tensor]]:
    """(operand name, index tensor, size of the indexed dim, negative indices wrap, ignored value, table) per index."""
    facts = failed.facts
    by_name = dict(operands(facts, failed.args, failed.kwargs))
    numbers: dict[str, Any] = scalars(facts, failed.args, failed.kwargs)
    table = by_name.get("self", by_name.get("weight"))
    if table is None:
        return
    if facts.name in ("embedding", "embedding_bag"):
        yield "indices", by_name["indices"], by_name["weight"].shape[0], False, None, by_name["weight"]
    elif facts.name in ("nll_loss", "nll_loss2d", "cross_entropy_loss"):
        classes = table.shape[1 if table.dim() > 1 else 0]
        yield "target", by_name["target"], classes, False, numbers.get("ignore_index", -100), table
    elif facts.name in ("index", "index_put"):
        for name, index in by_name.items():
            if name.startswith("indices[") and index.dtype in (torch.int64, torch.int32):
                yield name, index, table.shape[_dim_of(failed.args[1], int(name[8:-1]))], True, None, table
    elif "index" in by_name and not by_name["index"].is_floating_point():
        if facts.name == "take":
            yield "index", by_name["index"], table.numel(), True, None, table
        else:
            dim = int(numbers.get("dim", 0)) % max(1, table.dim())
            yield "index", by_name["index"], table.shape[dim] if table.dim() else 1, False, None, table


def _dim_of(indices: Any, position: int) -> int:
    """The dimension that the i-th index tensor indexes: a bool mask takes as many dimensions as it has."""
    dim = 0
    for item in indices[:position]:
        dim += item.dim() if isinstance(item, torch.Tensor) and item.dtype in (torch.bool, torch.uint8) else 1
    return dim
