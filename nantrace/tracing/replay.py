"""Run the step's tape again, sliced to what the symptom depends on, with every op observed and no lasting effect.

The replay runs in a thread of its own: a clean mode stack, no autocast, no inference mode, no functorch level.
Tensors are substituted by identity: what an event made in the live run is what its second run makes here.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..recording import patches
from ..recording.names import ModuleNames
from ..recording.tape import Tape, TapeEvent, Token
from .backward import ENGINE_CODES
from .lasting import nothing_lasts
from .microscope import Enough, Microscope, Seen
from .playing import FUNCTION_CODE, play
from .run import Run
from .slicing import doubts_about, slice_for


def replay(tape: Tape, names: ModuleNames, symptoms: list[Token], gradients: bool) -> Run:
    """Replay what these tokens (and, if `gradients`, all parameter gradients) depend on."""
    return _replay(tape, names, slice_for(tape.events, symptoms, gradients), None)


def look_again(tape: Tape, names: ModuleNames, run: Run, number: int) -> Seen | None:
    """Replay the same events up to one op and return it with its operands; None where that op did not come again."""
    second = _replay(tape, names, run.events, number)
    ops = second.microscope.ops
    same = len(ops) > number and ops[number].facts is run.microscope.ops[number].facts
    return ops[number] if same and ops[number].kept_inputs else None


def _replay(tape: Tape, names: ModuleNames, events: list[TapeEvent], wanted: int | None) -> Run:
    microscope = Microscope(ENGINE_CODES, FUNCTION_CODE, lambda module: names.path(module, look_again=False), wanted)
    run = Run(microscope, events, {}, {}, doubts_about(tape, events))
    run.parameters = [parameter for parameter, _ in names.parameters.values()]
    patches.listen(microscope)
    patches.listen_to_modules(microscope)
    try:
        return in_thread(run, names, play)
    finally:
        patches.stop_listening(microscope)


def in_thread(run: Run, names: ModuleNames, play: Callable[[Run], None]) -> Run:
    """Play it in a thread of its own, under the run's microscope; what leaves it as an exception stands in the run."""
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def work() -> None:
        if device is not None:
            torch.cuda.set_device(device)
        run.microscope.listen_here()
        started = time.perf_counter()
        try:
            with nothing_lasts(run, names), _eager(), run.microscope:
                play(run)
        except Enough:
            pass
        except BaseException as error:  # whatever user code raises here must not kill the thread silently
            run.error = error
        run.seconds = time.perf_counter() - started

    thread = threading.Thread(target=work, name="nantrace replay", daemon=True)
    thread.start()
    thread.join()
    return run


@contextmanager
def _eager() -> Iterator[None]:
    """Run compiled modules eagerly, where a compiler has been loaded at all."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
