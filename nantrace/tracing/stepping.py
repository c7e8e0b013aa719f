"""Run an optimizer's step once more under the microscope, from a copy of what it began with, and undo it again.

For optimizers whose code is not torch's: which op of their `step` made the value, and in which line. Where there is no
copy (there was too much to copy), the step is run from where it ended, with numbers put in for what is not finite:
an op that spoils the weights mostly does so again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..recording.alarm import Alarm, Named
from ..recording.names import ModuleNames
from ..recording.state import restore_random, torch_random_now
from ..recording.statistics import is_finite
from ..recording.tape import Update
from ..recording.undo import Memory, structure_of
from .backward import ENGINE_CODES
from .microscope import Microscope
from .replay import in_thread
from .run import Run
from .summaries import same_bits


@dataclass(slots=True)
class SteppedAgain:
    """What the second run of a step showed. The values are in the run's ops; the live tensors are as they were."""

    run: Run
    bad: list[Named]  # copies of the parameters or state tensors that came out not finite, at their own addresses
    reproduced: bool | None
    before: list[tuple[torch.Tensor, str, torch.Tensor]]  # parameter, name and tensor of its state before the step
    reasons: tuple[str, ...] = ()


@contextmanager
def step_again(alarm: Alarm, names: ModuleNames) -> Iterator[SteppedAgain | None]:
    """Inside, weights and state are those after the second run; on leaving, those of the live run are back."""
    optimizer = alarm.optimizer
    if optimizer is None:
        yield None
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    live = Memory(optimizer)
    live.take_with_gradients(structure_of(optimizer), parameters)
    gradients = [parameter.grad for parameter in parameters]
    try:
        memory = alarm.memory if alarm.memory is not None and alarm.memory.can_step_again else None
        if memory is not None:
            memory.put_back()
            for parameter, gradient in memory.gradients:
                parameter.grad = gradient.clone() if gradient is not None else None
        else:
            _fill_in(optimizer)
        yield _run(optimizer, memory, live, alarm, names)
    finally:
        for parameter, kept in zip(parameters, gradients, strict=True):
            parameter.grad = kept
        live.put_back()
        live.put_back_gradients()


def _run(
    optimizer: torch.optim.Optimizer, memory: Memory | None, live: Memory, alarm: Alarm, names: ModuleNames
) -> SteppedAgain:
    microscope = Microscope(ENGINE_CODES, _step.__code__, lambda module: names.path(module, look_again=False))
    event = Update(frozenset(), type(optimizer).__name__)
    run = Run(microscope, [event], {}, {}, [])
    run.parameters = [parameter for parameter, _ in names.parameters.values()]
    state = [
        (parameter, key, value)
        for parameter, held in optimizer.state.items()
        if isinstance(held, dict)
        for key, value in held.items()
        if isinstance(value, torch.Tensor)
    ]
    random = torch_random_now()

    def play(run: Run) -> None:
        microscope.event, microscope.glue_stack = 0, alarm.stack
        if memory is not None and memory.random is not None:
            restore_random(memory.random)
        _step(optimizer)

    in_thread(run, names, play)
    restore_random(random)
    named = {id(tensor): name for name, tensor in alarm.named}
    bad = [(named.get(id(t), "state"), t) for t in structure_of(optimizer).tensors if not is_finite(t)]
    bad.sort(key=lambda pair: pair[0] == "state")
    if memory is None:
        return SteppedAgain(run, bad, None, state, (_DERIVED,))
    if alarm.kind == "gradient":  # the live step was stopped half-way, with these gradients
        pairs = [(p.grad, copy) for p, copy in live.gradients if p.grad is not None and copy is not None]
    else:
        pairs = live.pairs()
    same = all(same_bits(tensor.detach(), copy) for tensor, copy in pairs)
    return SteppedAgain(run, bad, same, state, () if same else ("the second run of the step gave other values",))


_DERIVED = (
    "the weights from before the optimizer's step are gone: the op was found by stepping once more from where it ended"
)


def _step(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()


def _fill_in(optimizer: torch.optim.Optimizer) -> None:
    """Put the mean of a weight's finite part, and zeros in the state, where they are not finite."""
    parameters = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    with torch.no_grad():
        for tensor in structure_of(optimizer).tensors:
            if is_finite(tensor) or tensor.layout is not torch.strided:
                continue
            finite = torch.isfinite(tensor)
            value = 0.0
            if id(tensor) in parameters:
                value = float(tensor[finite].float().mean()) if bool(finite.any()) else 1.0
            tensor.masked_fill_(~finite, value)
