"""Where a series of magnitudes is going: only what rises without end leaves the range."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from nantrace.model.trend import Trend, falls, leaving_range

FLOAT32 = 3.4028234663852886e38
FLOAT16 = 65504.0


def first_trend(value: Callable[[int], float], limit: float, steps: int = 400) -> tuple[int, Trend] | None:
    """The first trend that is seen while the series goes on, fifty steps at a time, and at which step."""
    for now in range(steps):
        seen = [(step, value(step)) for step in range(max(0, now - 49), now + 1)]
        if not seen[-1][1] < limit:
            return None
        found = leaving_range(seen, limit)
        if found is not None:
            return now, found
    return None


def noisy(value: Callable[[int], float], bits: float, seed: int) -> Callable[[int], float]:
    """The series with a log-normal factor on each value, always the same one."""
    factors = [2 ** random.Random(1000 * seed + step).gauss(0, bits) for step in range(2000)]
    return lambda step: value(step) * factors[step]


@pytest.mark.parametrize("factor", [1.15, 1.5, 3.0, 10.0, 1000.0])
def test_a_geometric_series_is_forecast_exactly(factor: float) -> None:
    """Rate and end of an exponential are those of the series, and the end is in sight long before."""
    found = first_trend(lambda step: 3.0 * factor**step, FLOAT32, steps=800)
    end = math.ceil(math.log(FLOAT32 / 3.0, factor))

    assert found is not None
    now, trend = found
    assert trend.factor == pytest.approx(factor, rel=1e-6)
    assert trend.value == pytest.approx(3.0 * factor**now)
    assert abs(now + trend.steps_left - end) <= 1
    assert trend.steps_left >= 0.4 * end or factor < 1.3


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_the_estimate_a_little(seed: int) -> None:
    """Half a bit of noise around a growth of 1.3x per step."""
    found = first_trend(noisy(lambda step: 1.3**step, 0.5, seed), FLOAT32)

    assert found is not None
    now, trend = found
    assert now + trend.steps_left == pytest.approx(math.log(FLOAT32, 1.3), rel=0.25)


def test_a_series_that_grows_ever_faster() -> None:
    """A double exponential ends sooner than the present rate says, and is seen before."""
    found = first_trend(lambda step: 2.0 ** (1.25**step), FLOAT32)

    assert found is not None
    now, trend = found
    end = math.log(128, 1.25)
    assert 2 <= end - now <= trend.steps_left


def test_half_precision_has_its_own_end() -> None:
    """A growth of 1.1x per step leaves float16 and is nothing to float32."""
    found = first_trend(lambda step: 1.1**step, FLOAT16)

    assert found is not None
    assert found[0] + found[1].steps_left == pytest.approx(math.log(FLOAT16, 1.1), abs=2)
    assert first_trend(lambda step: 1.1**step, FLOAT32, steps=120) is None


STAYS: dict[str, Callable[[int], float]] = {
    "flat": lambda step: 3e4,
    "falling": lambda step: 6e4 * 0.9**step,
    "zero": lambda step: 0.0,
    "saturating": lambda step: 5e4 * (1 - math.exp(-(step + 1) / 15)),
    "saturating late": lambda step: 2e4 * 2 ** (-12 * math.exp(-step / 40)),
    "one jump": lambda step: 10.0 if step < 60 else 4e4,
    "steps of a schedule": lambda step: 1000.0 * 2.0 ** (step // 80),
    "linear": lambda step: 100.0 * step + 1,
    "a single outlier": lambda step: 5e4 if step == 70 else 30.0,
    "up and down": lambda step: 3e3 * 2 ** math.sin(step / 9),
    "warm-up": lambda step: 1.07 ** min(step, 100),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays_in_range_is_left_alone(name: str) -> None:
    """Flat, falling, flattening, jumping and wavering series, seen at every step of theirs."""
    assert first_trend(STAYS[name], FLOAT16) is None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("bits", [0.1, 0.5, 1.0])
def test_noise_near_the_end_is_no_trend(bits: float, seed: int) -> None:
    """A level with noise on it that comes near the end of the range, over 400 steps."""
    peak = 2 ** (3.5 * bits)

    assert first_trend(noisy(lambda step: FLOAT16 / peak, bits, seed), FLOAT16) is None


def test_growth_among_healthy_values_is_not_judged() -> None:
    """From 1e-3 to 1e5 in twenty steps: the start of many a training."""
    assert first_trend(lambda step: 1e-3 * min(2.5**step, 1e8), FLOAT32) is None


@pytest.mark.parametrize("last", [math.inf, math.nan, 0.0, 2 * FLOAT16])
def test_what_has_left_the_range_is_no_forecast(last: float) -> None:
    """The newest value must be within the range."""
    rise = [(step, 2.0**step) for step in range(15)]

    assert leaving_range(rise, FLOAT16) is not None
    assert leaving_range([*rise, (15, last)], FLOAT16) is None


def test_steps_without_a_value_count_as_steps() -> None:
    """A module that is called in every fourth step grows by the step, not by the call."""
    found = leaving_range([(4 * call, 2.0**call if call % 3 else 0.0) for call in range(14)], FLOAT16)

    assert found is not None
    assert found.factor == pytest.approx(2**0.25, rel=1e-6)


def test_too_few_points_are_no_trend() -> None:
    """Four points are none, and neither is nothing."""
    assert leaving_range([(step, 8.0**step) for step in range(1, 5)], FLOAT16) is None
    assert leaving_range([], FLOAT16) is None


def test_a_loss_that_falls() -> None:
    """The newest fifth is compared with the first one since that step; one point says nothing."""
    loss = [(step, 10.0 * 0.95**step) for step in range(20)] + [(step, 4.0) for step in range(20, 40)]

    assert falls(loss, since=0)
    assert not falls(loss, since=20)
    assert not falls(loss, since=39)


def test_steps_without_a_loss_say_nothing_of_it() -> None:
    """A step that had no loss (NaN in the series) is neither high nor low."""
    loss = [(step, 3.0 if step % 2 else math.nan) for step in range(40)]

    assert not falls(loss, since=0)
    assert falls([*loss, *((step, 1.0) for step in range(40, 60))], since=0)
