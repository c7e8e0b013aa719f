"""Bad use: which error, and its exact sentence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nantrace

from ..builders import Mlp


def test_no_module() -> None:
    """`watch()` needs something to watch."""
    with pytest.raises(nantrace.NotAModuleError) as raised:
        nantrace.watch()

    assert str(raised.value) == "watch() needs at least one torch.nn.Module: nantrace.watch(model)"
    assert isinstance(raised.value, TypeError)


def test_a_class_instead_of_a_model() -> None:
    """The class in place of an object of it."""
    with pytest.raises(nantrace.NotAModuleError) as raised:
        nantrace.watch(Mlp)

    assert str(raised.value) == (
        "watch() takes torch.nn.Module objects, not type; that is the class, give the model: watch(Mlp())"
    )


@pytest.mark.parametrize("kind", [list, tuple])
def test_models_in_a_container(kind: type) -> None:
    """A list of models in place of the models."""
    with pytest.raises(nantrace.NotAModuleError) as raised:
        nantrace.watch(kind([Mlp(), Mlp()]))

    assert str(raised.value) == (
        f"watch() takes torch.nn.Module objects, not {kind.__name__}; "
        "several models are given one by one: watch(generator, discriminator)"
    )


@pytest.mark.parametrize("thing", [torch.ones(2), None, "model", torch.optim.SGD([torch.ones(1)], 0.1)])
def test_something_that_is_no_module(thing: object) -> None:
    """Anything else is named by its type."""
    with pytest.raises(nantrace.NotAModuleError) as raised:
        nantrace.watch(Mlp(), thing)

    assert str(raised.value) == f"watch() takes torch.nn.Module objects, not {type(thing).__name__}"


def test_an_unknown_option() -> None:
    """An unknown option is named, with those there are."""
    with pytest.raises(nantrace.OptionError) as raised:
        nantrace.watch(Mlp(), on_anomly="warn")

    assert str(raised.value).startswith("watch() has no option 'on_anomly'; it has on_anomaly, dump_dir, capacity, ")
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"on_anomaly": "explode"}, "on_anomaly='explode': give "),
        ({"on_anomaly": None}, "on_anomaly=None: give "),
        ({"level": "everything"}, "level='everything': give 'module'"),
        ({"capacity": 0}, "capacity=0: give the number of steps to keep, an int of at least 1"),
        ({"capacity": -3}, "capacity=-3: give the number of steps to keep, an int of at least 1"),
        ({"capacity": 2.5}, "capacity=2.5: give the number of steps to keep, an int of at least 1"),
        ({"capacity": True}, "capacity=True: give the number of steps to keep, an int of at least 1"),
        ({"strict": 1}, "strict=1: give True or False"),
        ({"forecast": "yes"}, "forecast='yes': give True or False"),
        ({"replay": "no"}, "replay='no': give True or False"),
        ({"dump_dir": 3}, "dump_dir=3: give a folder's path, or None for no dumps"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in value.items()),
)
def test_a_bad_value(options: dict[str, object], sentence: str) -> None:
    """A bad value is named, with what is allowed."""
    with pytest.raises(nantrace.OptionError) as raised:
        nantrace.watch(Mlp(), **options)

    assert str(raised.value).startswith(sentence)


def test_starting_twice() -> None:
    """A watch that runs cannot be started again."""
    tracer = nantrace.watch(Mlp()).start()
    with pytest.raises(nantrace.WatchError) as raised:
        tracer.start()
    tracer.stop()

    assert str(raised.value) == (
        "this watch has already started; call stop() first, or make another with nantrace.watch(...)"
    )
    assert isinstance(raised.value, RuntimeError)


def test_watching_a_watched_model() -> None:
    """A model is watched by one watch at a time, and the first one goes on."""
    model = Mlp()
    with nantrace.watch(model) as first:
        with pytest.raises(nantrace.WatchError) as raised, nantrace.watch(model):
            pass
        model(torch.randn(2, 4)).sum().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
        steps = first.step

    assert str(raised.value) == (
        "this Mlp is being watched already: end that watch first, with stop() or by leaving its block"
    )
    assert steps == 1


def test_watching_again_after_the_end() -> None:
    """After the end of a watch the model can be watched again, by it or by another."""
    model = Mlp()
    tracer = nantrace.watch(model)
    with tracer:
        pass
    with tracer:
        pass
    with nantrace.watch(model):
        pass


def test_the_history_of_a_stopped_watch() -> None:
    """The history is there while the watch runs."""
    tracer = nantrace.watch(Mlp())
    with pytest.raises(nantrace.WatchError, match="the history is there while the watch runs"):
        tracer.history


def test_nothing_is_in_place_after_a_refused_start() -> None:
    """A start that is refused leaves nothing behind (the check after each test sees to it)."""
    model, other = Mlp(), Mlp()
    with nantrace.watch(model), pytest.raises(nantrace.WatchError):
        nantrace.watch(other, model).start()
    with nantrace.watch(other):
        pass


def test_the_watch_says_what_it_is() -> None:
    """`repr` names the models and whether the watch runs."""
    tracer = nantrace.watch(Mlp(), nn.Linear(2, 2))
    before = repr(tracer)
    with tracer:
        inside = repr(tracer)

    assert before == "<nantrace.Tracer of Mlp, Linear, stopped>"
    assert inside == "<nantrace.Tracer of Mlp, Linear, running>"
