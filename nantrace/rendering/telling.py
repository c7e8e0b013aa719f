"""Turns a report into a story: the order in which a tired person needs the facts."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

from ..model import Cause, Diagnosis, Expected, Op, OptimizerFacts, Origin, Snapshot
from . import numbers
from .codeblock import code_block, operand_lines
from .harmless import harmless, prose
from .headline import headline
from .limits import ROOMY, Limits
from .story import Fix, Row, Section, Sentence, Story
from .trail import trail
from .words import BORN, module, name, place, step_name

_TREND = 6  # steps
_GROWING = (Cause.LEARNING_RATE, Cause.EXPLODING_GRADIENT)


def tell(snapshot: Snapshot, diagnosis: Diagnosis, path: tuple[Op, ...], limits: Limits = ROOMY) -> Story:
    """The whole story. Whatever is not known is left out, never printed as empty."""
    sections = (
        Section("Code", tuple(_code(snapshot, limits))),
        Section("Where", tuple(_where(snapshot))),
        Section("Why", tuple(_why(snapshot, diagnosis, limits))),
        Section("Path", () if snapshot.exception is not None else (trail(snapshot, path, limits),)),
        Section("Fix", tuple(_fixes(diagnosis, limits))),
        Section("State", tuple(_state(snapshot))),
    )
    return Story(headline(snapshot, diagnosis), tuple(section for section in sections if section.rows))


def _code(snapshot: Snapshot, limits: Limits) -> Iterable[Row]:
    block = code_block(snapshot.origin.source, limits) if snapshot.origin is not None else None
    if block is not None:
        yield block
    operands = operand_lines(snapshot, limits)
    if operands is not None:
        yield operands


def _where(snapshot: Snapshot) -> Iterable[Row]:
    origin = snapshot.origin
    step = step_name(snapshot)
    if origin is None:
        born = BORN.get(snapshot.phase, "")
        known = ", ".join(part for part in (step, born) if part)
        yield Sentence(f"{known}; the op that made it is not known" if known else "the op that made it is not known")
        return
    born = "raised" if snapshot.exception is not None else "born " + BORN.get(snapshot.phase, prose(snapshot.phase))
    if snapshot.source_value is not None:
        came = "there before the step began" if snapshot.phase == "parameters" else "came in from outside"
        born = f"{came}; this is the first op that used it"
    yield Sentence(", ".join(part for part in (_op(origin), _home(origin), step, born) if part))
    if snapshot.optimizer is not None and snapshot.phase == "optimizer":
        # Switches that are off say nothing.
        used = {key: value for key, value in snapshot.optimizer.settings.items() if value}
        settings = ", ".join(f"{name(key)} {prose(value)}" for key, value in used.items())
        yield Sentence(f"{name(snapshot.optimizer.type)}{' with ' if settings else ''}{settings}.")
        yield from _optimizer_state(snapshot.optimizer)
    if origin.derivative:
        yield Sentence(_derivative(origin))
    source = snapshot.source_value
    if source is not None and source.since_step is not None and source.since_step < snapshot.step:
        yield Sentence(f"It was first seen not finite in step {source.since_step}.")
    if source is not None and source.entry is not None and source.kind in ("input", "label"):
        entry = module(source.entry, snapshot.modules.get(source.entry))
        yield Sentence(f"It came in with the call of {entry}{_sample(source.index, source.summary.shape)}.")


def _optimizer_state(optimizer: OptimizerFacts) -> Iterable[Row]:
    values = [f"{name(one.name)} {numbers.number(one.value)}" for one in optimizer.state if one.value is not None]
    if values:
        yield Sentence(f"At the failing element, after the step: {', '.join(values)}.")
    if optimizer.spoiled_in is not None:
        spoiled = name(optimizer.spoiled_state or "")
        yield Sentence(f"It spoiled the optimizer's state {spoiled} in step {optimizer.spoiled_in} already.")


def _derivative(origin: Origin) -> str:
    made = origin.example.operand("result") if origin.example is not None else None
    if made is not None and made.value is not None and not isfinite(made.value):
        found = numbers.number(made.value)
        return f"Its forward value there, {found}, was taken out downstream; its derivative was not."
    return "The forward value is finite, its derivative is not."


def _sample(index: tuple[int, ...], shape: tuple[int, ...]) -> str:
    return f": sample {index[0]} of the batch of {shape[0]}" if len(index) > 1 and len(shape) > 1 else ""


def _op(origin: Origin) -> str:
    node = f" ({name(origin.autograd_node)})" if origin.autograd_node else ""
    return f"op {name(origin.op)}{node}"


def _home(origin: Origin) -> str:
    owner = module(origin.module, origin.module_type)
    return f"in {owner}" if owner else "outside every watched module"


def _why(snapshot: Snapshot, diagnosis: Diagnosis, limits: Limits) -> Iterable[Row]:
    # Imported here: the package holds every rule, which reading a report's numbers does not need.
    from ..diagnosis.catalogue import meaning

    sure = f" ({prose(diagnosis.confidence)})" if diagnosis.cause is not Cause.UNDETERMINED else ""
    yield Sentence(f"{diagnosis.cause}{sure}: {prose(meaning(diagnosis.cause))}", "name")
    for sentence in diagnosis.evidence[: limits.evidence]:
        yield Sentence(prose(sentence))
    left = len(diagnosis.evidence) - limits.evidence
    if left > 0:
        yield Sentence(f"... {numbers.counted(left, 'more sentence')} in report.evidence", "dim")
    for other in diagnosis.also[:2]:
        yield Sentence(f"also {other}: {prose(meaning(other))}", "dim")
    if limits.trend and diagnosis.cause in _GROWING:
        yield from _trend(snapshot)


def _trend(snapshot: Snapshot) -> Iterable[Row]:
    for what, values in (
        ("loss", [(record.step, record.loss) for record in snapshot.history.steps]),
        ("gradient norm", [(record.step, record.grad_norm) for record in snapshot.history.steps]),
    ):
        known = [(step, value) for step, value in values if value is not None][-_TREND:]
        if len(known) > 2:
            listed = ", ".join(numbers.number(value) for _, value in known)
            yield Sentence(f"The {what} in steps {known[0][0]} to {known[-1][0]}: {listed}")


def _fixes(diagnosis: Diagnosis, limits: Limits) -> Iterable[Row]:
    remedies = diagnosis.remedies
    for position, remedy in enumerate(remedies[: limits.remedies], start=1):
        code = tuple(harmless(line) for line in (remedy.code or "").strip("\n").splitlines())
        if len(code) > limits.remedy_code:
            left = numbers.counted(len(code) - limits.remedy_code, "more line")
            code = (*code[: limits.remedy_code], f"# ... {left} in report.remedies")
        line = f"{place(remedy.replaces)} becomes:" if remedy.replaces is not None and code else ""
        yield Fix(position, prose(remedy.text), code, remedy.verified, line)
    if any(remedy.verified for remedy in remedies):
        yield Sentence("verified: the step was run again with this change, on copies, and stayed finite", "dim")
    yield from _more(diagnosis.cause, len(remedies) - limits.remedies)


def _more(cause: Cause, left_out: int) -> Iterable[Row]:
    """Where to read on, on one line: what was left out here, and the catalogue's entry of the cause."""
    left = f"... {numbers.counted(left_out, 'more suggestion')} in report.remedies" if left_out > 0 else ""
    entry = f"nantrace explain {cause}" if cause is not Cause.UNDETERMINED else ""
    if entry:
        yield Sentence(f"{left}; more: {entry}" if left else f"More: {entry}", "dim")
    elif left:
        yield Sentence(left, "dim")


def _state(snapshot: Snapshot) -> Iterable[Row]:
    where = prose(snapshot.symptom.where).rstrip(".")
    if where:
        yield Sentence(f"{where[0].upper()}{where[1:]}.")
    yield Sentence(_replay(snapshot))
    if snapshot.also:
        others = ", ".join(f"{name(other.op)} in {name(other.module or 'the root')}" for other in snapshot.also[:2])
        yield Sentence(f"{numbers.counted(len(snapshot.also), 'other op')} made such values independently: {others}.")
    if snapshot.expected:
        yield Sentence(_harmless_values(snapshot.expected), "dim")


def _replay(snapshot: Snapshot) -> str:
    replay = snapshot.replay
    reasons = "; ".join(prose(reason).rstrip(".") for reason in (*replay.reasons, *replay.changed, *replay.doubts))
    if replay.reproduced is None:
        return f"No replay: {reasons}." if reasons else "No replay of this step."
    size = f" ({numbers.counted(replay.ops, 'op')}, {numbers.duration(replay.seconds)})" if replay.ops else ""
    if replay.reproduced:
        return f"The replay reproduced it bit by bit{size}."
    return f"The replay did not reproduce it{size}" + (f": {reasons}." if reasons else ".")


def _harmless_values(expected: tuple[Expected, ...]) -> str:
    shown = [f"{numbers.grouped(one.count)} x {prose(one.what)} ({prose(one.reason)})" for one in expected[:2]]
    left = len(expected) - 2
    return f"Expected and harmless: {', '.join(shown)}" + (f", and {left} more kinds." if left > 0 else ".")
