"""When a server is left alone, and how one request at a time finds out whether it is back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import BreakerPolicy
from orchestrator.supervision.breaker import Breaker

POLICY = BreakerPolicy(failures=3, open_s=1.0, cap_s=5.0)


def opened(policy: BreakerPolicy = POLICY, *, at: float = 0.0) -> Breaker:
    breaker = Breaker(policy)
    for _ in range(policy.failures):
        breaker.fail("APITimeout", at)
    return breaker


def test_it_opens_after_so_many_failures_in_a_row_and_not_before() -> None:
    breaker = Breaker(POLICY)
    for expected in (0.0, 0.0, 1.0):
        assert not breaker.fail("APITimeout", 10.0)
        assert breaker.wait_s(10.0) == expected
    assert (breaker.failures, breaker.last_error) == (3, "APITimeout")


def test_a_success_begins_the_count_anew() -> None:
    breaker = Breaker(POLICY)
    for _ in range(10):
        breaker.fail("APITimeout", 0.0)
        breaker.fail("APITimeout", 0.0)
        assert not breaker.succeed()
    assert not breaker.is_open


def test_after_the_pause_exactly_one_request_goes_and_the_others_wait_for_its_outcome() -> None:
    breaker = opened()
    assert breaker.wait_s(0.25) == 0.75
    assert breaker.wait_s(1.0) == 0.0
    assert breaker.enter() is not None
    assert breaker.wait_s(1.0) == breaker.wait_s(1e9) == math.inf


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = opened()
    breaker.enter()
    assert breaker.succeed()
    assert breaker.wait_s(1.0) == 0.0
    assert breaker.enter() is None


def test_each_probe_that_fails_doubles_the_pause_up_to_its_cap_and_fails_those_who_wait() -> None:
    breaker = opened()
    now, pauses = 0.0, []
    for _ in range(4):
        now += breaker.wait_s(now)
        assert breaker.fail("APIConnectionError", now, probe=breaker.enter())
        pauses.append(breaker.wait_s(now))
    assert pauses == [2.0, 4.0, 5.0, 5.0]


def test_a_pause_after_a_recovery_is_a_short_one_again() -> None:
    breaker = opened()
    breaker.fail("APITimeout", 1.0, probe=breaker.enter())
    breaker.succeed()
    for _ in range(3):
        breaker.fail("APITimeout", 5.0)
    assert breaker.wait_s(5.0) == 1.0


def test_the_failures_of_others_neither_lengthen_a_pause_nor_fail_those_who_wait() -> None:
    breaker = opened()
    assert not breaker.fail("APITimeout", 0.5)
    assert breaker.wait_s(0.5) == 0.5
    probe = breaker.enter()
    assert not breaker.fail("APITimeout", 1.0)
    assert breaker.wait_s(1.0) == math.inf
    assert breaker.fail("APITimeout", 1.0, probe=probe)


def test_any_answer_closes_it() -> None:
    breaker = opened()
    assert breaker.succeed()  # a cancel's, or a late one
    assert breaker.wait_s(0.0) == 0.0


def test_a_probe_that_is_given_up_is_handed_on() -> None:
    breaker = opened()
    first = breaker.enter()
    assert first is not None
    breaker.leave(first)
    assert breaker.wait_s(1.0) == 0.0
    second = breaker.enter()
    assert second != first
    breaker.leave(first)  # once more, and late
    assert not breaker.fail("APITimeout", 1.0, probe=first)
    assert breaker.wait_s(1.0) == math.inf


@pytest.mark.parametrize(
    "arguments", [{"failures": 0}, {"open_s": 0.0}, {"open_s": 2.0, "cap_s": 1.0}, {"cap_s": math.inf}]
)
def test_a_policy_that_makes_no_sense_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        BreakerPolicy(**arguments)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.sampled_from(["ask", "fail", "succeed", "leave", "wait"]), st.floats(0, 3))))
def test_there_is_one_probe_at_most_and_no_pause_beyond_the_cap(steps: list[tuple[str, float]]) -> None:
    breaker, now, probe = Breaker(POLICY), 0.0, None
    for step, seconds in steps:
        wait = breaker.wait_s(now)
        assert wait == math.inf or 0 <= wait <= POLICY.cap_s
        # An infinite wait always has a probe that will end it.
        assert (wait == math.inf) is (probe is not None)
        match step:
            case "ask" if wait == 0:
                probe = breaker.enter()
                assert (probe is not None) is breaker.is_open
            case "fail":
                assert breaker.fail("APITimeout", now, probe=probe) is (probe is not None)
                probe = None
            case "succeed":
                breaker.succeed()
                probe = None
            case "leave" if probe is not None:
                breaker.leave(probe)
                probe = None
            case "wait":
                now += seconds
