"""A lost answer is looked for: what is there is returned, what is not is made once, doubt is said."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from drivers import both, driven
from faulty_server import PATIENCE_S, FaultyServer
from ledger_server import FAULTS, PLAN, Ledger, Plan

from orchestrator.client import RetryPolicy
from orchestrator.errors import AmbiguousOutcome, BadRequestError, InternalServerError, RateLimitError
from orchestrator.protocol.events import RunEvent
from orchestrator.protocol.objects import ToolOutput
from orchestrator.telemetry.logs import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivers import Driver

T = "thread_1"
RUN = "run_1"
LOST = [fault for fault in FAULTS if not fault.startswith("refused")]
DONE_AND_LOST = [fault for fault in LOST if fault.endswith("after") or fault in ("cut answer", "garbage")]
NOT_DONE = [fault for fault in LOST if fault.endswith("before")]


@contextmanager
def stage(
    kind: str, *faults: str, max_connections: int = 1000, **plan: Any
) -> Iterator[tuple[Driver, Ledger]]:
    ledger = Ledger()
    ledger.plan(T, Plan(deque(faults), **plan), tool_run="rounds" in plan)
    timeout = 0.6 if any(fault.startswith("stall") for fault in faults) else PATIENCE_S
    with (
        FaultyServer(default=ledger.step) as server,
        driven(
            kind, server.url, timeout=timeout, headers={PLAN: T}, max_connections=max_connections
        ) as driver,
    ):
        yield driver, ledger
        ledger.settle(T)


def create_run(driver: Driver, nonce: str = "n1", **more: Any) -> Any:
    return driver.call("create_run", T, assistant_id="asst_1", nonce=nonce, **more)


def create_message(driver: Driver, nonce: str = "n1") -> Any:
    return driver.call("create_message", T, role="user", content="hi", nonce=nonce)


def stream_run(driver: Driver, nonce: str = "n1") -> Any:
    first = driver.stream("stream_run", T, assistant_id="asst_1", nonce=nonce)[0]
    assert isinstance(first, RunEvent)
    return first.data


makers = pytest.mark.parametrize("make", [create_run, create_message, stream_run])


@both
@makers
@pytest.mark.parametrize("fault", DONE_AND_LOST)
def test_what_was_created_before_its_answer_was_lost_is_found(kind: str, make: Any, fault: str) -> None:
    with stage(kind, fault) as (driver, ledger):
        made = make(driver)
    assert ledger.marked(T, "n1") == [made.id]
    assert ledger.requests[T] == [f"POST {fault}", "GET none"]


@both
@makers
@pytest.mark.parametrize("fault", NOT_DONE)
def test_what_two_looks_do_not_show_is_created_once(kind: str, make: Any, fault: str) -> None:
    with stage(kind, "none", fault) as (driver, ledger):
        make(driver, "n0")
        driver.slept.clear()
        made = make(driver)
    assert ledger.marked(T, "n1") == [made.id]
    assert ledger.requests[T] == [
        "POST none",
        f"POST {fault}",
        "GET none",
        "GET none",
        "POST none",
        "GET none",
    ]
    assert driver.slept == [2.0]


@both
@makers
def test_absence_proves_nothing_where_metadata_was_never_seen(kind: str, make: Any) -> None:
    with (
        stage(kind, "hang up before", metadata=False) as (driver, ledger),
        pytest.raises(AmbiguousOutcome, match="metadata") as caught,
    ):
        make(driver)
    assert ledger.requests[T] == ["POST hang up before", "GET none", "GET none"]
    assert (caught.value.thread_id, caught.value.nonce) == (T, "n1")


@both
@makers
def test_absence_from_a_page_that_does_not_show_the_newest_proves_nothing(kind: str, make: Any) -> None:
    with stage(kind, "none", "hang up after") as (driver, ledger):
        ledger.lists_oldest_only = True
        make(driver, "n0")
        with pytest.raises(AmbiguousOutcome, match="newest"):
            make(driver)
    assert len(ledger.marked(T, "n1")) == 1


@both
@makers
def test_a_client_that_is_closed_meanwhile_leaves_the_outcome_open(kind: str, make: Any) -> None:
    with stage(kind, "none", "hang up before") as (driver, _):
        make(driver, "n0")
        client = driver.client
        client._sleep = lambda _: client.close() if kind == "sync" else client.aclose()
        with pytest.raises(AmbiguousOutcome, match="the client is closed") as caught:
            make(driver)
    assert (caught.value.thread_id, caught.value.nonce) == (T, "n1")


@both
def test_metadata_of_others_on_the_thread_shows_that_the_server_keeps_it(kind: str) -> None:
    with stage(kind, "none", "hang up before") as (driver, ledger):
        create_message(driver, "other")
        driver.client._echoing.clear()
        assert create_message(driver).id in ledger.marked(T, "n1")


@both
@makers
def test_a_repeated_create_that_is_lost_too_is_looked_for_as_well(kind: str, make: Any) -> None:
    faults = ["none", "reset before", "none", "none", "stall before", "none", "none", "cut answer"]
    with stage(kind, *faults) as (driver, ledger):
        make(driver, "n0")
        made = make(driver)
    assert ledger.marked(T, "n1") == [made.id]


@both
@makers
def test_attempts_bound_how_often_a_create_is_sent(kind: str, make: Any) -> None:
    lost = ["hang up before", "none", "none"]
    with stage(kind, "none", *lost * 4) as (driver, ledger):
        make(driver, "n0")
        with pytest.raises(AmbiguousOutcome, match="no further attempt"):
            make(driver)
    assert sum(request.startswith("POST") for request in ledger.requests[T]) == 1 + 4


@both
def test_what_is_known_does_not_wait_for_a_list_that_fails(kind: str) -> None:
    faults = ["none", "hang up before", "none", "none", "none", "503 in three seconds"]
    with stage(kind, *faults) as (driver, _):
        create_run(driver, "n0")
        create_run(driver)
        assert driver.slept == [2.0]


@both
def test_a_deadline_too_near_for_a_second_look_says_so(kind: str) -> None:
    policy = RetryPolicy(deadline_s=1.0, settle_s=2.0)
    with (
        stage(kind, "hang up before") as (driver, ledger),
        pytest.raises(AmbiguousOutcome, match="deadline"),
    ):
        create_run(driver, retry=policy)
    assert ledger.requests[T] == ["POST hang up before", "GET none"]


@both
def test_a_server_that_wants_no_repetition_gets_none(kind: str) -> None:
    with stage(kind, "none", "503 not again") as (driver, ledger):
        create_run(driver, "n0")
        with pytest.raises(AmbiguousOutcome, match="no further attempt"):
            create_run(driver)
    assert ledger.requests[T][1:] == ["POST 503 not again", "GET none", "GET none"]


@both
def test_a_server_that_names_a_time_is_not_asked_again_before(kind: str) -> None:
    with stage(kind, "none", "503 in three seconds") as (driver, _):
        create_run(driver, "n0")
        create_run(driver)
        assert driver.slept == [3.0]


@both
def test_a_look_is_retried_like_any_other_and_its_failure_settles_nothing(kind: str) -> None:
    with stage(kind, "hang up after", "500 before", "refused with 429") as (driver, ledger):
        assert create_run(driver).id in ledger.marked(T, "n1")
    with (
        stage(kind, "hang up after", *["500 before"] * 4) as (driver, ledger),
        pytest.raises(AmbiguousOutcome, match="list_runs"),
    ):
        create_run(driver)


@both
def test_a_refusal_after_a_lost_create_is_looked_into_before_it_is_raised(kind: str) -> None:
    with stage(kind, "none", "hang up before", "none", "none", *["refused with 429"] * 3) as (driver, ledger):
        create_run(driver, "n0")
        with pytest.raises(RateLimitError):
            create_run(driver)
    assert ledger.requests[T][-1] == "GET none"
    assert ledger.marked(T, "n1") == []


@both
@makers
def test_what_took_effect_twice_all_the_same_is_reported_with_its_ids(
    kind: str, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with stage(kind, "none", "hang up before", "none", "none", "twice") as (driver, ledger):
        make(driver, "n0")
        made = make(driver)
    ids = ledger.marked(T, "n1")
    assert len(ids) == 2
    assert made.id in ids
    logged = [record.msg for record in caplog.records if isinstance(record.msg, Event)]
    [twins] = [entry for entry in logged if entry["event"] == "request.duplicated"]
    assert sorted(twins["ids"]) == sorted(ids)


class Interrupted(BaseException):
    pass


@both
def test_a_stream_is_closed_when_the_look_after_it_is_interrupted(kind: str) -> None:
    with stage(kind, "none", "hang up before", max_connections=1) as (driver, ledger):
        stream_run(driver, "n0")

        def interrupt(operation: str, *_: object) -> None:
            if ledger.requests[T][-2:] == ["POST none", "GET none"]:
                raise Interrupted

        driver.client._connections._on_response = interrupt
        with pytest.raises(Interrupted):
            stream_run(driver)
        driver.client._connections._on_response = None
        assert [stream_run(driver, "n2").id] == ledger.marked(T, "n2")


def submit(driver: Driver) -> Any:
    outputs = [ToolOutput(tool_call_id="call_0", output="5")]
    return driver.call("submit_tool_outputs", T, RUN, tool_outputs=outputs)


def stream_submit(driver: Driver) -> Any:
    outputs = [{"tool_call_id": "call_0", "output": "5"}]
    first = driver.stream("stream_tool_outputs", T, RUN, tool_outputs=outputs)[0]
    assert isinstance(first, RunEvent)
    return first.data


submitters = pytest.mark.parametrize("hand_in", [submit, stream_submit])


@both
@submitters
@pytest.mark.parametrize("fault", DONE_AND_LOST)
def test_a_submission_that_was_taken_is_not_repeated(kind: str, hand_in: Any, fault: str) -> None:
    with stage(kind, fault, rounds=1) as (driver, ledger):
        assert hand_in(driver).status == "queued"
    assert ledger.accepted(T) == ["step_0"]
    assert ledger.requests[T] == [f"POST {fault}", "GET none"]


@both
@submitters
@pytest.mark.parametrize("fault", NOT_DONE)
def test_a_submission_that_was_not_taken_is_repeated_after_two_looks(
    kind: str, hand_in: Any, fault: str
) -> None:
    with stage(kind, fault, rounds=1) as (driver, ledger):
        assert hand_in(driver).status == "queued"
        assert driver.slept == [2.0]
    assert ledger.accepted(T) == ["step_0"]
    assert ledger.requests[T] == [f"POST {fault}", *["GET none"] * 4, "POST none"]


@both
@submitters
def test_the_next_round_with_the_same_ids_is_not_answered_with_the_outputs_of_this_one(
    kind: str, hand_in: Any
) -> None:
    with (
        stage(kind, "hang up after", rounds=2) as (driver, ledger),
        pytest.raises(AmbiguousOutcome, match="same outputs"),
    ):
        hand_in(driver)
    assert ledger.accepted(T) == ["step_0"]


@both
@submitters
def test_an_earlier_round_with_other_outputs_does_not_stand_in_the_way(kind: str, hand_in: Any) -> None:
    with stage(kind, "none", "hang up before", rounds=2) as (driver, ledger):
        driver.call("submit_tool_outputs", T, RUN, tool_outputs=[{"tool_call_id": "call_0", "output": "4"}])
        hand_in(driver)
    assert ledger.accepted(T) == ["step_0", "step_1"]


@both
@submitters
def test_an_earlier_round_whose_outputs_are_not_shown_stands_in_the_way(kind: str, hand_in: Any) -> None:
    with stage(kind, "hang up after", rounds=2) as (driver, ledger):
        ledger.shows_outputs = False
        with pytest.raises(AmbiguousOutcome, match="which of them waits"):
            hand_in(driver)
    assert ledger.accepted(T) == ["step_0"]


@both
@submitters
def test_a_run_whose_steps_are_not_shown_is_not_submitted_to_again(kind: str, hand_in: Any) -> None:
    with stage(kind, "hang up before", rounds=1) as (driver, ledger):
        ledger.steps[RUN][0]["step_details"] = None
        with pytest.raises(AmbiguousOutcome, match="which of them waits"):
            hand_in(driver)
    assert ledger.accepted(T) == []


@both
@submitters
def test_outputs_that_a_run_never_asked_for_do_not_pass_for_taken_ones(kind: str, hand_in: Any) -> None:
    with stage(kind, "500 before", rounds=1) as (driver, ledger):
        other = {"id": "call_7", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ledger.runs[T][0]["required_action"]["submit_tool_outputs"]["tool_calls"] = [other]
        with pytest.raises(AmbiguousOutcome, match="call_7"):
            hand_in(driver)
    assert ledger.accepted(T) == []


@both
@submitters
def test_outputs_that_a_step_shows_were_taken_whatever_the_run_asks_for_next(kind: str, hand_in: Any) -> None:
    with stage(kind, "500 after", rounds=2) as (driver, ledger):
        ledger.next_id = "call_1"
        assert hand_in(driver).status == "requires_action"
    assert ledger.accepted(T) == ["step_0"]


@both
def test_a_submission_is_not_sent_more_often_than_the_policy_allows(kind: str) -> None:
    with (
        stage(kind, *["hang up before", *["none"] * 4] * 4, rounds=1) as (driver, ledger),
        pytest.raises(AmbiguousOutcome, match="still waits"),
    ):
        submit(driver)
    assert sum(request.startswith("POST") for request in ledger.requests[T]) == 4


@both
def test_a_submission_in_the_wrong_state_is_refused_without_a_look(kind: str) -> None:
    with stage(kind, rounds=1) as (driver, ledger):
        submit(driver)
        with pytest.raises(BadRequestError, match="do not accept"):
            submit(driver)
    assert ledger.requests[T] == ["POST none", "POST none"]


@both
def test_a_refused_repetition_is_looked_into(kind: str) -> None:
    with stage(kind, "hang up before", *["none"] * 4, "twice", rounds=1) as (driver, ledger):
        assert submit(driver).status == "queued"
    assert ledger.accepted(T) == ["step_0"]


@both
def test_a_cancel_that_was_done_before_its_answer_was_lost_has_succeeded(kind: str) -> None:
    with stage(kind, "hang up after", rounds=1) as (driver, ledger):
        assert driver.call("cancel_run", T, RUN).status == "cancelling"
    assert ledger.requests[T] == ["POST hang up after", "POST none", "GET none"]


@both
def test_a_cancel_without_any_answer_is_looked_into(kind: str) -> None:
    with stage(kind, *["500 after"] * 4, rounds=1) as (driver, _):
        assert driver.call("cancel_run", T, RUN).status == "cancelling"
    with stage(kind, *["500 before"] * 4, rounds=1) as (driver, _), pytest.raises(InternalServerError):
        driver.call("cancel_run", T, RUN)


@both
def test_a_cancel_in_the_wrong_state_is_refused_without_a_look(kind: str) -> None:
    with stage(kind, rounds=1) as (driver, ledger):
        driver.call("cancel_run", T, RUN)
        with pytest.raises(BadRequestError, match="Cannot cancel"):
            driver.call("cancel_run", T, RUN)
    assert ledger.requests[T] == ["POST none", "POST none"]


@both
def test_every_attempt_is_logged_once_looks_and_repetitions_included(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "orchestrator")
    faults = ["none", "500 before", "500 before", "none", "none", "500 after", "none"]
    with stage(kind, *faults) as (driver, _):
        create_run(driver, "n0")
        create_run(driver)
    logged = [record.msg for record in caplog.records if isinstance(record.msg, Event)]
    assert [(entry["event"], entry["operation"], entry["attempt"]) for entry in logged] == [
        ("request.failed", "create_run", 1),
        ("request.retried", "list_runs", 1),
        ("request.failed", "create_run", 2),
    ]
