"""An index out of range: find the op that raised, and read the bad index from its operands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..model import IndexFacts, Origin
from ..recording.frames import innermost_outside_torch, source_at
from ..recording.recorder import Recorder
from ..recording.tape import EntryCall
from .microscope import FailedOp
from .naming import entry_source
from .op_level import LiveMicroscope
from .replay import replay
from .schema import facts_of, operands, scalars
from .summaries import describe

Found = tuple[Origin, IndexFacts, str, bool]


def index_failure(error: Exception, recorder: Recorder) -> Found | None:
    """Which op raised this IndexError (or RuntimeError), and with which index; None where it is of another kind.

    In glue the op was seen live. Inside a module the failing call is replayed, and the op that raises is the one.
    """
    if not isinstance(error, (IndexError, RuntimeError)):
        return None
    live = recorder.failed_glue
    if live is not None and live[4] is error:
        func, args, kwargs, stack, _ = live
        failed, replayed = FailedOp(facts_of(func), args, kwargs, None, None, True, stack, error), False
    elif (seen := _failed_live(error, recorder)) is not None:
        failed, replayed = seen, False
    else:
        found = _failed_in_replay(error, recorder)
        if found is None:
            return None
        failed, replayed = found, True
    index = _out_of_range(failed)
    if index is None:
        return None
    return _origin(failed), index, "loss" if failed.glue else "forward", replayed


def _failed_live(error: Exception, recorder: Recorder) -> FailedOp | None:
    """The op that raised, where every op is observed."""
    live = recorder.observer
    if not isinstance(live, LiveMicroscope) or live.failed is None or live.failed.error is not error:
        return None
    return live.failed


def _failed_in_replay(error: Exception, recorder: Recorder) -> FailedOp | None:
    events = recorder.tape.events
    entry = events[-1] if events else None
    if not isinstance(entry, EntryCall) or not entry.failed:
        return None
    run = replay(recorder.tape, recorder.names, [], False)
    failed = run.microscope.failed
    if failed is None or type(run.error) is not type(error):
        return None
    failed.entry = entry
    return failed


def _origin(failed: FailedOp) -> Origin:
    inputs = tuple(describe(tensor, name) for name, tensor in operands(failed.facts, failed.args, failed.kwargs))
    if failed.entry is not None:
        source = entry_source(failed.stack, failed.entry.stack)
    else:
        position = innermost_outside_torch(failed.stack)
        source = source_at(failed.stack, position) if position is not None else None
    return Origin(
        op=failed.facts.name,
        module=failed.module,
        module_type=failed.module_type,
        source=source,
        inputs=inputs,
        arguments=scalars(failed.facts, failed.args, failed.kwargs),
        aten=failed.facts.aten,
    )


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
            return IndexFacts(failed.facts.name, name, value, at, low, size, count, tuple(table.shape))
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
