"""The draws: which fault, in which module, at which step, in what kind of training loop. A seed fixes all of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch

from .architectures import ARCHITECTURES
from .faults import FAULTS, Fault
from .places import places_in
from .planting import reaches_the_loss

DRAWS_PER_ARCHITECTURE = 30
LAST_STEP = 5


@dataclass(frozen=True, slots=True)
class Draw:
    """One planted fault, and the loop that it is planted in."""

    architecture: str
    number: int
    fault: Fault
    module: str | None  # None: in the loss
    step: int
    optimizer: str  # "sgd" | "momentum" | "adamw"
    loss_in_model: bool
    calls: int  # forward and backward calls to one step of the optimizer
    clip: bool  # the norm of the gradients is clipped
    autocast: bool  # forward and loss in bfloat16 where autocast chooses so
    checkpoint: str  # "" | "reentrant" | "not reentrant": activations are recomputed in the backward
    seed: int

    @property
    def name(self) -> str:
        """As the test is called: "gpt2-07-log_of_zero"."""
        return f"{self.architecture}-{self.number:02d}-{self.fault.name}"


def draws_for(architecture: str) -> list[Draw]:
    """The draws of one architecture: the kinds of fault in a shuffled order, all else at random.

    The kinds that need a part of the model's own (a table, an image) fit few architectures, and come first.
    """
    dice = random.Random(f"nantrace {architecture}")
    possible = [fault for fault in FAULTS.values() if _places(architecture, fault)]
    kinds = [fault for fault in possible if fault.kind in ("table", "pixel")]
    others = [fault for fault in possible if fault not in kinds]
    while len(kinds) < DRAWS_PER_ARCHITECTURE:
        kinds += dice.sample(others, k=len(others))
    return [_draw(architecture, number, kind, dice) for number, kind in enumerate(kinds[:DRAWS_PER_ARCHITECTURE])]


def all_draws() -> list[Draw]:
    """Every draw of every architecture."""
    return [draw for architecture in ARCHITECTURES for draw in draws_for(architecture)]


def _draw(architecture: str, number: int, fault: Fault, dice: random.Random) -> Draw:
    draw = Draw(
        architecture,
        number,
        fault,
        None,
        dice.randint(0, LAST_STEP),
        dice.choice(["sgd", "momentum", "adamw"]),
        fault.kind != "loss" and dice.random() < 0.5,
        dice.choice([1, 1, 2]),
        dice.random() < 0.25,
        dice.random() < 0.2 and architecture != "lstm",  # torch has no LSTM in bfloat16 on every CPU
        dice.choice(["", "", "", "reentrant", "not reentrant"]) if ARCHITECTURES[architecture].checkpoints else "",
        dice.randrange(1 << 30),
    )
    return replace(draw, module=_place(draw, dice))


def _place(draw: Draw, dice: random.Random) -> str | None:
    """A module at random; for infinities let loose one from which they get to the loss of the drawn step.

    Where they do not, the backward may meet them or make its own, and which of the two is no property of the fault.
    """
    places = _places(draw.architecture, draw.fault)
    if not draw.fault.loose:
        return dice.choice(places)
    architecture, batches = ARCHITECTURES[draw.architecture], torch.Generator().manual_seed(draw.seed)
    for _ in range(draw.step * draw.calls + 1):
        batch = architecture.batch(batches)
    for place in dice.sample(places, k=len(places)):
        if reaches_the_loss(architecture, place or "", draw.fault, batch, in_model=draw.loss_in_model):
            return place
    raise LookupError(f"{draw.fault.name} reaches the loss of {draw.architecture} from no module")


def _places(architecture: str, fault: Fault) -> list[str | None]:
    places = places_in(architecture)
    match fault.kind:
        case "loss":
            return [None]
        case "table":
            return list(places.tables)
        case "pixel":
            return list(places.readers)[:1]
    return list(places.outputs)
