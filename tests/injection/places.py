"""Where faults can be planted in an architecture: what one healthy step shows of its modules."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from functools import cache, partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import ARCHITECTURES, Architecture, Batch

_TORCH = os.path.dirname(torch.__file__) + os.sep


@dataclass(slots=True)
class Places:
    """The modules of one architecture that a fault can be planted in, by path, in the order of their first call."""

    outputs: list[str] = field(default_factory=list)  # their output's gradient is not zero
    tables: dict[str, tuple[str, int]] = field(default_factory=dict)  # embeddings, with the line that calls each
    readers: dict[str, tuple[str, int]] = field(default_factory=dict)  # convolutions, with the line that calls each


def first_tensor(output: Any) -> Tensor | None:
    """The first floating tensor of a module's output."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    items = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return next((tensor for item in items if (tensor := first_tensor(item)) is not None), None)


def with_first_tensor(output: Any, new: Tensor) -> Any:
    """The same output with another tensor in the first one's place."""
    old = first_tensor(output)
    if output is old:
        return new
    if isinstance(output, dict):
        key = next(key for key, item in output.items() if first_tensor(item) is old)
        output[key] = with_first_tensor(output[key], new)
        return output
    position = next(i for i, item in enumerate(output) if first_tensor(item) is old)
    return type(output)([*output[:position], with_first_tensor(output[position], new), *output[position + 1 :]])


def loss_of(architecture: Architecture, model: nn.Module, batch: Batch, *, in_model: bool) -> tuple[Tensor, Tensor]:
    """The loss, as the model computes it from labels or as a training loop does from the logits; and the logits."""
    if in_model:
        output = model(**batch)
        return output["loss"], output["logits"]
    asked = {name: tensor for name, tensor in batch.items() if name != "labels"}
    if architecture.name == "t5":
        asked["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    logits = model(**asked)["logits"]
    return architecture.loss(logits, batch), logits


@cache
def places_in(name: str) -> Places:
    """Run one healthy step and note which modules its gradient passes."""
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = architecture.build().train()
    places, called, reached, weights = Places(), dict[str, None](), set[str](), set[int]()

    def gradient_arrives(path: str, gradient: Tensor) -> None:
        if gradient.any():
            reached.add(path)

    def before(path: str, module: nn.Module, args: Any) -> None:
        if isinstance(module, nn.Embedding) and id(module.weight) not in weights:  # the first reader of a tied weight
            weights.add(id(module.weight))
            places.tables[path] = _caller(sys._getframe(1))
        if isinstance(module, nn.Conv2d):
            places.readers.setdefault(path, _caller(sys._getframe(1)))

    def after(path: str, module: nn.Module, args: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None and tensor.requires_grad:
            called.setdefault(path)
            tensor.register_hook(partial(gradient_arrives, path))

    for path, module in model.named_modules():
        module.register_forward_pre_hook(partial(before, path))
        module.register_forward_hook(partial(after, path))
    loss, _ = loss_of(architecture, model, architecture.batch(torch.Generator().manual_seed(0)), in_model=True)
    loss.backward()
    places.outputs = [path for path in called if path in reached]
    return places


def _caller(frame: FrameType | None) -> tuple[str, int]:
    """The innermost line outside torch (and outside this file) on the way to a module's call."""
    while frame is not None and frame.f_code.co_filename.startswith((_TORCH, __file__)):
        frame = frame.f_back
    assert frame is not None
    return frame.f_code.co_filename, frame.f_lineno
