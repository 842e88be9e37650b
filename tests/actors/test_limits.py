"""What all runs that ask one server with one key share: how fast they ask, and when they leave it alone."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from front import Front, fronting
from stage import PATIENCE_S, QUICK, Gate, Stage, assert_nothing_left, staged, wait_until

from orchestrator import BreakerPolicy, Orchestrator, RunHandle, ServerLimits, Timing
from orchestrator.client import RetryPolicy
from orchestrator.errors import APIConnectionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.supervision.breaker import Breaker

RULES: list[dict[str, Any]] = [
    {"match": "^fetch", "steps": [{"call": {"tool": "fetch"}}, {"say": "got {fetch}"}]},
    {
        "match": "^twice",
        "steps": [{"call": {"tool": "fetch"}}, {"call": {"tool": "other"}}, {"say": "{fetch} and {other}"}],
    },
    {"match": "^soon", "steps": [{"think_s": 0.5}, {"say": "at last"}]},
    {"match": "^dawdle", "steps": [{"think_s": 60}, {"say": "at last"}]},
]

FOR_LONG = ServerLimits(breaker=BreakerPolicy(failures=3, open_s=PATIENCE_S, cap_s=PATIENCE_S))
"""A breaker that no test waits for."""


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged(RULES) as stage:
        yield stage
        assert_nothing_left(stage.server.base_url, ours=1)


@pytest.fixture
def front(stage: Stage) -> Iterator[Front]:
    with fronting(stage.server.base_url) as front:
        yield front


def through(front: Front, stage: Stage, **options: Any) -> Orchestrator:
    settings: dict[str, Any] = {"timing": QUICK, "api_key": stage.server.api_key}
    return Orchestrator(base_url=front.base_url, **(settings | options))


def breaker_of(orchestrator: Orchestrator) -> Breaker:
    fleet = orchestrator._roster._fleet
    assert fleet is not None
    return fleet.gates.of(orchestrator._client.account)._breaker


def cancelled(orchestrator: Orchestrator, runs: list[RunHandle]) -> bool:
    """Whether runs that go on until they are cancelled end so: one that had given up would say it."""
    orchestrator.cancel_all()
    return {run.result(timeout=PATIENCE_S).status for run in runs} == {"cancelled"}


def on_loop(orchestrator: Orchestrator, what: Callable[..., object], *args: object) -> None:
    fleet = orchestrator._roster._fleet
    assert fleet is not None

    async def calling() -> None:
        what(*args)

    asyncio.run_coroutine_threadsafe(calling(), fleet.loop_thread.loop).result(PATIENCE_S)


def test_runs_outlast_an_outage_of_several_pauses_that_their_attempts_alone_would_not(
    stage: Stage, front: Front
) -> None:
    gate = Gate()
    impatient = Timing(
        retry=RetryPolicy(attempts=6, base_s=0.01, cap_s=0.01), poll_min_s=0.02, poll_max_s=0.1
    )
    limits = ServerLimits(breaker=BreakerPolicy(failures=5, open_s=0.1, cap_s=0.4))
    with through(front, stage, tools=[gate.fetch], timing=impatient, limits=limits) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="fetch") for _ in range(25)]
        for _ in runs:
            gate.wait_until_reached()
        polled = [orchestrator.start(stage.assistant, messages="dawdle", watch="poll") for _ in range(5)]
        wait_until(lambda: all(run.status == "in_progress" for run in polled))
        front.vanish()
        gate.open.set()
        breaker = breaker_of(orchestrator)
        wait_until(lambda: breaker.pause_s == 0.4)
        front.appear()
        texts = [run.result(timeout=PATIENCE_S).raise_for_status().text for run in runs]
        assert texts == ["got it"] * 25
        assert gate.calls == 25
        assert not breaker.is_open
        assert cancelled(orchestrator, polled)


def test_a_server_that_fails_is_asked_once_in_each_pause_whatever_the_number_of_runs(
    stage: Stage, front: Front
) -> None:
    limits = ServerLimits(breaker=BreakerPolicy(failures=3, open_s=0.1, cap_s=0.8))
    with through(front, stage, watch="poll", limits=limits) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="dawdle") for _ in range(20)]
        wait_until(lambda: all(run.status == "in_progress" for run in runs))
        breaker = breaker_of(orchestrator)
        front.answer(503)
        wait_until(lambda: breaker.is_open)
        under_way = len(runs)
        wait_until(lambda: breaker.pause_s == 0.8)
        # One probe ends the pauses of 0.1, 0.2 and 0.4 seconds each.
        assert len(front.refused) <= under_way + 3
        front.mend()
        wait_until(lambda: not breaker.is_open)
        assert cancelled(orchestrator, runs)


def test_where_nobody_listens_a_create_fails_in_the_end_and_the_error_says_why(
    stage: Stage, front: Front
) -> None:
    front.vanish()
    limits = ServerLimits(breaker=BreakerPolicy(failures=2, open_s=0.05, cap_s=0.1))
    with through(front, stage, api_key="sk-secret", limits=limits) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="soon") for _ in range(10)]
        texts: list[str] = []
        for run in runs:
            with pytest.raises(APIConnectionError) as failed:
                run.result(timeout=PATIENCE_S)
            assert not failed.value.sent
            assert "sk-secret" not in str(failed.value)
            texts.append(str(failed.value))
        # Those whose last attempt was the probe say what that met.
        held = [text for text in texts if f"the circuit breaker of {front.base_url} is open after " in text]
        assert held
        assert all("failures in a row, the last of them APIConnectionError" in text for text in held)


def test_a_cancel_passes_an_open_breaker_and_closes_it(stage: Stage, front: Front) -> None:
    with through(front, stage, watch="poll", limits=FOR_LONG) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="dawdle")
        wait_until(lambda: run.status == "in_progress")
        front.answer(503, until="/cancel")
        wait_until(lambda: run.snapshot().waits_detail.startswith("the server, which did not answer"))
        assert breaker_of(orchestrator).is_open
        run.cancel()
        assert run.result(timeout=PATIENCE_S / 2).status == "cancelled"
        assert not breaker_of(orchestrator).is_open


def held_by_the_breaker(orchestrator: Orchestrator, stage: Stage, front: Front, **options: Any) -> RunHandle:
    """A run whose first request waits at the gate, behind one of another run that met the failing server."""
    front.answer(503)
    first = orchestrator.start(stage.assistant, messages="dawdle")
    wait_until(lambda: first.snapshot().waits_detail.startswith("the server, which did not answer"))
    run = orchestrator.start(stage.assistant, messages="dawdle", **options)
    wait_until(lambda: run.snapshot().waits_detail.startswith("the server, which did not answer"))
    return run


def test_cancelling_a_run_whose_create_waits_at_the_gate_sends_nothing(stage: Stage, front: Front) -> None:
    thread = stage.thread()
    with through(front, stage, limits=FOR_LONG) as orchestrator:
        run = held_by_the_breaker(orchestrator, stage, front, thread_id=thread)
        run.cancel()
        result = run.result(timeout=PATIENCE_S / 2)
        assert (result.status, result.run_id) == ("cancelled", None)
        assert breaker_of(orchestrator).is_open
        assert not any(thread in asked for _, asked in front.refused)
        orchestrator.cancel_all()
    assert stage.requests(thread) == []


def test_cancelling_a_run_whose_thread_is_still_to_be_made_leaves_the_gate_at_once(
    stage: Stage, front: Front
) -> None:
    with through(front, stage, limits=FOR_LONG) as orchestrator:
        run = held_by_the_breaker(orchestrator, stage, front)
        made = len(front.refused)
        run.cancel()
        result = run.result(timeout=PATIENCE_S / 2)
        assert (result.status, result.run_id) == ("cancelled", None)
        assert len(front.refused) == made
        orchestrator.cancel_all()


def test_what_one_run_is_told_by_a_refusal_holds_for_all(stage: Stage, front: Front) -> None:
    front.answer(429, {"retry-after-ms": "3000"}, most=1)
    with through(front, stage) as orchestrator:
        first = orchestrator.start(stage.assistant, messages="soon")
        wait_until(lambda: first.snapshot().waits_for in ("backoff", "limiter"))
        before = len(stage.server.requests)
        others = [orchestrator.start(stage.assistant, messages="soon") for _ in range(3)]
        wait_until(lambda: all(run.snapshot().waits_for == "limiter" for run in others))
        wait_until(lambda: len(stage.server.requests) > before)
        assert time.monotonic() - front.refused[0][0] >= 3.0
        for run in (first, *others):
            assert run.result(timeout=PATIENCE_S).text == "at last"


def test_where_nothing_is_left_of_a_limit_everything_but_a_cancel_waits(stage: Stage, front: Front) -> None:
    with through(front, stage, watch="poll") as orchestrator:
        run = orchestrator.start(stage.assistant, messages="dawdle")
        wait_until(lambda: run.status == "in_progress")
        limit = {f"x-ratelimit-{part}-requests": "100" for part in ("limit", "reset")}
        front.answer(503, limit | {"x-ratelimit-remaining-requests": "0"}, most=1)
        wait_until(lambda: run.snapshot().waits_for == "limiter")
        before = len(stage.server.requests)
        other = orchestrator.start(stage.assistant, messages="dawdle")
        wait_until(lambda: other.snapshot().waits_for == "limiter")
        run.cancel()
        wait_until(lambda: len(stage.server.requests) > before)
        assert [path.rpartition("/")[2] for _, path in stage.server.requests[before:]] == ["cancel"]
        other.cancel()
        assert other.result(timeout=PATIENCE_S / 2).run_id is None
        assert orchestrator.close(timeout_s=0.0) == [run]


def test_polls_of_all_runs_together_keep_to_the_budget(stage: Stage, front: Front) -> None:
    timing = Timing(poll_min_s=0.01, poll_max_s=0.01)
    with through(
        front, stage, watch="poll", timing=timing, limits=ServerLimits(polls_per_s=20)
    ) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="dawdle") for _ in range(10)]
        wait_until(lambda: all(run.status == "in_progress" for run in runs))
        wait_until(lambda: any(run.snapshot().waits_for == "limiter" for run in runs))

        def polls() -> int:
            return sum(method == "GET" for method, _ in list(stage.server.requests))

        begun, before = time.monotonic(), polls()
        wait_until(lambda: polls() >= before + 20)
        seen, took_s = polls() - before, time.monotonic() - begun
        # A burst of two, and those that were under way when the counting began.
        assert seen <= 20 * took_s + 2 + 10
        assert took_s >= 0.4
        orchestrator.cancel_all()


def test_a_run_knows_the_last_request_of_its_own_that_was_answered(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="soon") for _ in range(2)]
        for run in runs:
            run.result(timeout=PATIENCE_S)
        ids = {run._state.last_request_id for run in runs}
        assert None not in ids
        assert len(ids) == 2


@pytest.mark.parametrize("text", ["soon", "twice"])
def test_runs_one_after_another_share_a_few_connections_however_many_there_are(
    stage: Stage, front: Front, text: str
) -> None:
    def fetch() -> str:
        return "one"

    def other() -> str:
        return "two"

    with through(front, stage, tools=[fetch, other]) as orchestrator:
        for _ in range(8):
            result = orchestrator.start(stage.assistant, messages=text).result(timeout=PATIENCE_S)
            assert result.text in ("at last", "one and two")
        # Two at most at once: a stream that ends, and what comes next. One more for good measure.
        assert front.accepted <= 3
