"""Actors that die: in every phase, at their start, again and again, with requests and tools under way.

The supervisor, the actors, the requests, the server and the tools are real. What kills an actor is an input
that it cannot digest, told by a backend of the test's own around the real one.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest
from crew import AT_ONCE, Killing, Outlived, Refusing, Swallowing, Unsent, crewed, poison
from pykka import ActorRegistry
from stage import PATIENCE_S, Gate, Stage, active_runs, wait_until

from orchestrator import Notice, RestartPolicy, RunHandle, ToolContext
from orchestrator.errors import OrchestratorClosed, RunError
from orchestrator.journal import MemoryJournal
from orchestrator.runs.effects import (
    CancelRun,
    CreateRun,
    CreateThread,
    FetchTranscript,
    RequestEffect,
    RetrieveRun,
    SubmitToolOutputs,
)
from orchestrator.runs.machine import WaitsFor
from orchestrator.runs.record import RunRecord
from orchestrator.runs.request import Watch
from orchestrator.supervision.actor import RunActor
from orchestrator.telemetry import Event

if TYPE_CHECKING:
    from orchestrator.runs.backend import Backend, Report

LATER = RestartPolicy(backoff_s=0.1)


class Tools:
    """Two tools that count their calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def fetch(self, word: str) -> str:
        self.calls.append(word)
        return word

    def other(self, word: str) -> str:
        self.calls.append(word)
        return word


def posts(stage: Stage, run: RunHandle, ending: str) -> int:
    return len([asked for asked in stage.requests(run.thread_id, "POST") if asked.endswith(ending)])


@pytest.mark.parametrize("before", [True, False], ids=["under way", "answered"])
@pytest.mark.parametrize(
    ("kind", "watch", "restart"),
    [
        (CreateThread, "stream", AT_ONCE),
        (CreateThread, "stream", LATER),
        (CreateRun, "stream", AT_ONCE),
        (CreateRun, "stream", LATER),
        (CreateRun, "poll", LATER),
        (RetrieveRun, "poll", AT_ONCE),
        (SubmitToolOutputs, "stream", AT_ONCE),
        (SubmitToolOutputs, "stream", LATER),
        (SubmitToolOutputs, "poll", LATER),
        (FetchTranscript, "poll", AT_ONCE),
    ],
    ids=lambda value: (
        getattr(value, "__name__", None)
        or (f"restart in {value.backoff_s} s" if isinstance(value, RestartPolicy) else value)
    ),
)
def test_an_actor_that_dies_around_a_request_is_replaced_and_nothing_is_done_twice(
    stage: Stage, kind: type[RequestEffect], watch: Watch, before: bool, restart: RestartPolicy
) -> None:
    tools = Tools()
    with crewed(stage, tools.fetch, tools.other, restart=restart) as crew:
        run = crew.start("twice", partial(Killing, kind=kind, before=before), watch=watch)
        result = run.result(PATIENCE_S)
    assert (result.status, result.text) == ("completed", "got one and two")
    assert [call.output for call in result.tool_calls] == ["one", "two"]
    assert tools.calls == ["one", "two"]
    assert [made.id for made in stage.runs(run.thread_id)] == [run.run_id]
    assert posts(stage, run, "/runs") == 1
    assert posts(stage, run, "/submit_tool_outputs") == 2
    # What answers last ends the run, and with it the actor: there is nobody left to kill.
    assert run.snapshot().restarts == (0 if kind is FetchTranscript and not before else 1)


@pytest.mark.parametrize("restart", [AT_ONCE, LATER], ids=["restarted at once", "restarted later"])
@pytest.mark.parametrize("kind", [CreateRun, SubmitToolOutputs])
def test_a_request_under_way_survives_its_actor_so_that_nothing_has_to_be_looked_up(
    stage: Stage, kind: type[RequestEffect], restart: RestartPolicy
) -> None:
    tools = Tools()
    with crewed(stage, tools.fetch, tools.other, restart=restart) as crew:
        run = crew.start("twice", partial(Killing, kind=kind))
        result = run.result(PATIENCE_S)
    asked = stage.requests(run.thread_id)
    assert "GET /runs" not in asked
    submission = f"POST /runs/{result.run_id}/submit_tool_outputs"
    assert [request for request in asked if request.startswith("POST")] == [
        "POST /runs",
        submission,
        submission,
    ]


@pytest.mark.parametrize("restart", [AT_ONCE, LATER], ids=["restarted at once", "restarted later"])
def test_an_actor_that_dies_while_it_cancels_is_replaced_and_the_run_is_cancelled(
    stage: Stage, restart: RestartPolicy
) -> None:
    with crewed(stage, restart=restart) as crew:
        run = crew.start("dawdle", partial(Killing, kind=CancelRun))
        wait_until(lambda: run.status == "in_progress")
        run.cancel()
        assert run.result(PATIENCE_S).status == "cancelled"
        assert run.snapshot().restarts == 1


@pytest.mark.parametrize("restart", [AT_ONCE, LATER], ids=["restarted at once", "restarted later"])
def test_an_actor_that_dies_before_it_began_or_while_it_waits_is_replaced(
    stage: Stage, restart: RestartPolicy
) -> None:
    gate = Gate()
    with crewed(stage, gate.fetch, restart=restart) as crew:
        run = crew.start("fetch")
        crew.tell(run, poison())
        gate.wait_until_reached()
        crew.tell(run, poison())
        wait_until(lambda: run.snapshot().restarts == 2)
        gate.open.set()
        assert run.result(PATIENCE_S).text == "got it"
    assert gate.calls == 1
    assert posts(stage, run, "/runs") == 1


def test_an_outcome_that_came_while_nobody_conducted_the_run_is_used(stage: Stage) -> None:
    gate = Gate()
    with crewed(stage, gate.fetch, restart=RestartPolicy(backoff_s=0.3)) as crew:
        run = crew.start("each a b")
        gate.wait_until_reached()
        gate.wait_until_reached()
        crew.tell(run, poison())
        wait_until(lambda: run.snapshot().restarts == 1)
        gate.open.set()
        result = run.result(PATIENCE_S)
    assert [call.output for call in result.tool_calls] == ["a", "b"]
    assert gate.calls == 2
    assert posts(stage, run, "/submit_tool_outputs") == 1


def test_an_actor_that_cannot_start_is_tried_again(stage: Stage) -> None:
    class Reluctant(MemoryJournal):
        refusals = 3

        def last(self, key: str) -> RunRecord:
            if self.refusals:
                self.refusals -= 1
                raise OSError("the disk is tired")
            return super().last(key)

    tools = Tools()
    with crewed(stage, tools.fetch, tools.other, journal=Reluctant()) as crew:
        run = crew.start("twice")
        assert run.result(PATIENCE_S).text == "got one and two"
        assert run.snapshot().restarts == 3
    assert tools.calls == ["one", "two"]


def test_a_restart_is_an_event_with_the_run_id_and_a_log_line(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    tools = Tools()
    with crewed(stage, tools.fetch, tools.other) as crew:
        run = crew.start("twice", partial(Killing, kind=SubmitToolOutputs))
        run.result(PATIENCE_S)
    notices = [event for event in run.events() if isinstance(event, Notice)]
    restarted = [notice for notice in notices if notice.event == "run.restarted"]
    assert [(notice.run_id, notice.detail) for notice in restarted] == [(run.run_id, "ArithmeticError")]
    (line,) = [line for line in caplog.messages if line.startswith("run.restarted")]
    assert f"run_key={run.key!r} thread_id={run.thread_id!r} run_id={run.run_id!r}" in line
    assert "cause=\"ArithmeticError('poisoned')\" restarts=1 pause_s=0.0" in line


def test_cancel_works_while_no_actor_conducts_the_run(stage: Stage) -> None:
    gate = Gate()
    with crewed(stage, gate.fetch, restart=RestartPolicy(backoff_s=0.2)) as crew:
        run = crew.start("fetch")
        gate.wait_until_reached()
        crew.tell(run, poison())
        wait_until(lambda: run.snapshot().restarts == 1)
        run.cancel()
        assert run.result(PATIENCE_S).status == "cancelled"
        gate.open.set()
    assert active_runs(stage, run.thread_id) == []


def test_a_cancel_while_no_actor_conducts_a_run_that_was_not_created_sends_nothing_more(stage: Stage) -> None:
    with crewed(stage, restart=RestartPolicy(backoff_s=0.2)) as crew:
        run = crew.start("hello", Unsent)
        wait_until(lambda: run.snapshot().restarts == 1)
        run.cancel()
        result = run.result(PATIENCE_S)
    assert (result.status, result.run_id) == ("cancelled", None)
    assert stage.requests(run.thread_id) == []


def test_a_cancel_behind_the_message_that_killed_is_not_forgotten(stage: Stage) -> None:
    with crewed(stage) as crew:
        run = crew.start("dawdle")
        wait_until(lambda: run.status == "in_progress")
        crew.tell(run, poison())
        run.cancel()
        assert run.result(PATIENCE_S).status == "cancelled"
        assert run.snapshot().restarts == 1


def test_too_many_deaths_end_the_run_here_and_on_the_server(stage: Stage) -> None:
    gate = Gate()
    restart = RestartPolicy(max_restarts=3, within_s=60, backoff_s=0.0)
    with crewed(stage, gate.fetch, restart=restart) as crew:
        run = crew.start("fetch")
        gate.wait_until_reached()
        for deaths in range(1, 4):
            crew.tell(run, poison())
            wait_until(lambda deaths=deaths: run.snapshot().restarts == deaths)  # type: ignore[misc]  # bound now
        crew.tell(run, poison())
        with pytest.raises(RunError) as raised:
            run.result(PATIENCE_S)
        gate.open.set()
    error = raised.value
    assert (error.thread_id, error.run_id) == (run.thread_id, run.run_id)
    assert str(error) == (
        f"run {run.run_id!r} on thread {run.thread_id} was given up: its actor died 4 times in 60 s, at last "
        f"of ArithmeticError: poisoned; the run was cancelled on the server"
    )
    assert isinstance(error.__cause__, ArithmeticError)
    wait_until(lambda: stage.run(error.thread_id, error.run_id).status == "cancelled")
    assert gate.calls == 1


@pytest.mark.parametrize(
    ("times", "became"),
    [(2, "the run was cancelled on the server"), (99, "the run could not be cancelled on the server")],
)
def test_a_run_that_is_given_up_is_cancelled_through_a_bad_moment_of_the_server_and_not_for_ever(
    stage: Stage, times: int, became: str
) -> None:
    with crewed(stage, restart=RestartPolicy(max_restarts=0)) as crew:
        run = crew.start("dawdle", partial(Refusing, times=times))
        wait_until(lambda: run.status == "in_progress")
        crew.tell(run, poison())
        with pytest.raises(RunError, match=became) as raised:
            run.result(PATIENCE_S)
    if times > 2:
        stage.client.cancel_run(run.thread_id or "", raised.value.run_id or "")


def test_a_run_whose_created_id_no_actor_lived_to_handle_is_found_by_its_nonce_and_cancelled(
    stage: Stage,
) -> None:
    with crewed(stage, restart=RestartPolicy(max_restarts=0)) as crew:
        run = crew.start("dawdle", Swallowing, watch="poll")
        with pytest.raises(RunError, match="the run was cancelled on the server") as raised:
            run.result(PATIENCE_S)
    assert [made.id for made in stage.runs(run.thread_id)] == [raised.value.run_id]
    wait_until(lambda: active_runs(stage, run.thread_id) == [])


def test_a_run_whose_created_id_was_told_to_a_dead_actor_is_cancelled_without_being_looked_for(
    stage: Stage,
) -> None:
    with crewed(stage, restart=RestartPolicy(max_restarts=0)) as crew:
        run = crew.start("dawdle", Outlived, watch="poll")
        with pytest.raises(RunError, match="the run was cancelled on the server") as raised:
            run.result(PATIENCE_S)
    assert stage.requests(run.thread_id) == ["POST /runs", f"POST /runs/{raised.value.run_id}/cancel"]
    wait_until(lambda: active_runs(stage, run.thread_id) == [])


def test_the_tools_of_a_run_that_is_given_up_are_stopped_before_it_is_cancelled(stage: Stage) -> None:
    reached = threading.Event()
    order: list[str] = []

    def fetch(context: ToolContext) -> str:
        reached.set()
        assert context.stop.wait(PATIENCE_S)
        order.append(stage.run(context.thread_id, context.run_id).status)
        return "too late"

    class Slow:
        """Posts a cancel only once the tool has seen its end."""

        def __init__(self, backend: Backend) -> None:
            self._backend = backend

        async def perform(self, effect: RequestEffect, report: Report) -> None:
            if isinstance(effect, CancelRun):
                await asyncio.to_thread(wait_until, lambda: bool(order))
            await self._backend.perform(effect, report)

    with crewed(stage, fetch, restart=RestartPolicy(max_restarts=0)) as crew:
        run = crew.start("fetch", Slow)
        assert reached.wait(PATIENCE_S)
        crew.tell(run, poison())
        with pytest.raises(RunError, match="the run was cancelled on the server"):
            run.result(PATIENCE_S)
    assert order == ["requires_action"]


def test_each_restart_in_the_window_waits_twice_as_long_up_to_a_bound(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    restart = RestartPolicy(max_restarts=4, within_s=60, backoff_s=0.01, backoff_cap_s=0.04)
    with crewed(stage, gate.fetch, restart=restart) as crew:
        run = crew.start("fetch")
        gate.wait_until_reached()
        for deaths in range(1, 5):
            crew.tell(run, poison())
            wait_until(lambda deaths=deaths: run.snapshot().restarts == deaths)  # type: ignore[misc]  # bound now
            wait_until(lambda: run.snapshot().waits_for is not WaitsFor.BACKOFF)
        gate.open.set()
        assert run.result(PATIENCE_S).text == "got it"
    pauses = [
        record.msg["pause_s"]
        for record in caplog.records
        if isinstance(record.msg, Event) and record.msg["event"] == "run.restarted"
    ]
    assert pauses == [0.01, 0.02, 0.04, 0.04]


def test_a_message_while_nobody_conducts_the_run_kills_nobody_twice(stage: Stage) -> None:
    """What killed is not handed to the successor, and what came behind it is."""
    gate = Gate()
    with crewed(stage, gate.fetch, restart=RestartPolicy(backoff_s=0.1)) as crew:
        run = crew.start("fetch")
        gate.wait_until_reached()
        crew.tell(run, poison())
        crew.tell(run, poison())
        wait_until(lambda: run.snapshot().restarts == 2)
        gate.open.set()
        assert run.result(PATIENCE_S).text == "got it"
    assert (run.snapshot().restarts, gate.calls) == (2, 1)


def test_deaths_that_are_far_apart_are_forgiven(stage: Stage) -> None:
    gate = Gate()
    restart = RestartPolicy(max_restarts=1, within_s=0.05, backoff_s=0.0)
    with crewed(stage, gate.fetch, restart=restart) as crew:
        run = crew.start("fetch")
        gate.wait_until_reached()
        apart = threading.Event()
        for deaths in range(1, 5):
            crew.tell(run, poison())
            wait_until(lambda deaths=deaths: run.snapshot().restarts == deaths)  # type: ignore[misc]  # bound now
            apart.wait(0.1)
        gate.open.set()
        assert run.result(PATIENCE_S).text == "got it"


def test_one_runs_deaths_are_nobody_elses(stage: Stage) -> None:
    tools = Tools()
    with crewed(stage, tools.fetch, tools.other) as crew:
        dying = [crew.start("twice", partial(Killing, kind=SubmitToolOutputs)) for _ in range(6)]
        others = [crew.start("twice") for _ in range(6)]
        assert {run.result(PATIENCE_S).text for run in dying + others} == {"got one and two"}
        assert {run.snapshot().restarts for run in dying} == {1}
        assert {run.snapshot().restarts for run in others} == {0}
    assert len(tools.calls) == 24


def test_an_actor_that_somebody_stops_ends_its_run_with_the_ids(stage: Stage) -> None:
    gate = Gate()
    with crewed(stage, gate.fetch) as crew:
        run = crew.start("fetch")
        gate.wait_until_reached()
        (actor,) = ActorRegistry.get_by_class(RunActor)
        actor.stop(timeout=PATIENCE_S)
        with pytest.raises(OrchestratorClosed, match=f"its actor was stopped before run {run.run_id!r}"):
            run.result(PATIENCE_S)
        gate.open.set()


def test_a_supervisor_that_dies_of_a_defect_lets_go_of_every_run_with_its_ids(stage: Stage) -> None:
    gate = Gate()
    with crewed(stage, gate.fetch) as crew:
        runs = [crew.start("fetch") for _ in range(3)]
        for _ in runs:
            gate.wait_until_reached()
        crew.supervisor.tell("what it does not know")
        for run in runs:
            with pytest.raises(OrchestratorClosed, match="its supervisor died of TypeError") as closed:
                run.result(PATIENCE_S)
            assert str(run.run_id) in str(closed.value)
            assert "take it up again with adopt(thread_id, run_id)" in str(closed.value)
        gate.open.set()
