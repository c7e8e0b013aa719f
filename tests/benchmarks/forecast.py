"""How far ahead the forecast warns, and how often for nothing: `python -m tests.benchmarks.forecast`.

Trains runs that diverge and runs that do not, in one process, each until the anomaly or to its end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F

from tests.divergence.running import Ended, run
from tests.divergence.trainings import (
    Batch,
    LanguageModel,
    MakeOptimizer,
    Training,
    adam,
    adversarial,
    convolutional,
    counting,
    hinge,
    images,
    in_half,
    mlp,
    ramped,
    recurrent,
    regression,
    sequences,
    sgd,
    supervised,
    token_loss,
    wasserstein,
)

Make = Callable[[], Training]
SEEDS = (0, 1, 2)
STEPS = 600
SUDDEN = 4  # steps: a trend takes five points


def linear(lr: float, **options: float) -> Training:
    """Least squares: diverges geometrically beyond a learning rate of 1 / (largest eigenvalue)."""
    return supervised(nn.Linear(8, 1), regression(), F.mse_loss, sgd(lr, **options))


def regressing_images(lr: float) -> Training:
    """A CNN with BatchNorm that gives one number: what reaches the head is bounded, the head is not."""
    batch = images()
    return supervised(convolutional(1), lambda: (lambda x, y: (x, y[:, None].float()))(*batch()), F.mse_loss, sgd(lr))


def regressing_tokens(lr: float) -> Training:
    """A Transformer that gives the next token as a number."""
    model, batch = LanguageModel(), counting()
    model.head = nn.Linear(32, 1)
    return supervised(model, batch, lambda out, y: F.mse_loss(out[..., 0], y / 24), sgd(lr))


def ascending(model: nn.Module, batch: Batch, lr: float) -> Training:
    """The sign of the loss is wrong: the error is made as large as possible."""
    return supervised(model, batch, lambda out, y: -F.mse_loss(out, y), sgd(lr))


def probing(model: nn.Module, head: nn.Module, batch: Batch, optimizer: MakeOptimizer) -> Training:
    """Only the head of the model learns."""
    model.requires_grad_(False)
    head.requires_grad_(True)
    return supervised(model, batch, lambda out, y: F.mse_loss(out.flatten(), y.flatten().float()), optimizer)


def image_probe(lr: float, **options: float) -> Training:
    """A linear head on a frozen CNN."""
    model = convolutional(1)
    return probing(model, model[-1], images(), sgd(lr, **options))


def token_probe(lr: float, **options: float) -> Training:
    """A linear head on a frozen Transformer."""
    model = LanguageModel()
    model.head = nn.Linear(32, 1)
    return probing(model, model.head, counting(), sgd(lr, **options))


def sequence_probe(kind: str, lr: float) -> Training:
    """A linear head on a frozen recurrent layer."""
    model = recurrent(kind, width=64)
    return probing(model, model.head, sequences(30), sgd(lr))


def growing_in_half(model: nn.Module, make_optimizer: Callable[..., torch.optim.Optimizer]) -> Training:
    """A reward without a bound: the outputs grow until float16 ends."""
    return in_half(model, regression(), lambda out, y: -(out * y).mean() / 100, make_optimizer)


def diverging() -> Iterator[tuple[str, Make]]:
    """Runs that go wrong: most are not finite within 600 steps, some blow up and come to rest."""
    for lr in (1.0, 1.05, 1.1, 1.2, 1.5, 3.0):
        yield f"linear regression, SGD {lr}", partial(linear, lr)
    yield "linear regression, SGD 0.8, Nesterov", partial(linear, 0.8, momentum=0.9, nesterov=True)
    for lr in (0.3, 1.0):
        yield f"tanh MLP, SGD {lr}", lambda lr=lr: supervised(mlp(nn.Tanh), regression(), F.mse_loss, sgd(lr))
    for lr in (0.6, 1.0):
        yield f"ReLU MLP, SGD {lr}", lambda lr=lr: supervised(mlp(), regression(), F.mse_loss, sgd(lr))
    yield "tanh MLP, lr ramp to 1", lambda: ramped(mlp(nn.Tanh), regression(), F.mse_loss, sgd(1.0))
    yield "ReLU MLP, lr ramp to 1", lambda: ramped(mlp(), regression(), F.mse_loss, sgd(1.0))
    for lr in (0.01, 0.03):
        yield f"tanh MLP, error maximised, SGD {lr}", lambda lr=lr: ascending(mlp(nn.Tanh), regression(), lr)
        yield (
            f"LSTM, error maximised, SGD {lr}",
            lambda lr=lr: ascending(recurrent("lstm", width=64), sequences(20), lr),
        )
    for lr in (0.3, 1.0):
        yield f"CNN with BatchNorm, SGD {lr}", partial(regressing_images, lr)
        yield f"Transformer, SGD {lr}", partial(regressing_tokens, lr)
    for lr in (0.034, 0.036, 0.1):
        yield f"frozen CNN, linear head, SGD {lr}", partial(image_probe, lr)
    for lr in (0.2, 0.25, 0.3):
        yield f"frozen Transformer, linear head, SGD {lr}", partial(token_probe, lr)
    yield "LSTM, SGD 1", lambda: supervised(recurrent("lstm", width=64), sequences(20), F.mse_loss, sgd(1.0))
    for lr in (0.4, 0.8):
        yield f"frozen tanh RNN, linear head, SGD {lr}", partial(sequence_probe, "tanh", lr)
    yield "tanh RNN, SGD 0.3", lambda: supervised(recurrent("tanh", width=64), sequences(40), F.mse_loss, sgd(0.3))
    for lr in (0.5, 1.0):
        yield f"ReLU RNN, SGD {lr}", lambda lr=lr: supervised(recurrent("relu"), sequences(40), F.mse_loss, sgd(lr))
    for lr in (0.05, 0.1, 0.3):
        yield f"GAN, unbounded critic, SGD {lr}", lambda lr=lr: adversarial(sgd(lr), sgd(lr), wasserstein)
    for name, optimizer in (("SGD 1", sgd(1.0)), ("Adam 0.01", adam(0.01)), ("Adam 0.03", adam(0.03))):
        yield f"float16 MLP, unbounded reward, {name}", lambda o=optimizer: growing_in_half(mlp(depth=3), o)
    yield "float16 MLP, SGD 0.3", lambda: in_half(mlp(nn.Tanh), regression(), F.mse_loss, sgd(0.3))
    yield (
        "float16 MLP, targets of 1e4, Adam 0.01",
        lambda: in_half(mlp(), regression(size=1e4), F.l1_loss, adam(1e-2)),
    )


def healthy() -> Iterator[tuple[str, Make]]:
    """Runs that stay finite."""
    for lr in (0.01, 0.3, 0.9):
        yield f"linear regression, SGD {lr}", partial(linear, lr)
    yield "linear regression, momentum 0.9", partial(linear, 0.05, momentum=0.9)
    for name, optimizer in (("SGD 0.03", sgd(0.03)), ("Adam 1e-3", adam(1e-3)), ("Adam 3e-2", adam(3e-2))):
        yield f"ReLU MLP, {name}", lambda optimizer=optimizer: supervised(mlp(), regression(), F.mse_loss, optimizer)
        yield (
            f"Transformer, {name}",
            lambda optimizer=optimizer: supervised(LanguageModel(), counting(), token_loss, optimizer),
        )
        yield f"CNN, {name}", lambda o=optimizer: supervised(convolutional(), images(), F.cross_entropy, o)
        yield f"float16 Transformer, {name}", lambda o=optimizer: in_half(LanguageModel(), counting(), token_loss, o)
        yield f"float16 CNN, {name}", lambda o=optimizer: in_half(convolutional(), images(), F.cross_entropy, o)
        yield f"LSTM, {name}", lambda o=optimizer: supervised(recurrent("lstm"), sequences(20), F.mse_loss, o)
    yield "Transformer, Adam 1, finite", lambda: supervised(LanguageModel(), counting(), token_loss, adam(1.0))
    yield "ReLU RNN, Adam 1e-3", lambda: supervised(recurrent("relu"), sequences(40), F.mse_loss, adam(1e-3))
    yield "tanh RNN, SGD 0.03", lambda: supervised(recurrent("tanh"), sequences(40), F.mse_loss, sgd(0.03))
    yield "Transformer, warm-up, Adam", lambda: ramped(LanguageModel(), counting(), token_loss, adam(3e-3))
    yield "ReLU MLP, warm-up, SGD", lambda: ramped(mlp(), regression(), F.mse_loss, sgd(0.05))
    yield "GAN, hinge, Adam", lambda: adversarial(adam(1e-3), adam(1e-3), hinge)
    yield "GAN, unbounded critic, Adam", lambda: adversarial(adam(1e-3), adam(1e-3), wasserstein)
    for size in (1e4, 1e8, 1e12):
        yield (
            f"targets of {size:.0e}, Adam 1",
            lambda size=size: supervised(mlp(), regression(size=size), F.mse_loss, adam(1.0)),
        )
        yield (
            f"targets of {size:.0e}, linear, SGD",
            lambda size=size: supervised(nn.Linear(8, 1), regression(size=size), F.mse_loss, sgd(0.1)),
        )
    yield (
        "float16 MLP, targets of 3e3, Adam 0.1",
        lambda: in_half(mlp(), regression(size=3e3), F.l1_loss, adam(1e-1)),
    )


def line(name: str, seed: int, ended: Ended) -> str:
    """One row of the table."""
    said = ended.said[0] if ended.said else None
    end = "blew up, finite" if ended.blew_up else "finite"
    if ended.report is not None:
        end = f"{ended.cause} at {ended.steps}"
    sudden = str(ended.sudden) if ended.report is not None else "-"
    if said is None:
        return f"| {name} | {seed} | {end} | {sudden} | - | - | - | - |"
    ahead = str(ended.steps - said.step) if ended.report is not None else "-"
    what = f"{said.what}, {said.absmax:.1e}, {said.factor:.3g}x"
    return f"| {name} | {seed} | {end} | {sudden} | {said.step} | {ahead} | {said.steps_left} | {what} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of a run's name")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for title, runs in (("diverging", diverging()), ("healthy", healthy())):
        print(f"\n| {title} | seed | end | from a million | warned at | steps ahead | said | of |\n{'|---' * 8}|")
        found: list[Ended] = []
        for name, make in runs:
            for seed in range(arguments.seeds):
                if arguments.only in name:
                    found.append(run(make, STEPS, seed, forecast=True))
                    print(line(name, seed, found[-1]), flush=True)
        print(f"\n{summary(found)}")


def summary(found: list[Ended]) -> str:
    """Hits and false alarms."""
    died = [ended for ended in found if ended.report is not None]
    ahead = sorted(ended.steps - ended.said[0].step for ended in died if ended.said)
    text = f"{len(died)} runs ended in an anomaly, {len(ahead)} were forecast"
    if ahead:
        text += f", {ahead[0]} to {ahead[-1]} steps ahead (median {median(ahead):.0f})"
        text += f", {sum(steps >= 5 for steps in ahead)} of them at least 5 steps ahead"
    for ended in died:
        if not ended.said and ended.sudden > SUDDEN:
            text += f"; missed, although the loss took {ended.sudden} steps from a million"
    missed = [ended for ended in died if not ended.said and ended.sudden <= SUDDEN]
    text += f"; {len(missed)} went from a loss below a million to the anomaly in at most {SUDDEN} steps"
    for kind, runs in (
        ("blew up and came to rest", [ended for ended in found if ended.report is None and ended.blew_up]),
        ("stayed finite", [ended for ended in found if ended.report is None and not ended.blew_up]),
    ):
        text += f". {len(runs)} {kind}, {sum(bool(ended.said) for ended in runs)} of them with a forecast"
    return text + "."


if __name__ == "__main__":
    main()
