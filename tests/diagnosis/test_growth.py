"""Growth over the recorded steps, as opposed to one outlier."""

from __future__ import annotations

import pytest

from nantrace.diagnosis.growth import first_growing_module, growth, loss_growth, told

from .builders import INF, NAN, event, history


def test_a_geometric_series_grows() -> None:
    """Factor and beginning are read off the series; the non-finite last step is left out."""
    found = growth(enumerate([1.0, 1.1, 0.9, 1.0, 10.0, 100.0, 1000.0, 1e4, INF]))

    assert found is not None
    assert found.factor == pytest.approx(10, rel=0.01)
    assert (found.since, found.last) == (3, 1e4)


@pytest.mark.parametrize(
    "series",
    [
        [2.3, 2.2, 2.4, 2.1, 8000.0],
        [2.3, 2.2, 2.4, 2.1, INF],
        [1.0, 1.0, 50.0, 2.0, 3.0, 8000.0],
        [1e6, 1e5, 1e4, 1e3],
        [1.0, 10.0, 100.0, 1e3, 1e4, 1.0],
        [1.0, 1e9],
        [NAN, NAN, NAN, NAN],
        [0.0, 0.0, 0.0, 0.0],
        [],
    ],
    ids=["spike", "only the failing step", "two spikes", "falling", "recovered", "too short", "nan", "zero", "empty"],
)
def test_a_spike_is_no_growth(series: list[float]) -> None:
    """One jump, a fall, a recovery or too few points prove no growth."""
    assert growth(enumerate(series)) is None


def test_a_fast_divergence_needs_only_three_points() -> None:
    """Two large rises in a row before the overflow are a divergence."""
    assert growth(enumerate([2.3, 1e5, 1e20, INF])) is not None


def test_growth_is_told_with_step_and_values() -> None:
    """The sentence has the factor, the first step and both ends."""
    recorded = history([0.4, 0.4, 0.4, 1.2, 3.6, 10.8, 32.4, INF])
    found = loss_growth(recorded)

    assert found is not None
    assert told("loss", found, recorded) == "loss grew 3x per step since step 2 (0.4 -> 32.4)"


def test_growth_that_began_before_the_ring_says_at_least() -> None:
    """Where older steps were evicted and the oldest one grows already, the beginning is not known."""
    recorded = history([10.0**i for i in range(8)], evicted=40)
    found = loss_growth(recorded)

    assert found is not None
    assert "since at least step 40" in told("loss", found, recorded)


def test_the_first_module_to_grow_is_named() -> None:
    """Of two modules that grow, the one that began earlier."""
    early = [event(step, value, "backbone") for step, value in enumerate([1.0, 10.0, 100.0, 1e3, 1e4, 1e5])]
    late = [event(step, value, "head") for step, value in enumerate([1.0, 1.0, 1.0, 10.0, 100.0, 1e3])]
    found = first_growing_module(history([1.0] * 6, events=[*late, *early]))

    assert found is not None
    assert found[0] == "backbone"


def test_a_loss_near_its_floor_does_not_grow() -> None:
    """A converged loss wanders over decades without diverging: it ends far below 1."""
    assert loss_growth(history([1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7])) is None


def test_a_recovery_is_no_growth() -> None:
    """What ends below what it has fallen from has come back, not diverged."""
    assert loss_growth(history([5000.0, 50.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0])) is None


def test_a_layer_that_began_at_zero_does_not_grow() -> None:
    """Outputs of a zero-initialised layer rise to about 1 in every healthy run."""
    events = [event(step, value, "lora") for step, value in enumerate([1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0])]

    assert first_growing_module(history([1.0] * 6, events=events)) is None
