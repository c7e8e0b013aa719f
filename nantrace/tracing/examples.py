"""The failing element in numbers: what each operand held where it was computed from."""

from __future__ import annotations

import torch

from ..model import Example, OperandValue
from .microscope import Kept, Seen
from .reach import Index, Region, operand, regions
from .summaries import describe, value_at
from .walk import State

MAX_VALUES = 64
_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mv", "addmv")
_INDEXING = {"embedding": "indices", "index_select": "index", "gather": "index"}


def example_of(seen: Seen, state: State) -> Example:
    """The failing element of an op of the forward (or of glue)."""
    value = value_at(seen.kept_outputs[state.output].tensor, state.index)
    found = [_operand_value(seen, position, region) for position, region in regions(seen, state.output, state.index)]
    return Example(state.index, value, tuple(_index_operands(seen, state.index)) + tuple(found))


def example_of_derivative(seen: Seen, state: State, forward: Seen) -> Example:
    """The failing element of a backward op: the forward op's operands and result there, and the incoming gradient."""
    value = value_at(seen.kept_outputs[state.output].tensor, state.index)
    shape = seen.kept_outputs[state.output].place.shape
    found = [_forward_value(forward, kept.name, kept, shape, state.index) for kept in forward.kept_inputs]
    found += [_forward_value(forward, "result", kept, shape, state.index) for kept in forward.kept_outputs[:1]]
    for position, region in regions(seen, state.output, state.index):
        if _is_gradient(seen, position):
            found.append(_operand_value(seen, position, region, "grad"))
        elif seen.facts.name in _PRODUCTS:
            found.append(_operand_value(seen, position, region))
    return Example(state.index, value, tuple(found))


def _forward_value(forward: Seen, name: str, kept: Kept, shape: Index, index: Index) -> OperandValue:
    """What a tensor of the forward held where the gradient failed: one value, or the slice that was reduced to it."""
    dims = forward.arguments.get("dim")
    if dims not in (None, []) and kept.place.shape == shape and name != "result":
        reduced = {d % len(shape) for d in (dims if isinstance(dims, list) else [dims]) if shape}
        return slice_of(
            name, kept.tensor[tuple(slice(None) if d in reduced else i for d, i in enumerate(index))], "slice"
        )
    at = _aligned(kept.tensor, shape, index)
    return element(name, kept.tensor, at) if at is not None else slice_of(name, kept.tensor, "slice")


def _is_gradient(seen: Seen, position: int) -> bool:
    """Whether an operand of a backward op is the incoming gradient: no op of this node and no forward op made it."""
    name = seen.places[position][0]
    if name in seen.made_inside or not seen.kept_inputs[position].tensor.is_floating_point():
        return False
    return position in seen.gradient_operands


def element(name: str, tensor: torch.Tensor, index: Index, kind: str = "element") -> OperandValue:
    """One value of an operand."""
    return OperandValue(name, kind, (value_at(tensor, index),), index)


def slice_of(name: str, part: torch.Tensor, kind: str) -> OperandValue:
    """Many values of an operand: the first 64 of them and a summary of all."""
    flat = part.detach().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat.resolve_conj()).reshape(-1)
    values = tuple(float(v) for v in flat[:MAX_VALUES].double().tolist())
    return OperandValue(name, kind, values, None, describe(part, name))


def _operand_value(seen: Seen, position: int, region: Region, name: str = "") -> OperandValue:
    kept = seen.kept_inputs[position]
    name = name or kept.name
    if all(isinstance(item, int) for item in region):
        index = tuple(int(item) for item in region if isinstance(item, int))
        kind = "read" if seen.facts.name in (*_INDEXING, "index") else "element"
        return element(name, kept.tensor, index, kind)
    kind = "slice"
    if seen.facts.name in _PRODUCTS:
        kind = "column" if isinstance(region[-1], int) or len(region) == 1 else "row"
    elif seen.facts.name in _INDEXING:
        kind = "read"
    return slice_of(name, kept.tensor[region], kind)


def _index_operands(seen: Seen, index: Index) -> list[OperandValue]:
    """The integer index that an indexing op used for this element."""
    name = _INDEXING.get(seen.facts.name)
    if name is not None:
        kept = operand(seen, name)
        if seen.facts.name == "embedding":
            at = index[:-1]
        elif seen.facts.name == "gather":
            at = index
        else:
            at = (index[int(seen.arguments.get("dim", 0))],)
        return [element(name, kept.tensor, at, "index")]
    if seen.facts.name == "index":
        return _row_index(seen, index)
    return []


def _row_index(seen: Seen, index: Index) -> list[OperandValue]:
    """The first index of x[i, ...] as the program gave it: a negative one is not yet wrapped around."""
    read = regions(seen, 0, index)[0][1]
    given = [i for i, item in enumerate(seen.args[1]) if item is not None]
    first = given[0]
    name = f"indices[{first}]"
    if len(given) == 1:
        rows = operand(seen, name)
        at = index[first : first + rows.tensor.dim()]
        if rows.tensor.dtype in (torch.int64, torch.int32) and len(at) == rows.tensor.dim():
            return [element(name, rows.tensor, at, "index")]
    return [
        OperandValue(name, "index", (float(row),), (first,)) for row in read[first : first + 1] if isinstance(row, int)
    ]


def _aligned(tensor: torch.Tensor, shape: tuple[int, ...], index: Index) -> Index | None:
    """The element of a saved tensor at the failing element, where their shapes say which."""
    own = tuple(tensor.shape)
    if own == shape:
        return index
    if len(own) <= len(shape) and all(a in (1, b) for a, b in zip(reversed(own), reversed(shape), strict=False)):
        aligned = index[len(index) - len(own) :] if own else ()
        return tuple(0 if size == 1 else i for i, size in zip(aligned, own, strict=True))
    return None
