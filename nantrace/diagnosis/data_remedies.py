"""What to change where a batch, a label or a parameter came in bad."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

from ..model import BadSource, Change, Frame, Origin, Remedy, Snapshot
from .edits import Edit, line_of, lines_of
from .reading import forward_op
from .rewriting import Call, atom, parsed
from .spots import Spot, spot_of

_ELEMENTWISE = frozenset(
    {
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "binary_cross_entropy",
        "sub",
        "binary_cross_entropy_with_logits",
    }
)
_PER_SAMPLE = _ELEMENTWISE | {"cross_entropy", "nll_loss"}
_REDUCED = re.compile(r"\.(mean|sum)\(\)")


def for_input(snapshot: Snapshot, name: str) -> tuple[Remedy, ...]:
    """Leave the bad samples out; or fill what is missing in the line that reads it; or find them all."""
    find = Remedy(
        "Find the bad samples: go through the data set once with nantrace.scan(loader), or list those with NaN or Inf.",
        "bad = [i for i, (x, *_) in enumerate(dataset) if not torch.isfinite(x).all()]",
    )
    return (_without_samples(snapshot, name), _filled_input(snapshot, name), find)


def for_missing_label(snapshot: Snapshot, source: BadSource, name: str) -> tuple[Remedy, ...]:
    """Take the missing elements out of the loss before it is computed."""
    origin = snapshot.origin
    spot = _alone(_loss_spot(origin))
    find = Remedy(
        "Find the samples without a label: go through the data set once with nantrace.scan(loader), or list them.",
        "bad = [i for i, (*_, y) in enumerate(dataset) if not torch.isfinite(torch.as_tensor(y)).all()]",
    )
    select, fill = _selected(snapshot, spot, name), _agreed(snapshot, spot, name)
    # Where the terms stay apart, what is selected has another shape than the mask that comes after.
    if _stays_elementwise(origin):
        return (fill, replace(select, replaces=None), find)
    return (select, fill, find)


def for_parameter(source: BadSource) -> Remedy:
    """Defined values in the line that made it; or a mend of those that are bad."""
    matrix = source.kind == "parameter" and len(source.summary.shape) > 1
    value = 0.02 if matrix else 0.0
    change = Change("parameter", name=source.name, values=(value,))
    edit = _defined(source, matrix)
    if source.kind == "parameter":
        text = (
            f"Initialise {source.name}: memory from torch.empty is uninitialised and may hold anything. Random values "
            "for a matrix, zeros for a bias (nn.init)."
        )
    else:
        text = f"Register {source.name} with defined values (torch.zeros, not torch.empty), or reset it."
    if edit is not None:
        return Remedy(text, edit.code, change=change, replaces=edit.replaces)
    getter = "get_parameter" if source.kind == "parameter" else "get_buffer"
    fill = f"model.{getter}({source.name!r}).data"
    code = f"{fill}.nan_to_num_({value:g}, {value:g}, {value:g})"
    return Remedy(text, code, change=change)


def finite_instead_of_minus_infinity(source: BadSource) -> Remedy:
    """A large finite negative number where -inf was written to forbid something."""
    text = (
        "If -inf forbids something here (a transition, a class), write a large finite negative number instead: it has "
        "the same effect, and -inf * 0 and -inf - -inf are NaN."
    )
    change = Change("parameter", name=source.name, values=(-1e4,))
    made = source.made
    for written in ('float("-inf")', "float('-inf')", "-torch.inf", "-math.inf", "-float('inf')", '-float("inf")'):
        if made is not None and made.code.count(written) == 1 and parsed(made.code) is not None:
            return Remedy(text, made.code.replace(written, "-1e4"), change=change, replaces=made)
    getter = "get_parameter" if source.kind == "parameter" else "get_buffer"
    return Remedy(text, f"model.{getter}({source.name!r}).data.clamp_(min=-1e4)", change=change)


def _without_samples(snapshot: Snapshot, name: str) -> Remedy:
    text = "Leave the bad samples out of the batch (and out of the data set, once they are known)."
    change = Change("samples")
    source = snapshot.origin.source if snapshot.origin is not None else None
    # A field of a batch has no rows to select in the call of the model: the batch there is a dict.
    for frame in lines_of(source) if name.isidentifier() else ():
        edit = _edit_without_samples(frame)
        if edit is not None:
            return Remedy(text, edit.code, change=change, replaces=edit.replaces)
    code = f"keep = {name}.isfinite().flatten(1).all(dim=1)\n{name}, y = {name}[keep], y[keep]"
    return Remedy(text, code, change=change)


def _edit_without_samples(frame: Frame) -> Edit | None:
    line, tree = frame.code, parsed(frame.code)
    calls = [node for node in (ast.walk(tree) if tree is not None else ()) if isinstance(node, ast.Call)]
    found = [pair for call in calls if (pair := _model_in_loss(call)) is not None]
    if len(found) != 1:
        return None
    x = line[slice(*found[0][0])]
    for start, end in sorted(found[0], reverse=True):
        line = f"{line[:start]}{atom(line[start:end])}[keep]{line[end:]}"
    return Edit(f"keep = {atom(x)}.isfinite().flatten(1).all(dim=1)\n{line}", frame)


def _model_in_loss(node: ast.Call) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """loss(model(x), y): where x and y stand."""
    function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if function not in _PER_SAMPLE and function not in ("criterion", "loss_fn", "loss_function"):
        return None
    match node.args:
        case [ast.Call(args=[ast.Name() as x], keywords=[]), target]:
            return (x.col_offset, x.end_col_offset or 0), (target.col_offset, target.end_col_offset or 0)
        case _:
            return None


def _filled_input(snapshot: Snapshot, name: str) -> Remedy:
    origin = snapshot.origin
    text = (
        "If NaN stands for a missing value, impute it in the data loader and tell the model with a mask; the plainest "
        "is 0 for each."
    )
    op, operand = forward_op(snapshot), _bad_operand(origin)
    change = Change("finite", op.id, operand, (0.0,)) if op is not None and operand is not None else None
    edit = _filling_edit(origin, name)
    if edit is None:
        return Remedy(text, f"missing = {name}.isnan()\n{name} = {name}.nan_to_num(0.0, 0.0, 0.0)", change=change)
    return Remedy(text, edit.code, change=change, replaces=edit.replaces)


def _filling_edit(origin: Origin | None, name: str) -> Edit | None:
    spot = spot_of(origin) or _entry_spot(origin)
    if spot is None:
        return None
    positions = range(len(spot.call.spans))
    named = [i for i in positions if _spelled_alike(spot.operand(i) or "", name)]
    position = named[0] if len(named) == 1 else 0 if len(spot.call.spans) == 1 else None
    return spot.with_operand(position, "{}.nan_to_num(0.0, 0.0, 0.0)") if position is not None else None


def _entry_spot(origin: Origin | None) -> Spot | None:
    """The call of the model itself, where the line that made the entry call is what is known."""
    frame = line_of(origin.source) if origin is not None else None
    expression = origin.source.expression if origin is not None and origin.source is not None else ""
    if frame is None or not expression or frame.code.count(expression) != 1:
        return None
    tree = parsed(expression)
    only = tree.body[0].value if tree is not None and isinstance(tree.body[0], ast.Expr) else None
    if not isinstance(only, ast.Call) or len(only.args) != 1 or only.keywords:
        return None
    shift = frame.code.index(expression)
    argument = only.args[0]
    span = (shift + argument.col_offset, shift + (argument.end_col_offset or 0))
    return Spot(Call(frame.code, (shift, shift + len(expression)), (span,)), frame)


def _alone(spot: Spot | None) -> Spot | None:
    """The loss, where the line names the label only there: another use of it would still read what is missing."""
    text = spot.operand(_target(spot)) if spot is not None else None
    if spot is None or text is None or not text.isidentifier():
        return spot
    return spot if len(re.findall(rf"\b{text}\b", spot.frame.code)) == 1 else None


def label_name(origin: Origin | None, otherwise: str) -> str:
    """What the user calls the label, where it is a bare name in the line of the loss."""
    spot = _loss_spot(origin)
    text = spot.operand(_target(spot)) if spot is not None else None
    return text if text is not None and text.isidentifier() else otherwise


def _loss_spot(origin: Origin | None) -> Spot | None:
    """The loss in the user's line, also where torch runs other ops inside it."""
    if origin is None:
        return None
    spot = spot_of(origin) if origin.op in _ELEMENTWISE else None
    if spot is not None and len(spot.call.spans) >= 2:
        return spot
    for name in _ELEMENTWISE - {"sub"}:
        spot = spot_of(Origin(name, origin.module, source=origin.source))
        if spot is not None and len(spot.call.spans) >= 2:
            return spot
    return None


def _selected(snapshot: Snapshot, spot: Spot | None, name: str) -> Remedy:
    text = "Select the elements that have a label before the loss, not after it."
    change = _label_change(snapshot, "select")
    if spot is None:
        return Remedy(text, f"keep = torch.isfinite({name})\nloss = loss_fn(pred[keep], {name}[keep])", change=change)
    target = spot.operand(_target(spot)) or name
    edit = spot.with_operands({0: "{}[keep]", 1: "{}[keep]"})
    if edit is None:
        return Remedy(text, change=change)
    return Remedy(text, f"keep = {atom(target)}.isfinite()\n{edit.code}", change=change, replaces=edit.replaces)


def _agreed(snapshot: Snapshot, spot: Spot | None, name: str) -> Remedy:
    text = (
        "Fill the missing targets with the prediction itself, detached, before the loss: their terms are 0 and have no "
        "gradient. Divide by the number of labels that are there."
    )
    change = _label_change(snapshot, "agree")
    if spot is None:
        return Remedy(text, f"{name} = torch.where({name}.isfinite(), {name}, pred.detach())", change=change)
    position = _target(spot)
    prediction, target = spot.operand(1 - position) or "pred", spot.operand(position) or name
    filled = f"torch.where({atom(target)}.isfinite(), {target}, {_detached(prediction)})"
    edit = spot.with_operand(position, filled) if "(" not in prediction else None  # a model is not called twice
    if edit is None:
        return Remedy(text, f"{target} = {filled}", change=change)
    return Remedy(text, edit.code, change=change, replaces=edit.replaces)


def _detached(prediction: str) -> str:
    return prediction if prediction.endswith(".detach()") else f"{atom(prediction)}.detach()"


def _label_change(snapshot: Snapshot, act: str) -> Change | None:
    op, operand = forward_op(snapshot), _bad_operand(snapshot.origin)
    known = snapshot.origin is not None and snapshot.origin.op in _ELEMENTWISE
    return Change(act, op.id, operand) if op is not None and operand is not None and known else None


def _target(spot: Spot) -> int:
    """Which of the two is the label: what is computed less."""
    first, second = spot.operand(0) or "", spot.operand(1) or ""
    return 0 if "(" in second and "(" not in first else 1


def _stays_elementwise(origin: Origin | None) -> bool:
    if origin is None or not origin.outputs or not origin.outputs[0].shape:
        return False
    code = origin.source.code if origin.source is not None else ""
    return _REDUCED.search(code) is None


def _bad_operand(origin: Origin | None) -> str | None:
    bad = [found.name for found in origin.inputs if found.nonfinite] if origin is not None else []
    return bad[0] if bad else None


def _spelled_alike(text: str, name: str) -> bool:
    return text.replace('"', "'") == name.replace('"', "'")


def _defined(source: BadSource, matrix: bool) -> Edit | None:
    made = source.made
    if made is None or parsed(made.code) is None:
        return None
    for empty in ("torch.empty(", "torch.Tensor(", "torch.FloatTensor("):
        if made.code.count(empty) == 1:
            return Edit(made.code.replace(empty, "0.02 * torch.randn(" if matrix else "torch.zeros("), made)
    return None
