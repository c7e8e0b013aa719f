"""A check, torch's own or the user's, refused a value that is not finite: where that value was born."""

from __future__ import annotations

import re

import torch

from ..model import Snapshot, Symptom
from ..recording.alarm import Alarm, first_bad, gradients_of
from ..recording.flatten import tensors_in
from ..recording.recorder import Recorder
from ..recording.statistics import is_finite
from ..recording.tape import Token, tokens_made_by
from .environment import environment
from .failures import Failure
from .run import Run
from .summaries import first_bad_element
from .trace import MAX_SYMPTOMS, judge, look_at, symptom_of, symptom_tokens, tell
from .walk import DECLARED, State, Verdict, Walk

_ABOUT_VALUES = (ValueError, ArithmeticError, AssertionError, RuntimeError)
_TELLS = re.compile(
    r"\bnans?\b|\binfs?\b|infinit|finite|invalid values|singular|positive-definite|converge|diverge|overflow"
    r"|ill-conditioned|between 0 and 1",
    re.IGNORECASE,
)


def refused_value(failure: Failure, recorder: Recorder) -> Snapshot | None:
    """The snapshot of the value that an exception is about; None where nothing is bad, or only what was meant so."""
    if not isinstance(failure.error, _ABOUT_VALUES):
        return None
    alarm = _alarm(failure, recorder)
    tokens = symptom_tokens(alarm, recorder)
    if not tokens and (failure.run is None or not _TELLS.search(str(failure.error))):
        return None
    run = failure.run
    if run is None:
        run = look_at(recorder, tokens, alarm.kind == "gradient")
        if run.error is not None:
            return None
    run.error = None  # it raised what the program raised
    judged = judge(run, recorder, tokens)
    if judged.verdict is None:
        judged.start, judged.verdict = _refused_operand(failure, judged.walk) or _last_bad(run, judged.walk)
    if judged.verdict is None or judged.verdict.kind == DECLARED:
        return None
    snapshot = Snapshot(
        step=alarm.step,
        phase="",
        symptom=symptom_of(alarm) if tokens else Symptom("exception", type(failure.error).__name__, where=alarm.where),
        modules=recorder.names.types(),
        history=recorder.ring.table(alarm.step),
        environment=environment(),
    )
    return tell(snapshot, alarm, recorder, judged, tokens)


def _alarm(failure: Failure, recorder: Recorder) -> Alarm:
    """What of the running step is not finite: a loss or gradients after a backward, or what the check may have read."""
    session, error = recorder.session, failure.error
    where = f"{type(error).__name__} left the watched block: {_first_line(error)}"
    alarm = Alarm("result", where, session.clock.step)
    if session.pending is not None:
        alarm.kind, alarm.tokens, alarm.value = "loss", [session.pending.root], session.pending.value
    elif failure.op is not None and failure.run is None:
        operands = tensors_in((failure.op.args, failure.op.kwargs))
        alarm.tokens = [session.tape.token(tensor) for tensor in operands if not is_finite(tensor)]
    elif session.gradients.present and not session.gradients.dropped() and failure.run is None:
        alarm.named = first_bad(gradients_of([(name, p) for p, name in recorder.names.parameters.values()]))
        alarm.kind = "gradient" if alarm.named else "result"
    if not alarm.tokens and not alarm.named and failure.run is None:
        alarm.tokens = _living(failure.error, recorder)
    return alarm


def _living(error: Exception, recorder: Recorder) -> list[Token]:
    """The bad results that are still alive: any where the message tells of such, else only a loss."""
    told = _TELLS.search(str(error)) is not None
    found: list[Token] = []
    for event in recorder.tape.events:
        for token in tokens_made_by(event):
            tensor = token.ref()
            if tensor is not None and (told or _is_loss(tensor)) and not is_finite(tensor):
                found.append(token)
    return found[-MAX_SYMPTOMS:]


def _is_loss(tensor: torch.Tensor) -> bool:
    return tensor.numel() == 1 and tensor.requires_grad


def _refused_operand(failure: Failure, walk: Walk) -> tuple[State | None, Verdict] | None:
    """The verdict on what the failing op of the replay was given."""
    operands = tensors_in((failure.op.args, failure.op.kwargs)) if failure.op is not None else []
    bad = [(tensor, found) for tensor in operands if (found := first_bad_element(tensor)) is not None]
    return walk.from_tensor(bad[0][0], *bad[0][1]) if bad else None


def _last_bad(run: Run, walk: Walk) -> tuple[State | None, Verdict | None]:
    """The verdict on the newest values that were not finite before the program raised."""
    found: list[tuple[State, Verdict]] = []
    for seen in [seen for seen in run.microscope.ops if seen.bad][-MAX_SYMPTOMS:]:
        for output in seen.bad:
            bad = first_bad_element(seen.kept_outputs[output].tensor)
            if bad is not None:
                state = State(seen.id, output, bad[0])
                found.append((state, walk.judge(state)))
    return min(found, key=lambda pair: (pair[1].kind == DECLARED, pair[1].order)) if found else (None, None)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else ""
