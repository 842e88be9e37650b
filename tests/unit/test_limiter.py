"""How fast a server is asked, by the clock of the test."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import ServerLimits
from orchestrator.supervision.limiter import WAIT_CAP_S, Limiter, Urgency, reset_s

CANCEL, FINISH, CREATE, LOOK, POLL, ASIDE = Urgency

UNIX_NOW = 784111777.0
"""Sun, 06 Nov 1994 08:49:37 GMT"""


def limiter(polls_per_s: float = 200.0) -> Limiter:
    return Limiter(polls_per_s, unix_time=lambda: UNIX_NOW)


def left(
    remaining: float, *, limit: float = 1000, reset: str = "10s", unit: str = "requests"
) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{unit}": str(limit),
        f"x-ratelimit-remaining-{unit}": str(remaining),
        f"x-ratelimit-reset-{unit}": reset,
    }


def went(limiter: Limiter, urgency: Urgency, *, begin: float, end: float, most: int = 10_000) -> list[float]:
    """When requests go that are asked for as soon as they may be."""
    now, times = begin, list[float]()
    while now < end and len(times) < most:
        wait = limiter.reserve(urgency, now)
        if wait == 0:
            times.append(now)
        now += wait
    return times


def test_nothing_waits_where_a_server_says_nothing() -> None:
    mine = limiter()
    for urgency in (CANCEL, FINISH, CREATE):
        assert len(went(mine, urgency, begin=0.0, end=1e-6, most=500)) == 500


def test_polls_share_a_budget_with_a_burst_of_a_tenth_of_a_second() -> None:
    times = went(limiter(200), POLL, begin=5.0, end=7.0)
    assert times[19] == 5.0 < times[20]
    assert 415 <= len(times) <= 421


def test_polls_of_a_budget_below_one_a_second_go_one_by_one() -> None:
    assert went(limiter(0.5), POLL, begin=0.0, end=7.0) == pytest.approx([0.0, 2.0, 4.0, 6.0])


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:47 GMT"}, 10.0),
        ({"retry-after": "86400"}, WAIT_CAP_S),
    ],
)
def test_a_refusal_with_a_hint_holds_back_all_but_cancels_for_that_long(
    headers: dict[str, str], wait: float
) -> None:
    mine = limiter()
    mine.learn(429, headers, 1.0)
    assert mine.reserve(CANCEL, 1.0) == 0.0
    for urgency in (FINISH, CREATE, POLL):
        assert mine.reserve(urgency, 1.0) == pytest.approx(wait)
    assert mine.reserve(FINISH, 1.0 + wait) == 0.0


def test_a_shorter_hint_does_not_shorten_a_longer_one() -> None:
    mine = limiter()
    mine.learn(429, {"retry-after": "9"}, 0.0)
    mine.learn(429, {"retry-after": "1"}, 0.0)
    assert mine.reserve(FINISH, 2.0) == 7.0


def test_where_nothing_is_left_all_but_cancels_wait_for_the_reset() -> None:
    mine = limiter()
    mine.learn(200, left(0, reset="1m0s"), 0.0)
    assert mine.reserve(CANCEL, 0.0) == 0.0
    assert {mine.reserve(urgency, 20.0) for urgency in (FINISH, CREATE, POLL, ASIDE)} == {40.0}
    assert {mine.reserve(urgency, 60.0) for urgency in (FINISH, CREATE, POLL, ASIDE)} == {0.0}


def test_above_half_of_a_limit_nothing_is_slowed() -> None:
    mine = limiter()
    mine.learn(200, left(1000), 0.0)
    assert len(went(mine, POLL, begin=0.0, end=1.0)) > 200
    assert len(went(mine, CREATE, begin=0.0, end=1e-6, most=250)) == 250


@pytest.mark.parametrize("polls", [LOOK, POLL, ASIDE], ids=lambda urgency: urgency.name)
def test_below_half_of_a_limit_polls_share_what_is_left_above_a_tenth(polls: Urgency) -> None:
    mine = limiter()
    mine.learn(200, left(400), 0.0)
    assert 290 <= len(went(mine, polls, begin=0.0, end=9.99)) <= 310
    # The tenth that was kept for the others.
    assert len(went(mine, FINISH, begin=9.99, end=9.991, most=90)) == 90


def test_below_a_tenth_creates_share_what_is_left_above_a_fiftieth_and_polls_but_trickle() -> None:
    mine = limiter()
    mine.learn(200, left(80), 0.0)
    assert len(went(mine, POLL, begin=0.0, end=9.99)) <= 3
    mine.learn(200, left(80), 0.0)
    assert 50 <= len(went(mine, CREATE, begin=0.0, end=9.99)) <= 62
    assert len(went(mine, FINISH, begin=9.99, end=9.991, most=90)) == 90


def test_polls_are_slowed_before_creates_and_creates_before_what_finishes_a_run() -> None:
    def slowed_at(urgency: Urgency) -> int:
        for remaining in range(1000, 0, -5):
            mine = limiter()
            mine.learn(200, left(remaining, reset="100s"), 0.0)
            if len(went(mine, urgency, begin=0.0, end=1.0, most=5)) < 5:
                return remaining
        return 0

    assert slowed_at(POLL) > slowed_at(CREATE) > slowed_at(FINISH) == 0


def test_tokens_count_by_what_requests_were_seen_to_take() -> None:
    mine = limiter()
    told = 40_000
    for turn in range(60):
        assert mine.reserve(CREATE, turn * 0.01) == 0.0
        told -= 500
        mine.learn(200, left(told, limit=100_000, reset="100s", unit="tokens"), turn * 0.01)
    # 7,500 tokens above the fiftieth that is kept.
    mine.learn(200, left(told - 500, limit=100_000, reset="10s", unit="tokens"), 1.0)
    assert 14 <= len(went(mine, CREATE, begin=1.0, end=10.9)) <= 16


def test_a_limit_that_was_reset_slows_nothing_any_more() -> None:
    mine = limiter()
    mine.learn(200, left(30, reset="2s"), 0.0)
    assert went(mine, POLL, begin=0.0, end=2.0) == [0.0]
    assert len(went(mine, POLL, begin=2.0, end=3.0)) > 200


def test_refusals_without_a_hint_slow_polls_first_and_then_creates_and_never_what_finishes() -> None:
    mine = limiter()
    went(mine, POLL, begin=0.0, end=10.0)
    mine.learn(429, {}, 10.0)
    assert 80 <= len(went(mine, POLL, begin=10.0, end=11.0)) <= 120
    creates = [
        when for turn in range(500) for when in went(mine, CREATE, begin=11 + turn / 50, end=21, most=1)
    ]
    assert len(creates) == 500
    mine.learn(429, {}, 21.0)
    assert 20 <= len(went(mine, CREATE, begin=21.0, end=22.0)) <= 30
    assert len(went(mine, FINISH, begin=21.0, end=21.001, most=500)) == 500


def test_refusals_of_creates_slow_creates_where_nothing_is_polled() -> None:
    mine = limiter()
    for begin in range(10):
        went(mine, CREATE, begin=begin, end=begin + 1, most=20)
    mine.learn(429, {}, 10.0)
    assert len(went(mine, CREATE, begin=10.0, end=11.0)) <= 20


def test_refusals_that_come_together_slow_down_once() -> None:
    once, often = limiter(), limiter()
    for mine, refusals in ((once, 1), (often, 50)):
        went(mine, POLL, begin=0.0, end=10.0)
        for turn in range(refusals):
            mine.learn(429, {}, 10.0 + turn / 100)
    counts = [len(went(mine, POLL, begin=11.0, end=13.0)) for mine in (once, often)]
    assert counts[0] == counts[1]


def test_a_slowed_fleet_recovers_with_answers_within_some_twenty_seconds() -> None:
    mine = limiter()
    went(mine, POLL, begin=0.0, end=1.0)
    for turn in range(12):
        mine.learn(429, {}, 1.0 + turn)
    slow = len(went(mine, POLL, begin=13.0, end=18.0))
    assert 1 <= slow <= 10
    counts = []
    for second in range(18, 42):
        for tenth in range(10):
            mine.learn(200, {}, second + tenth / 10)
        counts.append(len(went(mine, POLL, begin=second, end=second + 1)))
    assert counts[0] < counts[5] < counts[10] < counts[-1]
    assert counts[-1] >= 195


def test_without_answers_a_slowed_fleet_stays_slow() -> None:
    mine = limiter(10)
    went(mine, POLL, begin=0.0, end=5.0)
    mine.learn(429, {}, 5.0)
    mine.learn(503, {}, 500.0)
    assert len(went(mine, POLL, begin=500.0, end=502.0)) <= 12


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("1h2m3s", 3723.0),
        ("1.5s", 1.5),
        ("12", 12.0),
        ("0.25", 0.25),
        ("-3", 0.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("5x", None),
        ("s", None),
        ("1s later", None),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("9" * 400 + "s", None),
        ("²s", None),
    ],
)
def test_a_reset_is_read_in_every_spelling_and_anything_else_is_ignored(
    text: str | None, seconds: float | None
) -> None:
    assert reset_s(text) == seconds


@pytest.mark.parametrize("missing", ["limit", "reset"])
@pytest.mark.parametrize("instead", [None, "", "garbage", "nan"])
def test_a_limit_that_is_only_half_understood_slows_nothing(missing: str, instead: str | None) -> None:
    headers = left(0)
    if instead is None:
        del headers[f"x-ratelimit-{missing}-requests"]
    else:
        headers[f"x-ratelimit-{missing}-requests"] = instead
    mine = limiter()
    mine.learn(200, headers, 0.0)
    assert mine.reserve(FINISH, 0.0) == 0.0


@pytest.mark.parametrize("polls_per_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_budget_that_makes_no_sense_is_refused(polls_per_s: float) -> None:
    with pytest.raises(ValueError, match="polls_per_s must be a positive number"):
        ServerLimits(polls_per_s=polls_per_s)


NUMBERS = st.one_of(
    st.integers(-5, 10_000).map(str),
    st.floats().map(str),
    st.text(max_size=5),
    st.sampled_from(["6m0s", "20ms"]),
)
HEADERS = st.dictionaries(
    st.sampled_from([*left(1), *left(1, unit="tokens"), "retry-after", "retry-after-ms"]), NUMBERS
)
STEPS = st.lists(
    st.tuples(
        st.floats(0, 30), st.sampled_from([200, 404, 429, 503]), HEADERS, st.sampled_from(list(Urgency))
    ),
    max_size=40,
)


@given(STEPS, st.floats(0.01, 1000))
def test_whatever_a_server_says_a_wait_is_finite_and_bounded_and_cancels_have_none(
    steps: list[tuple[float, int, dict[str, str], Urgency]], polls_per_s: float
) -> None:
    mine, now = limiter(polls_per_s), 0.0
    for pause, status, headers, urgency in steps:
        now += pause
        mine.learn(status, headers, now)
        wait = mine.reserve(urgency, now)
        assert 0 <= wait <= WAIT_CAP_S
        assert mine.reserve(CANCEL, now) == 0.0


@given(STEPS)
def test_whatever_a_server_says_its_word_is_forgotten_after_the_cap(
    steps: list[tuple[float, int, dict[str, str], Urgency]],
) -> None:
    mine, now = limiter(), 0.0
    for pause, status, headers, _ in steps:
        now += pause
        mine.learn(status, headers, now)
    assert {mine.reserve(urgency, now + WAIT_CAP_S + 1) for urgency in (FINISH, CREATE, POLL)} == {0.0}


@given(STEPS, st.floats(0.5, 500))
def test_polls_never_come_faster_than_the_budget_over_any_time_but_for_the_burst(
    steps: list[tuple[float, int, dict[str, str], Urgency]], polls_per_s: float
) -> None:
    mine, now, times = limiter(polls_per_s), 0.0, list[float]()
    for pause, status, headers, _ in steps:
        mine.learn(status, headers, now)
        times += went(mine, POLL, begin=now, end=now + min(pause, 1.0), most=100)
        now += pause
    burst = max(1.0, polls_per_s / 10)
    for (first, begin), (last, end) in itertools.combinations(enumerate(times[:150]), 2):
        assert last - first + 1 <= polls_per_s * (end - begin) + burst + 1e-3


@given(st.floats(0, 1000), st.floats(1, 100))
def test_what_is_left_of_a_limit_never_slows_the_more_urgent_more(remaining: float, seconds: float) -> None:
    counts = []
    for urgency in (FINISH, CREATE, POLL):
        mine = limiter()
        mine.learn(200, left(remaining, reset=f"{seconds:.3f}s"), 0.0)
        counts.append(len(went(mine, urgency, begin=0.0, end=5.0, most=100)))
    assert counts == sorted(counts, reverse=True)


def test_urgent_looks_and_polls_share_one_budget() -> None:
    limiter = Limiter(10.0, unix_time=lambda: 0.0)
    assert limiter.reserve(LOOK, 0.0) == 0
    assert limiter.reserve(POLL, 0.0) == pytest.approx(0.1)
    assert limiter.reserve(POLL, 0.1) == 0
    assert limiter.reserve(LOOK, 0.1) == pytest.approx(0.1)
