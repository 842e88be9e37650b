"""What grows is told from what varies."""

from __future__ import annotations

import random

import pytest
from trends import FEWEST, Bound, Trend, trend

BOUND = Bound(per_hour=24.0, step=2.0)

HALF_AN_HOUR = [10.0 * look for look in range(1, 181)]
TEN_SECONDS = [1.0 * look for look in range(1, 11)]


def judged(times_s: list[float], *, per_hour: float, scatter: float, bound: Bound = BOUND) -> Trend:
    """A figure that grows so much, and varies by so much."""
    rng = random.Random(1)
    return trend(times_s, [100 + per_hour * at / 3600 + rng.gauss(0, scatter) for at in times_s], bound)


@pytest.mark.parametrize("scatter", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("times_s", [HALF_AN_HOUR, TEN_SECONDS], ids=["long", "short"])
def test_what_only_varies_is_flat(times_s: list[float], scatter: float) -> None:
    assert judged(times_s, per_hour=0.0, scatter=scatter).is_flat


def test_what_falls_is_flat() -> None:
    assert judged(HALF_AN_HOUR, per_hour=-500.0, scatter=1.0).is_flat


@pytest.mark.parametrize("scatter", [0.0, 0.5, 1.0])
def test_half_an_hour_shows_a_slow_leak(scatter: float) -> None:
    found = judged(HALF_AN_HOUR, per_hour=40.0, scatter=scatter)

    assert not found.is_flat
    assert found.per_hour == pytest.approx(40.0, abs=4 * found.error_per_hour + 1e-6)
    assert found.last > found.first


def test_ten_seconds_show_a_fast_leak_and_hide_a_slow_one() -> None:
    assert not judged(TEN_SECONDS, per_hour=3600.0, scatter=0.3).is_flat
    assert judged(TEN_SECONDS, per_hour=40.0, scatter=0.3).is_flat


def test_a_single_step_is_no_leak() -> None:
    values = [34.0 if at < 8 else 36.0 for at in TEN_SECONDS]

    assert trend(TEN_SECONDS, values, Bound(per_hour=2, step=2)).is_flat


def test_one_more_with_every_look_is_a_leak() -> None:
    values = [34.0 + at for at in TEN_SECONDS]

    assert not trend(TEN_SECONDS, values, Bound(per_hour=2, step=2)).is_flat


def test_what_fills_up_in_the_first_third_and_stays_is_flat() -> None:
    values = [min(at, 600.0) for at in HALF_AN_HOUR]

    assert trend(HALF_AN_HOUR, values, BOUND).is_flat


def test_too_few_looks_are_refused() -> None:
    times_s = [1.0 * look for look in range(FEWEST)]

    with pytest.raises(ValueError, match="too few for a line: measure longer, or look more often"):
        trend(times_s, times_s, BOUND)
