"""Remedies that give an op a wider dtype, and whether what follows lets the wider result through."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace

from ..model import Change, Op, Origin, Remedy, Snapshot
from .edits import Edit
from .numbers import COARSE
from .reading import forward_op, readers
from .rewriting import is_number
from .spots import Spot, other_calls, spot_of

# Ops that autocast runs in half precision, and that refuse operands of two dtypes outside it.
PRODUCTS = frozenset(
    {
        "mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "matmul", "linear", "einsum",
        "convolution", "conv1d", "conv2d", "conv3d", "scaled_dot_product_attention",
    }
)  # fmt: skip
_SAME_DTYPE = PRODUCTS | {"layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm", "embedding", "copy"}
_BOUNDING = frozenset(
    {"softmax", "log_softmax", "sigmoid", "tanh", "layer_norm", "batch_norm", "group_norm", "clamp", "sign", "sin"}
)
_PAIRED = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "kl_div"})
_TENSOR_METHODS = frozenset(
    {"float", "half", "transpose", "permute", "view", "reshape", "unsqueeze", "squeeze", "contiguous", "t", "mean",
     "sum", "abs", "pow", "softmax", "size", "dim", "expand", "flatten", "chunk", "sqrt", "clamp", "clamp_min"}
)  # fmt: skip
_LIBRARIES = frozenset({"torch", "F", "nn", "functional", "math"})
_CAST = {"float32": "float()", "float64": "double()", "bfloat16": "bfloat16()"}


def where(origin: Origin) -> str:
    """The place as a remedy names it: the module path, or the op in the loss code."""
    if origin.module and not origin.module.rpartition(".")[2].isdigit():
        return origin.module
    return f"this {origin.op}" + (f" (module {origin.module})" if origin.module else "")


def device_of(origin: Origin) -> str:
    """The kind of device that the op ran on: "cpu", "cuda"."""
    known = origin.outputs or origin.inputs
    return known[0].device.partition(":")[0] if known else "cuda"


def id_of(snapshot: Snapshot) -> int | None:
    """The executed op that a change of the origin means: of a derivative the forward op."""
    found = forward_op(snapshot)
    return found.id if found is not None else None


def as_origin(snapshot: Snapshot, op: Op) -> Snapshot:
    """The snapshot as if another op were the origin: where the change belongs to a line further up."""
    own = Origin(
        op.name, op.module, op.module_type, source=op.source, inputs=op.inputs, outputs=op.outputs,
        arguments=op.arguments, id=op.id, aten=op.aten,
    )  # fmt: skip
    return replace(snapshot, origin=own)


def under_autocast(snapshot: Snapshot, dtype: str) -> bool:
    """Whether the op ran under autocast: parameters were cast to the dtype on their way into an op."""
    return dtype in COARSE and any(
        op.name == "to_copy"
        and op.arguments.get("dtype") == dtype
        and any(found.label.startswith("parameter") for found in op.inputs)
        for op in snapshot.ops
    )


def lets_through(snapshot: Snapshot, dtype: str) -> bool:
    """Whether what follows takes a wider result as it is: no op after it insists on the narrow dtype."""
    casts = under_autocast(snapshot, dtype)
    for op in _followers(snapshot, casts):
        narrow = bool(op.outputs) and op.outputs[0].dtype == dtype
        if op.name in (PRODUCTS if casts else _SAME_DTYPE) and narrow:
            return False
    return True


def in_wider(snapshot: Snapshot, origin: Origin, dtype: str) -> Remedy:
    """The op in a wider dtype, its result kept in it."""
    op = id_of(snapshot)
    change = Change("dtype", op, name=dtype) if op is not None else None
    narrow = origin.outputs[0].dtype if origin.outputs else "half precision"
    text = f"Run {where(origin)} in {dtype}, and keep its result in {dtype}: {_named(narrow)} is too narrow for it."
    edit = _edit(snapshot, origin, dtype)
    if edit is not None:
        return Remedy(text, edit.code, change=change, replaces=edit.replaces)
    snippet = f"x = x.{_CAST[dtype]}  # before this {origin.op}"
    if origin.op in PRODUCTS and dtype == "float32":
        block = f'with torch.autocast("{device_of(origin)}", enabled=False):'
        snippet = f"{block}\n    out = module.float()(x.float())"
    return Remedy(text, snippet, change=change)


def whole_step(snapshot: Snapshot, origin: Origin, dtype: str) -> Remedy:
    """The whole model (or the autocast region) in a dtype with a wider range."""
    narrow = origin.outputs[0].dtype if origin.outputs else "float16"
    change = Change("dtype", None, name=dtype)
    if under_autocast(snapshot, narrow):
        code = f'with torch.autocast("{device_of(origin)}", dtype=torch.{dtype}):\n    ...'
        return Remedy(
            f"Train in {dtype} instead of {_named(narrow)}: it has the range of float32.", code, change=change
        )
    text = (
        f"Train the model in {dtype}, which has the range of float32, or keep it in float32 under torch.autocast with "
        f"a GradScaler: a model that is {_named(narrow)} throughout has no room for values like these."
    )
    return Remedy(text, f"model.to(torch.{dtype})", change=change)


def _named(dtype: str) -> str:
    return "float16 (half precision, fp16)" if dtype == "float16" else dtype


def _followers(snapshot: Snapshot, casts: bool) -> Iterator[Op]:
    """What reads the result, as long as it may still be large: not past a cast to float32."""
    passed: set[int] = set()
    ends: dict[int, list[int]] = {}
    for edge in snapshot.edges:
        ends.setdefault(edge.downstream, []).append(edge.upstream)
    start = id_of(snapshot)
    for op in readers(snapshot, depth=64):
        if not any(above == start or above in passed for above in ends.get(op.id, ())):
            continue
        if op.name == "to_copy" and op.outputs and op.outputs[0].dtype in ("float32", "float64"):
            continue
        yield op
        if not (casts and op.name in _BOUNDING):
            passed.add(op.id)


def _edit(snapshot: Snapshot, origin: Origin, dtype: str) -> Edit | None:
    spot = spot_of(origin)
    if spot is None or not lets_through(snapshot, origin.outputs[0].dtype if origin.outputs else ""):
        return None
    positions = _operands(snapshot, origin, spot)
    edit = spot.with_operands(dict.fromkeys(positions, "{}." + _CAST[dtype])) if positions else None
    narrow = origin.outputs[0].dtype if origin.outputs else ""
    if edit is None or origin.op not in PRODUCTS:
        return edit
    if not under_autocast(snapshot, narrow):
        return edit if _by_operands_alone(spot) else None
    if dtype != "float32" or edit.code.rstrip().endswith(":") or any(not _harmless(node) for node in other_calls(spot)):
        return None
    block = f'with torch.autocast("{device_of(origin)}", enabled=False):'
    return Edit(f"{block}\n    {edit.code}", edit.replaces)


def _operands(snapshot: Snapshot, origin: Origin, spot: Spot) -> tuple[int, ...]:
    """Which operands of the text are cast: all of a product or a loss, the first tensor of anything else."""
    texts = [spot.operand(i) or "" for i in range(len(spot.call.spans))]
    if origin.op in PRODUCTS or origin.op in _PAIRED:
        calls_module = len(texts) == 1
        return (0,) if calls_module else (0, 1)
    scalars = [i for i, text in enumerate(texts) if is_number(text)]
    if 0 in scalars:
        return (1,) if len(texts) > 1 and 1 not in scalars else ()
    forward = forward_op(snapshot)
    arguments = forward.arguments if forward is not None else origin.arguments
    if isinstance(arguments.get("other"), (int, float)) and origin.op in ("mul", "add") and 1 not in scalars:
        # A plain number under a name: which of the two is the tensor shows only where one of them is computed.
        computed = [i for i, text in enumerate(texts) if text.endswith((")", "]"))]
        return tuple(computed) if len(computed) == 1 and len(texts) == 2 else ()
    return (0,)


def _by_operands_alone(spot: Spot) -> bool:
    """Whether casting the operands is all: a module's own parameters would stay narrow."""
    return len(spot.call.spans) > 1


def _harmless(node: ast.Call) -> bool:
    """Whether a call does the same outside autocast, whatever the dtype of what it is given."""
    match node.func:
        case ast.Attribute(value=ast.Name(id=base)) if base in _LIBRARIES:
            return True
        case ast.Attribute(attr=name):
            return name in _TENSOR_METHODS
        case _:
            return False
