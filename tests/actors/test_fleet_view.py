"""What snapshots say of runs that are not over: above all, in one word, what each of them waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from between import UNAVAILABLE, between
from crew import Killing, crewed, poison
from stage import PATIENCE_S, Gate, Stage, wait_until

from orchestrator import RestartPolicy
from orchestrator.errors import RunError
from orchestrator.runs.effects import CancelRun
from orchestrator.runs.machine import WaitsFor

if TYPE_CHECKING:
    from orchestrator import RunHandle


def waits(run: RunHandle) -> tuple[str, str]:
    snapshot = run.snapshot()
    return snapshot.waits_for, snapshot.waits_detail


def test_a_run_waits_for_admission_then_for_the_server_then_for_its_tool_and_then_for_nothing(
    stage: Stage,
) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch], max_concurrent_runs=1) as orchestrator:
        dawdling = orchestrator.start(stage.assistant, messages="dawdle")
        run = orchestrator.start(stage.assistant, messages="fetch")
        wait_until(lambda: dawdling.status == "in_progress")
        assert waits(dawdling) == (WaitsFor.SERVER, "the run's next step")
        assert waits(run) == (WaitsFor.ADMISSION, "a place among the runs at work")
        assert run.snapshot().run_ids == ()
        dawdling.cancel()
        gate.wait_until_reached()
        wait_until(lambda: run.snapshot().waits_for == "tool")
        assert waits(run) == (WaitsFor.TOOL, "fetch")
        assert run.snapshot().run_ids == (run.run_id,)
        gate.open.set()
        run.result(PATIENCE_S)
    assert waits(run) == (WaitsFor.NOTHING, "it is over")
    assert (run.snapshot().attempts, run.snapshot().run_ids) == (0, (run.run_id,))


def test_a_run_that_waits_for_its_thread_says_whose_run_has_it_as_it_passes_on(stage: Stage) -> None:
    gate = Gate()
    thread_id = stage.thread()
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        first, second = (
            orchestrator.start(stage.assistant, thread_id=thread_id, messages="fetch") for _ in range(2)
        )
        third = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello", key="third")
        fourth = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        gate.wait_until_reached()
        assert waits(fourth) == (WaitsFor.THREAD, f"thread {thread_id}, which run {first.run_id} has")
        first.cancel()
        gate.wait_until_reached()
        assert waits(second) == (WaitsFor.TOOL, "fetch")
        assert waits(fourth) == (WaitsFor.THREAD, f"thread {thread_id}, which run {second.run_id} has")
        third.cancel()
        third.result(PATIENCE_S)
        assert waits(third) == (WaitsFor.NOTHING, "it is over")
        assert waits(fourth) == (WaitsFor.THREAD, f"thread {thread_id}, which run {second.run_id} has")
        gate.open.set()
        assert fourth.result(PATIENCE_S).status == "completed"


def test_a_run_whose_thread_is_had_by_one_without_an_id_yet_names_its_key(stage: Stage) -> None:
    gate = Gate()
    thread_id = stage.thread()
    with stage.orchestrator(tools=[gate.fetch], max_concurrent_runs=1) as orchestrator:
        orchestrator.start(stage.assistant, messages="fetch")
        gate.wait_until_reached()
        orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello", key="before")
        run = orchestrator.start(stage.assistant, thread_id=thread_id, messages="hello")
        wait_until(lambda: run.snapshot().waits_for is WaitsFor.THREAD)
        assert waits(run) == (WaitsFor.THREAD, f"thread {thread_id}, which run 'before' has")
        gate.open.set()
        assert run.result(PATIENCE_S).status == "completed"


def test_a_run_whose_looks_fail_waits_for_a_pause_and_counts_its_attempts(stage: Stage) -> None:
    def meets(method: str, path: str) -> bytes | None:
        return UNAVAILABLE if down and method == "GET" else None

    down = False
    with between(stage.server.base_url) as middleman:
        middleman.meets = meets
        with stage.orchestrator(base_url=middleman.base_url, watch="poll") as orchestrator:
            run = orchestrator.start(stage.assistant, messages="dawdle")
            wait_until(lambda: run.status == "in_progress")
            down = True
            wait_until(lambda: run.snapshot().attempts > 3 and run.snapshot().waits_for == "backoff")
            word, detail = waits(run)
            assert (word, detail.startswith("the next attempt, after ")) == ("backoff", True)
            down = False
            wait_until(lambda: run.snapshot().attempts <= 1)
            wait_until(lambda: waits(run) == (WaitsFor.SERVER, "the run's next step"))
            run.cancel()
            assert run.result(PATIENCE_S).status == "cancelled"


def test_between_two_incarnations_a_run_waits_for_its_restart_and_not_for_what_the_dead_one_did(
    stage: Stage,
) -> None:
    gate = Gate()
    with crewed(stage, gate.fetch, restart=RestartPolicy(backoff_s=0.5)) as crew:
        run = crew.start("fetch")
        gate.wait_until_reached()
        wait_until(lambda: run.snapshot().waits_for is WaitsFor.TOOL)
        crew.tell(run, poison())
        wait_until(lambda: run.snapshot().restarts == 1)
        assert waits(run) == (WaitsFor.BACKOFF, "its actor died, restart in 0.5 s")
        wait_until(lambda: waits(run) == (WaitsFor.TOOL, "fetch"))
        gate.open.set()
        assert run.result(PATIENCE_S).text == "got it"


def test_a_run_that_is_given_up_waits_for_its_cancel(stage: Stage) -> None:
    seen: list[tuple[str, str]] = []
    runs: list[RunHandle] = []

    class Looking(Killing):
        async def perform(self, effect, report):  # type: ignore[no-untyped-def]  # as the one it is put around
            if isinstance(effect, CancelRun):
                seen.append(waits(runs[0]))
            await super().perform(effect, report)

    with crewed(stage, restart=RestartPolicy(max_restarts=0)) as crew:
        runs.append(crew.start("dawdle", lambda backend: Looking(backend, kind=type(None))))  # type: ignore[arg-type]  # kills nobody
        wait_until(lambda: runs[0].status == "in_progress")
        crew.tell(runs[0], poison())
        with pytest.raises(RunError, match="was given up"):
            runs[0].result(PATIENCE_S)
    assert seen == [(WaitsFor.SERVER, "its actor died too often, the run is being cancelled")]
