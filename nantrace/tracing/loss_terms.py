"""The additive terms of the failing step's loss: what each was, with which weight, and what it gave to the gradient.

The forward of the step is run once more up to the loss, whose graph is then taken apart while it is alive. Nothing here
may cost the report: what cannot be found is not said.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..model import LossTerm, Source
from ..recording import patches
from ..recording.names import ModuleNames
from ..recording.recorder import Recorder
from ..recording.tape import EngineCall, Tape, Token, Update
from ..torch_private import gradient_edge, node_sequence_number, run_backward, sequence_number
from .backward import ENGINE_CODES
from .linear import MAX_ELEMENTS, Part, may_be_sum, parts_of
from .microscope import Microscope
from .naming import Namer
from .playing import FUNCTION_CODE, play
from .replay import in_thread
from .run import Run, unobserved
from .slicing import doubts_about, slice_for
from .term_names import accumulator, assigned_name, computed_text, operand_text

MAX_TERMS = 8  # the largest are told; each that is measured costs a backward
_MAX_ROOTS = 8  # losses that a step gave to `backward`

_log = logging.getLogger("nantrace")


def loss_terms(recorder: Recorder) -> tuple[LossTerm, ...]:
    """The terms of the loss and their values; none where the loss is no sum, or cannot be computed again."""
    return _terms(recorder, lambda run, terms: [term.told for term in terms])


def loss_terms_with_gradients(recorder: Recorder) -> tuple[LossTerm, ...]:
    """The same, with the norm of the gradient that each of them gave to the parameters."""
    return _terms(recorder, _measured)


@dataclass(slots=True)
class _Term:
    """The parts of one name and line, and what is told of them."""

    told: LossTerm
    parts: list[Part]


class _Watching(Microscope):
    """Sees of each op only which node and which line it belongs to, and keeps small results: the terms are scalars."""

    def __init__(self, module_path: Callable[[torch.nn.Module], str | None]) -> None:
        super().__init__(ENGINE_CODES, FUNCTION_CODE, module_path, wanted=-1)
        self.values: dict[int, torch.Tensor] = {}  # by the sequence number of the node

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if isinstance(result, torch.Tensor) and result.is_floating_point() and result.numel() <= MAX_ELEMENTS:
            node = sequence_number() - 1
            if node not in self.values:  # the first op after a node was numbered is the op of that node
                self.values[node] = result.detach().clone()
        return result

    def seen_of(self, node: Any) -> Any:
        """The op of an autograd node, or None."""
        sequence = node_sequence_number(node)
        number = self._by_sequence.get(sequence) if sequence is not None else None
        return self.op(number) if number is not None else None

    def value_of(self, node: Any) -> torch.Tensor | None:
        """What the op of a node gave, where that was small."""
        sequence = node_sequence_number(node)
        return self.values.get(sequence) if sequence is not None else None


def _terms(recorder: Recorder, tell: Callable[[Run, list[_Term]], list[LossTerm]]) -> tuple[LossTerm, ...]:
    try:
        roots = _losses(recorder.tape)
        if not roots or not _worth_a_look(roots):
            return ()
        run = _run(recorder.tape, recorder.names, roots)
        if run is None:
            return ()
        found: list[LossTerm] = []

        def play_and_look(run: Run) -> None:
            play(run)
            with unobserved(run.microscope):
                terms = _largest(_named(run, roots))
                if len(terms) > 1:
                    found.extend(tell(run, terms))

        patches.listen(run.microscope)
        patches.listen_to_modules(run.microscope)
        try:
            in_thread(run, recorder.names, play_and_look)
        finally:
            patches.stop_listening(run.microscope)
        return tuple(found) if run.error is None else ()
    except Exception as error:  # a report without the terms is worth more than none
        _log.debug("nantrace: the terms of the loss were not found: %r", error, exc_info=error)
        return ()


def _losses(tape: Tape) -> list[Token]:
    """What the step gave to `backward` since the weights were last updated."""
    roots: list[Token] = []
    for event in reversed(tape.events):
        if isinstance(event, Update):
            break
        if isinstance(event, EngineCall) and event.accumulate:
            roots += event.roots
    roots.reverse()
    return roots if len(roots) <= _MAX_ROOTS else []


def _worth_a_look(roots: list[Token]) -> bool:
    live = [token.ref() for token in roots]
    return len(roots) > 1 or live[0] is None or may_be_sum(live[0])


def _run(tape: Tape, names: ModuleNames, roots: list[Token]) -> Run | None:
    """The run of the forward up to the losses; None where it would not be what the step did."""
    events = slice_for(tape.events, roots, False)
    if not events or doubts_about(tape, events):
        return None
    run = Run(_Watching(lambda module: names.path(module, look_again=False)), events, {}, {}, [])
    run.parameters = [parameter for parameter, _ in names.parameters.values() if parameter.requires_grad]
    return run


def _named(run: Run, roots: list[Token]) -> list[_Term]:
    """The terms of all losses, those of one name and line together."""
    watching = run.microscope
    assert isinstance(watching, _Watching)
    names = _Names(watching, Namer(watching, run.events))
    parts: list[Part] = []
    for token in roots:
        twin = run.twin(token)
        if twin is not None and twin.grad_fn is not None and twin.numel() == 1:
            parts += parts_of(twin, names.line)
    found: dict[tuple[str, int], list[Part]] = {}
    for part, key in zip(parts, names.of(parts), strict=True):
        found.setdefault(key, []).append(part)
    return [_term(watching, name, names.line(group[0].node), group) for (name, _), group in found.items()]


class _Names:
    """The users' words for the parts of a loss."""

    def __init__(self, watching: _Watching, namer: Namer) -> None:
        self._watching = watching
        self._namer = namer

    def line(self, node: Any) -> Source | None:
        """The line of the op that a node belongs to."""
        seen = self._watching.seen_of(node)
        return self._namer.line(self._namer.name(seen)) if seen is not None else None

    def of(self, parts: list[Part]) -> list[tuple[str, int]]:
        """A name and a line for each part: what the sum calls it, where that tells it from the others."""
        made = [self.line(part.node) for part in parts]
        lines = [line.line if line is not None else 0 for line in made]
        summed = [self._in_sum(part, line) for part, line in zip(parts, made, strict=True)]
        keys: list[tuple[str, int]] = []
        for part, line, number, name in zip(parts, made, lines, summed, strict=True):
            elsewhere = {other for other, called in zip(lines, summed, strict=True) if called == name}
            if name is None or len(elsewhere) > 1:  # a loop over terms calls all of them the same
                name = self._own(part, line) or computed_text(line) or part.node.name()
            keys.append((name, number))
        return keys

    def _in_sum(self, part: Part, made: Source | None) -> str | None:
        parent = self.line(part.parent) if part.parent is not None else None
        own = self._own(part, made)
        if parent is None:
            return own
        name = operand_text(parent, part.position, own)
        return name if name != accumulator(parent) else None

    def _own(self, part: Part, made: Source | None) -> str | None:
        """The variable that the part was assigned to, where that is not the sum itself."""
        parent = self.line(part.parent) if part.parent is not None else None
        if parent is None or made is None:
            return assigned_name(made)
        name = assigned_name(made)
        return None if (parent.file, parent.line) == (made.file, made.line) or name == accumulator(parent) else name


def _term(watching: _Watching, name: str, line: Source | None, parts: list[Part]) -> _Term:
    weights = [float(f"{float(part.weight.sum()):.7g}") for part in parts]  # a float32 says 0.1 with nine digits
    values = [_value(watching, part) for part in parts]
    alike = all(weight == weights[0] for weight in weights)
    known = [value for value in values if value is not None]
    given = [value * (1.0 if alike else weight) for value, weight in zip(known, weights, strict=False)]
    value = sum(given) if len(known) == len(parts) else None
    return _Term(LossTerm(name, value, weights[0] if alike else 1.0, None, line, len(parts)), parts)


def _value(watching: _Watching, part: Part) -> float | None:
    """What a part was, without its weight: of one per sample, the mean with the weights that these have."""
    if part.parameter is not None:
        return float(part.parameter.detach()) if part.parameter.numel() == 1 else None
    value = watching.value_of(part.node)
    if value is None or value.numel() != part.weight.numel():
        return None
    if value.numel() == 1:
        return float(value)
    total = float(part.weight.sum())
    return float((value.reshape(part.weight.shape) * part.weight).sum()) / total if total else float(value.mean())


def _largest(terms: list[_Term]) -> list[_Term]:
    """The terms that are told, in the order of the sum: the bad ones and the largest."""

    def size(term: _Term) -> float:
        value = term.told.value
        if value is None or not math.isfinite(value):
            return math.inf
        return abs(value * term.told.weight)

    kept = sorted(terms, key=size, reverse=True)[:MAX_TERMS]
    return [term for term in terms if any(term is one for one in kept)]


def _measured(run: Run, terms: list[_Term]) -> list[LossTerm]:
    return [replace(term.told, gradient_norm=_gradient_norm(run, term.parts)) for term in terms]


def _gradient_norm(run: Run, parts: list[Part]) -> float:
    """The norm of the gradient of these parts, weights included, over all parameters."""
    total = 0.0
    inputs = tuple(run.parameters)
    edges = tuple(gradient_edge(part.node, part.output) for part in parts if part.parameter is None)
    weights = tuple(part.weight for part in parts if part.parameter is None)
    if edges:
        gradients = run_backward(edges, weights, True, False, inputs, allow_unreachable=True, accumulate_grad=False)
        for gradient in gradients:
            if gradient is not None:
                total += float(torch.linalg.vector_norm(gradient.detach(), dtype=torch.float64)) ** 2
    for part in parts:
        if part.parameter is not None:
            total += float(torch.linalg.vector_norm(part.weight, dtype=torch.float64)) ** 2
    return math.sqrt(total) if total == total else total
