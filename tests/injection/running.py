"""Train with a planted fault under a watch, and compare the report with what the draw says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import nantrace

from .architectures import ARCHITECTURES, Batch
from .draws import Draw
from .places import loss_of, places_in
from .planting import Switch, plant

FIELDS = ("step", "phase", "op", "module", "module_type", "line", "cause", "reproduced")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a draw expects and what the report said, field by field; nothing where no anomaly was raised."""

    draw: Draw
    expected: dict[str, Any]
    found: dict[str, Any]
    report: nantrace.Report | None = None

    @property
    def wrong(self) -> list[str]:
        """The fields that are not exact."""
        return [field for field in FIELDS if self.found.get(field) != self.expected[field]]


def run(draw: Draw) -> Outcome:
    """Train until the report comes, or until three steps after the fault."""
    torch.manual_seed(draw.seed)
    model = ARCHITECTURES[draw.architecture].build().train()
    expected = _expected(draw, model)
    try:
        with nantrace.watch(model):
            _train(draw, model)
    except nantrace.NumericalAnomaly as anomaly:
        return Outcome(draw, expected, _found(anomaly.report), anomaly.report)
    return Outcome(draw, expected, {})


def _expected(draw: Draw, model: nn.Module) -> dict[str, Any]:
    places = places_in(draw.architecture)
    line = {"table": places.tables, "pixel": places.readers}.get(draw.fault.kind, {}).get(draw.module or "")
    return {
        "step": draw.step,
        "phase": draw.fault.phase,
        "op": draw.fault.op,
        "module": draw.module,
        "module_type": None if draw.module is None else type(model.get_submodule(draw.module)).__name__,
        "line": line or draw.fault.line,
        "cause": draw.fault.cause,
        "reproduced": True,
    }


def _found(report: nantrace.Report) -> dict[str, Any]:
    origin = report.origin
    found: dict[str, Any] = {"step": report.step, "phase": report.phase, "cause": str(report.cause)}
    found["reproduced"] = report.reproduced
    if origin is not None:
        found |= {"op": origin.op, "module": origin.module, "module_type": origin.module_type}
        found["line"] = None if origin.source is None else (origin.source.file, origin.source.line)
    return found


def _train(draw: Draw, model: nn.Module) -> None:
    switch = Switch()
    if draw.fault.kind == "module":
        plant(model.get_submodule(draw.module or ""), draw.fault, switch)
    if draw.checkpoint:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": draw.checkpoint == "reentrant"})
    optimizer = _optimizer(draw, model)
    batches = torch.Generator().manual_seed(draw.seed)
    for step in range(draw.step + 3):
        switch.on = step >= draw.step
        optimizer.zero_grad()
        for call in range(draw.calls):
            batch = ARCHITECTURES[draw.architecture].batch(batches)
            if switch.on and call == 0:
                _spoil(draw, model, batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=draw.autocast):
                loss = _loss(draw, model, batch, switch)
            loss.backward()
        if draw.clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def _loss(draw: Draw, model: nn.Module, batch: Batch, switch: Switch) -> Tensor:
    loss, logits = loss_of(ARCHITECTURES[draw.architecture], model, batch, in_model=draw.loss_in_model)
    if draw.fault.kind == "loss" and switch.on:
        loss = draw.fault.plant(loss, logits)
    return loss / draw.calls


def _spoil(draw: Draw, model: nn.Module, batch: Batch) -> None:
    """Faults that are there before the step: a row of a table that this batch reads, a pixel."""
    if draw.fault.kind == "table":
        table = model.get_submodule(draw.module or "")
        read_by_tokens = table.num_embeddings == 40  # of positions, token types and distances the first one is read
        draw.fault.plant(table, int(batch["input_ids"][0, 0]) if read_by_tokens else 0)
    elif draw.fault.kind == "pixel":
        draw.fault.plant(batch["pixel_values"], draw.seed)


def _optimizer(draw: Draw, model: nn.Module) -> torch.optim.Optimizer:
    match draw.optimizer:
        case "adamw":
            return torch.optim.AdamW(model.parameters(), 1e-3)
        case "momentum":
            return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    return torch.optim.SGD(model.parameters(), 0.01)
