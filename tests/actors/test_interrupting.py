"""A run that interrupts its thread: whoever has it or waits for it is cancelled, then it takes the thread."""

from __future__ import annotations

import threading

import pytest
from stage import PATIENCE_S, Gate, Stage, wait_until

from orchestrator import ToolContext
from orchestrator.errors import OrchestratorClosed, ThreadBusy
from orchestrator.runs.machine import WaitsFor

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def test_of_interrupts_in_quick_succession_only_the_last_survives(stage: Stage) -> None:
    thread_id = stage.thread()
    with stage.orchestrator() as orchestrator:
        first = orchestrator.start(stage.assistant, thread_id=thread_id, messages="dawdle")
        wait_until(lambda: first.status == "in_progress")
        second, third = (
            orchestrator.start(
                stage.assistant, thread_id=thread_id, messages="hello", on_busy_thread="interrupt"
            )
            for _ in range(2)
        )
        assert third.result(PATIENCE_S).text == "hello to you"
        assert (first.result(PATIENCE_S).status, first.run_id is not None) == ("cancelled", True)
        assert (second.result(PATIENCE_S).status, second.run_id) == ("cancelled", None)
    assert stage.requests(thread_id, "POST") == [
        "POST /runs",
        f"POST /runs/{first.run_id}/cancel",
        "POST /runs",
    ]


def test_many_interrupts_at_once_leave_the_last_run_and_the_others_end_as_cancelled(stage: Stage) -> None:
    thread_id = stage.thread()
    with stage.orchestrator(on_busy_thread="interrupt") as orchestrator:
        runs = [
            orchestrator.start(stage.assistant, thread_id=thread_id, messages=text)
            for text in ["dawdle"] * 20 + ["hello"]
        ]
        statuses = [run.result(PATIENCE_S).status for run in runs]
    assert statuses == ["cancelled"] * 20 + ["completed"]
    assert [run.id for run in stage.runs(thread_id) if run.status == "completed"] == [runs[-1].run_id]


def test_an_interrupt_stops_the_tools_of_the_run_that_has_the_thread(stage: Stage) -> None:
    stopped: list[bool] = []
    reached = threading.Event()

    def fetch(context: ToolContext) -> str:
        reached.set()
        stopped.append(context.stop.wait(PATIENCE_S))
        return "too late"

    thread_id = stage.thread()
    with stage.orchestrator(tools=[fetch]) as orchestrator:
        first = orchestrator.start(stage.assistant, thread_id=thread_id, messages="fetch")
        assert reached.wait(PATIENCE_S)
        second = orchestrator.start(
            stage.assistant, thread_id=thread_id, messages="hello", on_busy_thread="interrupt"
        )
        assert second.result(PATIENCE_S).status == "completed"
        assert first.result(PATIENCE_S).status == "cancelled"
    assert stopped == [True]


def test_what_a_start_says_counts_before_what_the_orchestrator_says(stage: Stage) -> None:
    gate = Gate()
    thread_id = stage.thread()
    with stage.orchestrator(tools=[gate.fetch], on_busy_thread="interrupt") as orchestrator:
        first = orchestrator.start(stage.assistant, thread_id=thread_id, messages="fetch")
        gate.wait_until_reached()
        waiting = orchestrator.start(
            stage.assistant, thread_id=thread_id, messages="hello", on_busy_thread="enqueue"
        )
        refused = orchestrator.start(
            stage.assistant, thread_id=thread_id, messages="hello", on_busy_thread="reject"
        )
        with pytest.raises(ThreadBusy):
            refused.result(PATIENCE_S)
        gate.open.set()
        assert first.result(PATIENCE_S).status == waiting.result(PATIENCE_S).status == "completed"
        with pytest.raises(ValueError, match="on_busy_thread must be one of 'enqueue', 'reject'"):
            orchestrator.start(stage.assistant, on_busy_thread="push")  # type: ignore[arg-type]  # the point


def test_an_interrupt_of_a_run_on_another_thread_or_on_none_disturbs_nobody(stage: Stage) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch], on_busy_thread="interrupt") as orchestrator:
        held = orchestrator.start(stage.assistant, thread_id=stage.thread(), messages="fetch")
        gate.wait_until_reached()
        others = [
            orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
            for thread_id in (stage.thread(), None)
        ]
        assert {run.result(PATIENCE_S).status for run in others} == {"completed"}
        gate.open.set()
        assert held.result(PATIENCE_S).status == "completed"


def test_an_adopted_run_waits_for_no_other_on_its_thread_and_later_ones_wait_for_it(stage: Stage) -> None:
    gate, thread_id = Gate(), stage.thread()
    foreign = stage.run_id("fetch", thread_id)
    with stage.orchestrator(tools=[gate.fetch], max_concurrent_runs=1) as orchestrator:
        busy = orchestrator.start(stage.assistant, messages="fetch")
        gate.wait_until_reached()
        before = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        adopted = orchestrator.adopt(thread_id, foreign)
        wait_until(lambda: adopted.snapshot().waits_detail == "a place among the runs at work")
        before.cancel()
        assert before.result(PATIENCE_S).run_id is None
        after = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        wait_until(lambda: after.snapshot().waits_for is WaitsFor.THREAD)
        assert after.snapshot().waits_detail == f"thread {thread_id}, which run {foreign} has"
        gate.open.set()
        assert busy.result(PATIENCE_S).text == adopted.result(PATIENCE_S).text == "got it"
        assert after.result(PATIENCE_S).text == "hello to you"


def test_adopting_under_reject_refuses_nothing(stage: Stage) -> None:
    gate, thread_id = Gate(opened=True), stage.thread()
    foreign = stage.run_id("fetch", thread_id)
    with stage.orchestrator(
        tools=[gate.fetch], max_concurrent_runs=1, on_busy_thread="reject"
    ) as orchestrator:
        busy = orchestrator.start(stage.assistant, messages="dawdle")
        waiting = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        adopted = orchestrator.adopt(thread_id, foreign)
        waiting.cancel()
        busy.cancel()
        assert adopted.result(PATIENCE_S).text == "got it"


def test_adopting_a_run_that_is_conducted_here_waits_for_its_end_and_calls_no_tool_twice(
    stage: Stage,
) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fetch")
        gate.wait_until_reached()
        again = orchestrator.adopt(str(run.thread_id), str(run.run_id))
        wait_until(lambda: again.snapshot().waits_for is WaitsFor.THREAD)
        gate.open.set()
        assert run.result(PATIENCE_S).text == again.result(PATIENCE_S).text == "got it"
    assert gate.calls == 1


def test_a_run_that_is_let_go_of_passes_to_who_adopts_it_before_those_who_wait_for_the_thread(
    stage: Stage,
) -> None:
    thread_id = stage.thread()
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, thread_id=thread_id, messages="dawdle")
        wait_until(lambda: run.status == "in_progress")
        waiting = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        again = orchestrator.adopt(thread_id, str(run.run_id))
        run.detach()
        with pytest.raises(OrchestratorClosed):
            run.result(PATIENCE_S)
        wait_until(lambda: again.status == "in_progress")
        assert waiting.snapshot().waits_detail == f"thread {thread_id}, which run {run.run_id} has"
        again.cancel()
        assert again.result(PATIENCE_S).status == "cancelled"
        assert waiting.result(PATIENCE_S).status == "completed"
