"""Starting, watching and cancelling runs, one and many, against a real server."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from stage import PATIENCE_S, QUICK, Gate, Stage, our_threads, wait_until

from orchestrator import Orchestrator, ToolRegistry
from orchestrator.client import AsyncThreadsClient
from orchestrator.errors import Overloaded, RunFailed
from orchestrator.runs.machine import WaitsFor
from orchestrator.runs.record import Phase

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def test_nothing_is_started_or_connected_before_the_first_run(stage: Stage) -> None:
    asked = len(stage.server.requests)
    with stage.orchestrator(tools=[Gate().fetch]) as orchestrator:
        assert our_threads() == []
        assert orchestrator.runs() == []
    assert len(stage.server.requests) == asked


def test_a_run_is_started_at_once_and_its_result_says_everything(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello")
        result = run.result(PATIENCE_S)
    assert (result.status, result.text) == ("completed", "hello to you")
    assert (result.thread_id, result.run_id) == (run.thread_id, run.run_id)
    assert result.raise_for_status() is result
    assert result.usage is not None
    assert [step.type for step in result.steps] == ["message_creation"]
    assert run.run_ids == (run.run_id,)
    assert run.status == "completed"
    assert run.done()
    assert run.result() is result


def test_a_run_that_failed_on_the_server_is_a_result_and_raises_only_when_asked(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        result = orchestrator.start(stage.assistant, messages="fail").result(PATIENCE_S)
    assert result.status == "failed"
    with pytest.raises(
        RunFailed, match=rf"run {result.run_id} on thread {result.thread_id} .* the model broke"
    ):
        result.raise_for_status()


def test_a_result_that_takes_too_long_raises_and_the_run_goes_on(stage: Stage) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fetch")
        gate.wait_until_reached()
        with pytest.raises(TimeoutError, match=f"run {run.run_id} on thread {run.thread_id} has not ended"):
            run.result(0.01)
        assert not run.done()
        gate.open.set()
        assert run.result(PATIENCE_S).text == "got it"


def test_leaving_the_block_waits_for_the_runs_like_an_executor(stage: Stage) -> None:
    with stage.orchestrator(tools=[Gate(opened=True).fetch]) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="fetch") for _ in range(5)]
    assert [run.result().text for run in runs] == ["got it"] * 5


def test_a_cancelled_run_is_a_result_and_is_cancelled_on_the_server(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="dawdle")
        wait_until(lambda: run.status == "in_progress")
        run.cancel()
        run.cancel()
        result = run.result(PATIENCE_S)
        run.cancel()
    assert result.status == "cancelled"
    assert stage.run(run.thread_id, run.run_id).status == "cancelled"


def test_cancel_before_anything_was_sent_sends_nothing(stage: Stage) -> None:
    gate = Gate()
    thread_id = stage.thread()
    with stage.orchestrator(tools=[gate.fetch], max_concurrent_runs=1) as orchestrator:
        first = orchestrator.start(stage.assistant, messages="fetch")
        gate.wait_until_reached()
        waiting = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        assert waiting.snapshot().waits_for == "admission"
        waiting.cancel()
        result = waiting.result(PATIENCE_S)
        gate.open.set()
        assert first.result(PATIENCE_S).status == "completed"
    assert (result.status, result.run_id) == ("cancelled", None)
    assert stage.requests(thread_id) == []


def test_runs_shows_where_each_run_stands_and_forgets_what_is_over(stage: Stage) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch], max_concurrent_runs=1) as orchestrator:
        first = orchestrator.start(stage.assistant, messages="fetch", key="first")
        gate.wait_until_reached()
        orchestrator.start(stage.assistant, messages="hello", key="second")
        wait_until(lambda: orchestrator.runs()[0].phase is Phase.ACTING)
        acting, waiting = orchestrator.runs()
        assert (acting.key, acting.status, acting.round) == ("first", "requires_action", 1)
        assert (acting.thread_id, acting.run_id) == (first.thread_id, first.run_id)
        assert (acting.waits_for, acting.waits_detail) == (WaitsFor.TOOL, "fetch")
        assert len(acting.open_calls) == 1
        assert 0 <= acting.idle_s <= acting.age_s
        assert (waiting.key, waiting.phase, waiting.waits_for) == ("second", Phase.ADMITTED, "admission")
        assert 0 <= waiting.idle_s <= waiting.age_s
        gate.open.set()
        first.result(PATIENCE_S)
        assert "first" not in [snapshot.key for snapshot in orchestrator.runs()]
    assert orchestrator.runs() == []
    over = first.snapshot()
    assert (over.phase, over.waits_for, over.tool_calls, over.open_calls) == (
        Phase.FINISHED,
        "nothing",
        1,
        (),
    )


def test_cancel_all_ends_every_run_those_that_wait_included(stage: Stage) -> None:
    with stage.orchestrator(max_concurrent_runs=2) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="dawdle") for _ in range(4)]
        assert orchestrator.cancel_all() == runs
        assert {run.result(PATIENCE_S).status for run in runs} == {"cancelled"}


def test_a_run_of_somebody_else_can_be_adopted_and_its_calls_are_answered(stage: Stage) -> None:
    thread_id = stage.thread()
    run_id = stage.run_id("fetch", thread_id)
    with stage.orchestrator(tools=[Gate(opened=True).fetch]) as orchestrator:
        run = orchestrator.adopt(thread_id, run_id)
        assert (run.thread_id, run.run_id) == (thread_id, run_id)
        result = run.result(PATIENCE_S)
    assert result.text == "got it"
    assert [call.name for call in result.tool_calls] == ["fetch"]


def test_an_adopted_run_can_be_cancelled(stage: Stage) -> None:
    thread_id = stage.thread()
    run_id = stage.run_id("dawdle", thread_id)
    with stage.orchestrator() as orchestrator:
        run = orchestrator.adopt(thread_id, run_id)
        run.cancel()
        assert run.result(PATIENCE_S).status == "cancelled"


def test_who_has_a_result_may_use_its_key_and_its_place_at_once(stage: Stage) -> None:
    with stage.orchestrator(max_concurrent_runs=1, max_pending=0) as orchestrator:
        for _ in range(20):
            run = orchestrator.start(stage.assistant, messages="hello", key="again")
            assert run.result(PATIENCE_S).text == "hello to you"
            assert run.future.done()


def test_an_old_handle_does_not_cancel_the_next_run_of_its_key(stage: Stage) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        old = orchestrator.start(stage.assistant, messages="hello", key="again")
        old.result(PATIENCE_S)
        new = orchestrator.start(stage.assistant, messages="fetch", key="again")
        gate.wait_until_reached()
        old.cancel()
        gate.open.set()
        assert new.result(PATIENCE_S).status == "completed"


def test_a_run_above_max_pending_is_refused_and_starts_nothing(stage: Stage) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch], max_concurrent_runs=1, max_pending=2) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="fetch") for _ in range(3)]
        with pytest.raises(Overloaded, match="max_pending=2 allow: try again later, or raise one of them"):
            orchestrator.start(stage.assistant, messages="fetch")
        assert len(orchestrator.runs()) == 3
        gate.open.set()
        assert [run.result(PATIENCE_S).status for run in runs] == ["completed"] * 3
        assert gate.calls == 3


def test_never_more_runs_are_at_work_than_allowed(stage: Stage) -> None:
    lock = threading.Lock()
    at_work = most = 0

    def fetch() -> str:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        threading.Event().wait(0.01)
        with lock:
            at_work -= 1
        return "it"

    with stage.orchestrator(tools=[fetch], max_concurrent_runs=3) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="fetch") for _ in range(20)]
        assert {run.result(PATIENCE_S).status for run in runs} == {"completed"}
    assert most <= 3


@pytest.mark.parametrize(
    "messages",
    [
        "hello",
        {"role": "user", "content": "hello"},
        ["hello"],
        ["something before", {"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        (text for text in ["hello"]),
    ],
    ids=["a text", "a message", "texts", "a mixture", "a generator"],
)
def test_messages_may_be_given_in_any_form(stage: Stage, messages: Any) -> None:
    with stage.orchestrator() as orchestrator:
        result = orchestrator.start(stage.assistant, messages=messages).result(PATIENCE_S)
    assert result.text == "hello to you"


def test_additional_messages_come_after_the_messages(stage: Stage) -> None:
    more = [{"role": "user", "content": "hello"}]
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fetch", additional_messages=more)
        assert run.result(PATIENCE_S).text == "hello to you"


def test_a_run_can_be_polled_instead_and_says_the_same(stage: Stage) -> None:
    with stage.orchestrator(watch="poll", tools=[Gate(opened=True).fetch]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fetch", metadata={"order": "7"})
        result = run.result(PATIENCE_S)
    assert result.text == "got it"
    assert (stage.run(run.thread_id, run.run_id).metadata or {})["order"] == "7"
    assert "GET" in {request.split()[0] for request in stage.requests(run.thread_id)}


def test_a_client_of_the_users_own_is_used_and_closed(stage: Stage) -> None:
    client = AsyncThreadsClient(stage.server.base_url, api_key=stage.server.api_key)
    with stage.orchestrator(client=client) as orchestrator:
        assert orchestrator.start(stage.assistant, messages="hello").result(PATIENCE_S).text == "hello to you"

    async def use() -> None:
        await client.create_thread()

    with pytest.raises(Exception, match="the client is closed"):
        asyncio.run(use())


def test_a_run_may_have_a_key_of_its_own(stage: Stage) -> None:
    with Orchestrator(base_url=stage.server.base_url, api_key="wrong", timing=QUICK) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello", api_key=stage.server.api_key)
        assert run.result(PATIENCE_S).text == "hello to you"


def test_a_registry_may_be_shared_by_orchestrators(stage: Stage) -> None:
    registry = ToolRegistry([Gate(opened=True).fetch])
    with stage.orchestrator(tools=registry) as one, stage.orchestrator(tools=registry) as other:
        runs = [each.start(stage.assistant, messages="fetch") for each in (one, other)]
        assert [run.result(PATIENCE_S).text for run in runs] == ["got it"] * 2
        assert our_threads().count("orchestrator-actors") == 1


def test_an_orchestrator_that_is_closed_leaves_the_other_at_work(stage: Stage) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch]) as one:
        run = one.start(stage.assistant, messages="fetch")
        with stage.orchestrator() as other:
            other.start(stage.assistant, messages="hello").result(PATIENCE_S)
        gate.open.set()
        assert run.result(PATIENCE_S).text == "got it"


def test_a_handle_says_who_it_is(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello", key="mine")
        run.result(PATIENCE_S)
    assert repr(run) == f"<RunHandle mine run={run.run_id} thread={run.thread_id} status=completed>"
