"""Several runs on one thread: they wait for each other, or are refused, and others' runs are named."""

from __future__ import annotations

import pytest
from stage import PATIENCE_S, Gate, Stage, wait_until

from orchestrator import Notice
from orchestrator.errors import ThreadBusy
from orchestrator.runs.machine import WaitsFor

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def test_runs_on_one_thread_take_turns_in_order_and_all_complete(stage: Stage) -> None:
    order: list[str] = []

    def fetch(word: str) -> str:
        order.append(word)
        return word

    thread_id = stage.thread()
    with stage.orchestrator(tools=[fetch]) as orchestrator:
        runs = [
            orchestrator.start(stage.assistant, thread_id=thread_id, messages=f"each w{number}")
            for number in range(6)
        ]
        assert [run.result(PATIENCE_S).text for run in runs] == [f"got w{number}" for number in range(6)]
    assert order == [f"w{number}" for number in range(6)]
    assert stage.requests(thread_id, "POST").count("POST /runs") == 6


def test_a_run_that_waits_for_its_thread_says_so_and_can_be_cancelled(stage: Stage) -> None:
    gate = Gate()
    thread_id = stage.thread()
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        first, second, third = (
            orchestrator.start(stage.assistant, thread_id=thread_id, messages=text)
            for text in ("fetch", "hello", "hello")
        )
        gate.wait_until_reached()
        waiting = second.snapshot()
        assert waiting.waits_for is WaitsFor.THREAD
        assert waiting.waits_detail == f"thread {thread_id}, which run {first.run_id} has"
        second.cancel()
        assert second.result(PATIENCE_S).run_id is None
        gate.open.set()
        assert first.result(PATIENCE_S).status == third.result(PATIENCE_S).status == "completed"
        assert third.snapshot().waits_for is WaitsFor.NOTHING


def test_a_run_that_has_its_thread_and_no_place_yet_waits_for_admission(stage: Stage) -> None:
    gate = Gate()
    thread_id = stage.thread()
    with stage.orchestrator(tools=[gate.fetch], max_concurrent_runs=1) as orchestrator:
        holder = orchestrator.start(stage.assistant, thread_id=thread_id, messages="fetch")
        between = orchestrator.start(stage.assistant, messages="each a")
        parked = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        gate.wait_until_reached()
        assert parked.snapshot().waits_for is WaitsFor.THREAD
        holder.cancel()
        assert holder.result(PATIENCE_S).status == "cancelled"
        gate.wait_until_reached()
        assert parked.snapshot().waits_for is WaitsFor.ADMISSION
        gate.open.set()
        assert between.result(PATIENCE_S).status == parked.result(PATIENCE_S).status == "completed"


def test_a_key_that_is_used_again_does_not_hold_the_thread_its_first_run_waited_for(stage: Stage) -> None:
    gate = Gate()
    thread_id = stage.thread()
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        holder = orchestrator.start(stage.assistant, thread_id=thread_id, messages="fetch")
        gate.wait_until_reached()
        waiting = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello", key="mine")
        waiting.cancel()
        waiting.result(PATIENCE_S)
        again = orchestrator.start(stage.assistant, messages="fetch", key="mine")
        gate.wait_until_reached()
        gate.open.set()
        assert holder.result(PATIENCE_S).status == again.result(PATIENCE_S).status == "completed"
        last = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        assert last.result(PATIENCE_S).status == "completed"


def test_a_run_whose_predecessor_failed_gets_its_turn(stage: Stage) -> None:
    thread_id = stage.thread()
    with stage.orchestrator() as orchestrator:
        failing = orchestrator.start("asst_nobody", thread_id=thread_id, messages="hello")
        waiting = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        assert failing.future.exception(PATIENCE_S) is not None
        assert waiting.result(PATIENCE_S).status == "completed"


def test_reject_names_the_run_that_holds_the_thread_and_sends_nothing(stage: Stage) -> None:
    gate = Gate()
    thread_id = stage.thread()
    with stage.orchestrator(tools=[gate.fetch], on_busy_thread="reject") as orchestrator:
        first = orchestrator.start(stage.assistant, thread_id=thread_id, messages="fetch")
        gate.wait_until_reached()
        second = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        with pytest.raises(
            ThreadBusy, match=f"thread {thread_id} is held by run '{first.run_id}'"
        ) as refused:
            second.result(PATIENCE_S)
        gate.open.set()
        assert first.result(PATIENCE_S).status == "completed"
        third = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        assert third.result(PATIENCE_S).status == "completed"
    assert (refused.value.thread_id, refused.value.run_id) == (thread_id, first.run_id)
    assert "wait for that run, or use 'enqueue' or 'interrupt'" in str(refused.value)
    assert stage.requests(thread_id, "POST").count("POST /runs") == 2


def test_a_run_on_a_thread_that_another_has_made_waits_for_it(stage: Stage) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        first = orchestrator.start(stage.assistant, messages="fetch")
        gate.wait_until_reached()
        second = orchestrator.start(stage.assistant, thread_id=first.thread_id, messages="hello")
        wait_until(lambda: second.snapshot().waits_for is WaitsFor.THREAD)
        gate.open.set()
        assert second.result(PATIENCE_S).status == "completed"


def test_a_foreign_run_on_the_thread_is_named_and_how_to_take_it_over(stage: Stage) -> None:
    thread_id = stage.thread()
    foreign = stage.run_id("fetch", thread_id)
    with stage.orchestrator(on_busy_thread="reject") as orchestrator:
        run = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        with pytest.raises(ThreadBusy, match=f"thread {thread_id} is held by run {foreign}") as busy:
            run.result(PATIENCE_S)
        assert (busy.value.thread_id, busy.value.run_id) == (thread_id, foreign)
        assert f"adopt({thread_id!r}, {foreign!r})" in str(busy.value)
    stage.client.cancel_run(thread_id, foreign)


def test_a_foreign_run_on_the_thread_is_waited_for(stage: Stage) -> None:
    thread_id = stage.thread()
    foreign = stage.run_id("fetch", thread_id)
    with stage.orchestrator(tools=[Gate().fetch]) as orchestrator:
        run = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        blocked = next(event for event in run.events() if isinstance(event, Notice))
        assert (blocked.event, foreign in (blocked.detail or "")) == ("run.blocked", True)
        stage.client.cancel_run(thread_id, foreign)
        assert run.result(PATIENCE_S).text == "hello to you"
    assert {made.id for made in stage.runs(thread_id)} == {foreign, run.run_id}


def test_a_foreign_run_can_be_interrupted(stage: Stage) -> None:
    thread_id = stage.thread()
    foreign = stage.run_id("dawdle", thread_id)
    with stage.orchestrator(on_busy_thread="interrupt", interrupt_foreign=True) as orchestrator:
        run = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        assert run.result(PATIENCE_S).text == "hello to you"
    assert stage.run(thread_id, foreign).status == "cancelled"
