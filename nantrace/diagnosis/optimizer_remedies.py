"""What to change in an optimizer's settings, written into the line that constructed it or that steps it."""

from __future__ import annotations

import re
from math import isinf

from ..model import Change, OptimizerFacts, Remedy, Snapshot
from .edits import Edit, line_of
from .keywords import with_keyword
from .numbers import COARSE, number, show

_STEP = 0.01  # weights are of the order of 1 and less
_PARAMETERS = '[p for group in {}.param_groups for p in group["params"]]'


def for_eps(facts: OptimizerFacts, dtype: str) -> tuple[Remedy, ...]:
    """An eps that the parameters' dtype can hold; master weights in float32."""
    eps = "1e-4" if dtype == "float16" else "1e-8"
    advice = _setting(
        facts, "eps", eps, f"Give {facts.type} an eps that {dtype} can hold, such as {eps}.", f"eps={eps}"
    )
    if dtype not in COARSE:
        return (advice,)
    master = Remedy(
        "Or keep the parameters in float32 (master weights) and compute in half precision (fp16, float16) under "
        "torch.autocast with a GradScaler; bf16 (bfloat16) has the range but not the digits.",
        'model.float()\nwith torch.autocast("cuda", dtype=torch.float16):\n    loss = ...',
        change=Change("dtype", None, name="float32"),
    )
    return (advice, master)


def for_broken_setting(snapshot: Snapshot, facts: OptimizerFacts, name: str) -> tuple[Remedy, ...]:
    """A setting that is not finite: the value that the last healthy step had."""
    text = f"Give {name} a finite value; if a scheduler sets it, check the scheduler."
    rates = [step.lr for step in snapshot.history.steps if step.lr is not None and step.step < snapshot.step]
    healthy = next((rate for rate in reversed(rates) if 0 < rate < 1e30), None)
    value = number(facts.settings.get(name))
    if name != "lr" or healthy is None:
        return (Remedy(text, f"{facts.type}(..., {name}=...)"),)
    change = Change("setting", name=name, values=(healthy,))
    text = f"{text} The last healthy step had {name}={show(healthy)}."
    cap = f'for group in {{}}.param_groups:\n    group["{name}"] = min(group["{name}"], {healthy!r})'
    edit = _before_the_step(snapshot, cap) if value is not None and isinf(value) and value > 0 else None
    return ((edit or Edit(f"{facts.type}(..., {name}={healthy!r})")).remedy(text, change),)


def for_large_update(snapshot: Snapshot, facts: OptimizerFacts, rate: float, size: float) -> tuple[Remedy, ...]:
    """A rate, or a bound on the gradient's norm, at which an element moves no further than weights usually may."""
    lower, bound = f"{_STEP / size:.1g}", f"{_STEP / rate:.1g}"
    text = f"Lower the learning rate: at {lower} a gradient of {show(size)} moves its element by {show(_STEP)}."
    slower = _setting(facts, "lr", lower, text, f"lr={lower}")
    clip = f"torch.nn.utils.clip_grad_norm_({_PARAMETERS}, max_norm={bound})"
    edit = _before_the_step(snapshot, clip)
    change = Change("clip", values=(float(bound),))
    words = f"Or clip the gradient norm before the step: with lr={show(rate)}, to {bound}."
    clipped = edit or Edit(f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={bound})")
    return (slower, clipped.remedy(words, change))


def uncentered(facts: OptimizerFacts) -> Remedy:
    """The plain form of an optimizer that subtracts the squared mean gradient."""
    edit = with_keyword(facts.made, facts.type, "centered", "False")
    text = (
        "Use centered=False: eps is added after the root, so it cannot help; or an alpha nearer to 1, so that the two "
        "averages differ."
    )
    return (edit or Edit(f"{facts.type}(model.parameters(), centered=False)")).remedy(text)


def _setting(facts: OptimizerFacts, name: str, value: str, text: str, snippet: str) -> Remedy:
    change = Change("setting", name=name, values=(float(value),))
    edit = with_keyword(facts.made, facts.type, name, value)
    return (edit or Edit(f"{facts.type}(model.parameters(), {snippet})")).remedy(text, change)


def _before_the_step(snapshot: Snapshot, template: str) -> Edit | None:
    """Lines put before a line that is nothing but a call of the optimizer's `step`; {} is the optimizer."""
    frame = line_of(snapshot.origin.source) if snapshot.origin is not None else None
    found = re.fullmatch(r"([A-Za-z_][\w.]*)\.step\(\)", frame.code) if frame is not None else None
    if frame is None or found is None:
        return None
    return Edit(f"{template.replace('{}', found[1])}\n{frame.code}", frame)
