"""What the logs say of a run: which events, with which ids, and nothing of what tools are told and tell."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from between import between
from crew import AT_ONCE, crewed, poison
from stage import PATIENCE_S, QUICK, Gate, Stage, wait_until

from orchestrator import RestartPolicy
from orchestrator.errors import NotFoundError, RunError
from orchestrator.telemetry import Event

if TYPE_CHECKING:
    from orchestrator import RunHandle

ARGUMENT = "argument4711"
OUTPUT = "output4711"


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def told(caplog: pytest.LogCaptureFixture, run: RunHandle) -> list[Event]:
    """The events of one run, in order."""
    events = (record.msg for record in caplog.records if isinstance(record.msg, Event))
    return [event for event in events if event.get("run_key") == run.key]


def names(events: list[Event]) -> list[str]:
    return [event["event"] for event in events if event["event"].startswith("run.")]


def fetch(word: str) -> str:
    return OUTPUT + word


def other(word: str) -> str:
    raise LookupError(f"no {word}: {OUTPUT}")


def test_a_run_s_life_is_told_under_stable_names(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    with stage.orchestrator(tools=[fetch, other], check_tools="off") as orchestrator:
        run = orchestrator.start(stage.assistant, messages="twice")
        run.result(PATIENCE_S)
    events = told(caplog, run)
    assert names(events) == [
        "run.started",
        "run.created",
        "run.tool_called",
        "run.tool_answered",
        "run.submitted",
        "run.tool_called",
        "run.tool_answered",
        "run.submitted",
        "run.completed",
    ]
    called, failed = events[2], events[6]
    assert (called["tool"], called["round"]) == ("fetch", 1)
    assert (failed["tool"], failed["round"], failed["error"]) == ("other", 2, "raised")
    assert (events[3]["error"], events[3]["call_id"]) == (None, called["call_id"])
    assert 0 <= events[3]["duration_s"] < PATIENCE_S
    assert (events[-1]["status"], events[-1]["tool_calls"]) == ("completed", 2)


def test_each_event_carries_the_ids_that_are_known_by_then(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    with stage.orchestrator(tools=[fetch]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages=f"each {ARGUMENT}", key="mine")
        run.result(PATIENCE_S)
    first, *rest = told(caplog, run)
    assert (first["event"], first["thread_id"], first["run_id"]) == ("run.started", None, None)
    assert {(event["run_key"], event["thread_id"], event["run_id"]) for event in rest} == {
        ("mine", run.thread_id, run.run_id)
    }
    assert all("request_id" in event for event in (first, *rest))


def test_a_request_id_is_bound_as_soon_as_it_is_known(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fetch")
        gate.wait_until_reached()
        run._state.last_request_id = "req_4711"
        gate.open.set()
        run.result(PATIENCE_S)
    events = told(caplog, run)
    assert {event["request_id"] for event in events if event["event"] == "run.tool_answered"} == {"req_4711"}


def test_neither_arguments_nor_outputs_nor_keys_are_logged(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    with stage.orchestrator(tools=[fetch]) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages=f"each {ARGUMENT}") for _ in range(2)]
        runs.append(orchestrator.start(stage.assistant, messages="garbled"))
        assert [OUTPUT + ARGUMENT in run.result(PATIENCE_S).text for run in runs] == [True, True, False]
        assert ARGUMENT in runs[0].result().tool_calls[0].arguments
    with stage.orchestrator(tools=[other], timing=QUICK) as orchestrator:
        orchestrator.start(
            stage.assistant, messages="twice", tools=[fetch], metadata={"secret": ARGUMENT}
        ).result(PATIENCE_S)
    logged = [f"{record.getMessage()} {record.exc_text or ''}" for record in caplog.records]
    secrets = (ARGUMENT, OUTPUT, stage.server.api_key, '{"word"')
    assert [line for line in logged if any(secret in line for secret in secrets)] == []
    assert any("run.tool_called" in line for line in logged)


def test_arguments_and_outputs_are_logged_where_that_was_asked_for_and_keys_never(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    with stage.orchestrator(tools=[fetch], log_tool_data=True) as orchestrator:
        run = orchestrator.start(stage.assistant, messages=f"each {ARGUMENT}")
        result = run.result(PATIENCE_S)
    events = told(caplog, run)
    shown = [(event.get("tool_arguments"), event.get("tool_output")) for event in events]
    (call,) = result.tool_calls
    assert [pair for pair in shown if pair != (None, None)] == [(call.arguments, None), (None, call.output)]
    assert stage.server.api_key not in caplog.text


def test_a_cancel_is_told_when_it_is_posted(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    with stage.orchestrator(check_tools="off") as orchestrator:
        run = orchestrator.start(stage.assistant, messages="dawdle")
        wait_until(lambda: run.status == "in_progress")
        run.cancel()
        run.result(PATIENCE_S)
    events = told(caplog, run)
    assert names(events) == ["run.started", "run.created", "run.cancelled", "run.completed"]
    assert events[-1]["status"] == "cancelled"


def test_a_run_that_cannot_be_conducted_has_failed(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start("asst_nobody", messages="hello")
        with pytest.raises(NotFoundError):
            run.result(PATIENCE_S)
    *_, last = told(caplog, run)
    assert (last["event"], last["error"]) == ("run.failed", "NotFoundError")


def test_an_adopted_run_is_started_and_not_created(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    thread_id = stage.thread()
    with stage.orchestrator(tools=[fetch]) as orchestrator:
        run = orchestrator.adopt(thread_id, stage.run_id("hello", thread_id))
        run.result(PATIENCE_S)
    events = told(caplog, run)
    assert names(events) == ["run.started", "run.completed"]
    assert {event["run_id"] for event in events} == {run.run_id}


def test_a_stall_is_told(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    with stage.orchestrator(timing=replace(QUICK, stall_s=0.1)) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="dawdle")
        wait_until(lambda: "run.stalled" in names(told(caplog, run)))
        run.cancel()
        run.result(PATIENCE_S)
    (stalled, *_) = [event for event in told(caplog, run) if event["event"] == "run.stalled"]
    assert (stalled["run_id"], "no progress" in stalled["detail"]) == (run.run_id, True)


def test_a_lost_stream_is_told_as_a_gap(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    with (
        between(stage.server.base_url) as middleman,
        stage.orchestrator(base_url=middleman.base_url) as orchestrator,
    ):
        run = orchestrator.start(stage.assistant, messages="dawdle")
        wait_until(lambda: run.status == "in_progress")
        middleman.cut.set()
        wait_until(lambda: "run.gap" in names(told(caplog, run)))
        middleman.cut.clear()
        run.cancel()
        run.result(PATIENCE_S)
    (gap,) = [event for event in told(caplog, run) if event["event"] == "run.gap"]
    assert (gap["thread_id"], gap["run_id"]) == (run.thread_id, run.run_id)


def test_deaths_of_actors_are_told_with_the_ids_of_their_run_and_then_that_it_is_given_up(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    restart = RestartPolicy(max_restarts=1, backoff_s=AT_ONCE.backoff_s)
    with crewed(stage, restart=restart) as crew:
        run = crew.start("dawdle")
        wait_until(lambda: run.status == "in_progress")
        crew.tell(run, poison())
        wait_until(lambda: run.snapshot().restarts == 1)
        crew.tell(run, poison())
        with pytest.raises(RunError):
            run.result(PATIENCE_S)
    events = told(caplog, run)
    assert names(events)[-3:] == ["run.restarted", "run.escalated", "run.failed"]
    assert {(event["thread_id"], event["run_id"]) for event in events[-3:]} == {(run.thread_id, run.run_id)}
    assert (events[-2]["deaths"], "poisoned" in events[-2]["cause"]) == (2, True)
