"""What of the tape a symptom depends on, and what has changed since it ran."""

from __future__ import annotations

from ..recording.tape import (
    EXTERNAL,
    GRADIENT,
    EngineCall,
    EntryCall,
    Tape,
    TapeEvent,
    Token,
    Update,
    tokens_made_by,
    tokens_read_by,
    version_of,
)


def slice_for(events: list[TapeEvent], symptoms: list[Token], gradients: bool) -> list[TapeEvent]:
    """The events that the symptom depends on, by tensor identity, in time order."""
    needed = {id(token) for token in symptoms}
    gradients = gradients or any(token.kind == GRADIENT for token in symptoms)
    kept: list[TapeEvent] = []
    for event in reversed(events):
        if isinstance(event, Update):
            continue
        wanted = any(id(token) in needed for token in tokens_made_by(event))
        if isinstance(event, EngineCall) and event.accumulate:
            wanted = gradients
        if isinstance(event, EntryCall) and event.failed:
            wanted = event is events[-1]
        if wanted:
            kept.append(event)
            read = list(tokens_read_by(event))
            needed.update(id(token) for token in read)
            gradients = gradients or any(token.kind == GRADIENT for token in read)
    kept.reverse()
    return kept


def doubts_about(tape: Tape, events: list[TapeEvent]) -> list[str]:
    """What has changed since the live run, in sentences."""
    doubts: list[str] = [f"the tape is incomplete: {tape.overflowed}"] if tape.overflowed else []
    chosen = {id(event) for event in events}
    earlier: list[EntryCall] = []
    for event in tape.events:
        if isinstance(event, EntryCall) and id(event) in chosen:
            earlier.append(event)
        elif isinstance(event, Update):
            for call in earlier:
                own = {id(parameter) for parameter in call.module.parameters()}
                if own & event.parameters:
                    doubts.append(
                        f"{event.optimizer} changed the weights of {call.path or 'the model'} after it was called"
                    )
    for event in events:
        for token in tokens_read_by(event):
            held = token.held
            if (
                token.kind == EXTERNAL
                and held is not None
                and token.saved is None
                and version_of(held) != token.version
            ):
                doubts.append(f"a tensor of shape {tuple(held.shape)} was changed in place after the step had used it")
    return list(dict.fromkeys(doubts))
