"""How orchestrators end: by close, drain, the end of a block or an exception; nothing is left then."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from pykka import ActorRegistry
from stage import PATIENCE_S, Gate, Stage, active_runs, assert_nothing_left, our_threads, wait_until

from orchestrator import RunHandle
from orchestrator.errors import OrchestratorClosed
from orchestrator.runs.record import Phase

if TYPE_CHECKING:
    from orchestrator import Orchestrator

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def streaming(orchestrator: Orchestrator, stage: Stage, count: int) -> list[RunHandle]:
    """Start runs that would take a minute, and wait until the server works on them."""
    runs = [orchestrator.start(stage.assistant, messages="dawdle") for _ in range(count)]
    wait_until(lambda: all(run.status == "in_progress" for run in runs))
    return runs


def test_close_cancels_the_runs_by_default_and_waits_for_their_end(stage: Stage) -> None:
    orchestrator = stage.orchestrator()
    runs = streaming(orchestrator, stage, 3)
    assert orchestrator.close() == []
    assert [run.result().status for run in runs] == ["cancelled"] * 3
    assert active_runs(stage, *(run.thread_id for run in runs)) == []


def test_close_with_detach_leaves_the_runs_to_the_server_and_names_them(stage: Stage) -> None:
    orchestrator = stage.orchestrator()
    runs = streaming(orchestrator, stage, 2)
    assert orchestrator.close(on_active="detach") == runs
    for run in runs:
        with pytest.raises(OrchestratorClosed, match=f"run {run.run_id} on thread {run.thread_id} was left"):
            run.result()
    assert len(active_runs(stage, *(run.thread_id for run in runs))) == 2
    with stage.orchestrator() as other:
        adopted = [other.adopt(str(run.thread_id), str(run.run_id)) for run in runs]
        for run in adopted:
            run.cancel()
        assert {run.result(PATIENCE_S).status for run in adopted} == {"cancelled"}


def test_close_with_detach_does_not_name_runs_that_ended_before(stage: Stage) -> None:
    orchestrator = stage.orchestrator()
    over = orchestrator.start(stage.assistant, messages="hello")
    over.result(PATIENCE_S)
    assert orchestrator.close(on_active="detach") == []


def test_close_with_wait_lets_the_runs_complete(stage: Stage) -> None:
    gate = Gate()
    orchestrator = stage.orchestrator(tools=[gate.fetch])
    run = orchestrator.start(stage.assistant, messages="fetch")
    gate.wait_until_reached()
    closing = threading.Thread(target=lambda: orchestrator.close(on_active="wait"))
    closing.start()
    assert not run.done()
    gate.open.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert run.result().text == "got it"


def test_close_lets_go_after_its_timeout_with_the_ids(stage: Stage) -> None:
    orchestrator = stage.orchestrator()
    (run,) = streaming(orchestrator, stage, 1)
    began = time.monotonic()
    assert orchestrator.close(on_active="wait", timeout_s=0.05) == [run]
    assert time.monotonic() - began < 5
    with pytest.raises(
        OrchestratorClosed, match=f"before run {run.run_id!r} on thread {run.thread_id}"
    ) as closed:
        run.result()
    assert "cancel it, or take it up again with adopt(thread_id, run_id)" in str(closed.value)
    stage.client.cancel_run(str(run.thread_id), str(run.run_id))


def test_close_may_be_called_again_and_from_several_threads(stage: Stage) -> None:
    orchestrator = stage.orchestrator()
    streaming(orchestrator, stage, 1)
    threads = [threading.Thread(target=orchestrator.close) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert orchestrator.close() == []
    assert_nothing_left(stage.server.base_url, ours=1)


def test_a_close_that_cancels_cuts_one_short_that_waits_and_both_return_when_all_is_gone(
    stage: Stage,
) -> None:
    orchestrator = stage.orchestrator()
    runs = streaming(orchestrator, stage, 2)
    waiting = threading.Thread(target=orchestrator.close, kwargs={"on_active": "wait"})
    waiting.start()
    wait_until(lambda: orchestrator._roster._fleet is None)
    assert orchestrator.close(on_active="cancel") == []
    assert_nothing_left(stage.server.base_url, ours=1)
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()
    assert [run.result().status for run in runs] == ["cancelled"] * 2


def test_a_callback_that_exits_takes_no_other_future_along(stage: Stage) -> None:
    def leave(_: object) -> None:
        raise SystemExit

    with stage.orchestrator() as orchestrator:
        first = orchestrator.start(stage.assistant, messages="hello")
        first.future.add_done_callback(leave)
        first.result(PATIENCE_S)
        second = orchestrator.start(stage.assistant, messages="hello")
        assert second.future.result(PATIENCE_S).text == "hello to you"


def test_runs_that_start_while_it_closes_are_refused_or_ended_and_none_is_lost(stage: Stage) -> None:
    orchestrator = stage.orchestrator()
    runs: list[RunHandle] = []
    first = threading.Event()

    def start() -> None:
        try:
            while True:
                runs.append(orchestrator.start(stage.assistant, messages="dawdle"))
                first.set()
        except OrchestratorClosed:
            return

    starting = [threading.Thread(target=start) for _ in range(3)]
    for thread in starting:
        thread.start()
    assert first.wait(PATIENCE_S)
    assert orchestrator.close(timeout_s=PATIENCE_S) == []
    for thread in starting:
        thread.join(PATIENCE_S)
    assert {run.result(0).status for run in runs} == {"cancelled"}
    assert active_runs(stage, *(run.thread_id for run in runs if run.run_id is not None)) == []


def test_leaving_the_block_on_an_exception_cancels_the_runs(stage: Stage) -> None:
    runs: list[RunHandle] = []

    def leave() -> None:
        with stage.orchestrator() as orchestrator:
            runs.extend(streaming(orchestrator, stage, 2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave()
    assert [run.result().status for run in runs] == ["cancelled"] * 2


def test_leaving_an_async_block_waits_and_on_an_exception_cancels(stage: Stage) -> None:
    runs: list[RunHandle] = []

    async def main() -> None:
        async with stage.orchestrator() as orchestrator:
            run = orchestrator.start(stage.assistant, messages="hello")
        assert (await run).text == "hello to you"
        with pytest.raises(ZeroDivisionError):
            await leave()
        assert (await runs[0]).status == "cancelled"

    async def leave() -> None:
        async with stage.orchestrator() as orchestrator:
            runs.append(orchestrator.start(stage.assistant, messages="dawdle"))
            raise ZeroDivisionError

    asyncio.run(main())


def test_a_task_that_is_cancelled_while_its_block_waits_cancels_the_runs(stage: Stage) -> None:
    runs: list[RunHandle] = []

    async def main() -> None:
        async with stage.orchestrator() as orchestrator:
            runs.append(orchestrator.start(stage.assistant, messages="dawdle"))

    async def cancelled() -> None:
        task = asyncio.create_task(main())
        await asyncio.to_thread(wait_until, lambda: bool(runs) and runs[0].status == "in_progress")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    began = time.monotonic()
    asyncio.run(cancelled())
    assert time.monotonic() - began < 10
    assert runs[0].result().status == "cancelled"


def test_an_async_block_is_left_although_every_thread_of_its_loops_executor_waits_for_its_runs(
    stage: Stage,
) -> None:
    runs: list[RunHandle] = []

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        async with stage.orchestrator(deadline_s=5 * PATIENCE_S) as orchestrator:
            runs.append(orchestrator.start(stage.assistant, messages="dawdle"))
            asyncio.get_running_loop().run_in_executor(None, runs[0].result)
            raise ZeroDivisionError

    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert time.monotonic() - began < PATIENCE_S
    assert runs[0].result().status == "cancelled"


def test_drain_lets_runs_end_and_leaves_the_rest_to_the_server_with_their_ids(stage: Stage) -> None:
    gate = Gate(opened=True)
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        short = [orchestrator.start(stage.assistant, messages="fetch") for _ in range(3)]
        long = streaming(orchestrator, stage, 2)
        assert orchestrator.drain(0.5) == long
        with pytest.raises(OrchestratorClosed):
            orchestrator.start(stage.assistant, messages="hello")
        assert orchestrator.runs() == []
    assert [run.result(0).text for run in short] == ["got it"] * 3
    for run in long:
        with pytest.raises(
            OrchestratorClosed, match=f"{run.run_id} on thread {run.thread_id} was left to the server"
        ):
            run.result(0)
        assert stage.run(run.thread_id, run.run_id).status == "in_progress"
        stage.client.cancel_run(str(run.thread_id), str(run.run_id))


def test_drain_returns_as_soon_as_every_run_has_ended(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello")
        began = time.monotonic()
        assert orchestrator.drain(60) == []
        assert time.monotonic() - began < 10
        assert run.done()


def test_detaching_a_handle_leaves_its_run_alone(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        (run,) = streaming(orchestrator, stage, 1)
        run.detach()
        run.detach()
        with pytest.raises(OrchestratorClosed, match="take it up again with adopt"):
            run.result(PATIENCE_S)
        assert stage.run(run.thread_id, run.run_id).status == "in_progress"
        again = orchestrator.adopt(str(run.thread_id), str(run.run_id))
        again.cancel()
        assert again.result(PATIENCE_S).status == "cancelled"


def test_close_takes_a_bounded_time_whatever_hangs_and_whoever_calls_it(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Told at once, because each of these stories takes the time that a teardown may take."""
    gate = Gate()
    stuck = stage.orchestrator(tools=[gate.fetch])
    hanging = stuck.start(stage.assistant, messages="fetch")
    gate.wait_until_reached()
    closed = threading.Semaphore(0)

    def fetch() -> str:
        by_tool.close(timeout_s=1)
        closed.release()
        return "it"

    def consume(_: object) -> None:
        by_consumer.close()
        closed.release()

    def call_back(_: object) -> None:
        by_callback.close()
        closed.release()

    by_tool, by_consumer, by_callback = (stage.orchestrator(tools=[fetch]) for _ in range(3))
    began = time.monotonic()
    calling = by_tool.start(stage.assistant, messages="fetch")
    by_consumer.start(stage.assistant, messages="hello", stream_to=consume)
    by_callback.start(stage.assistant, messages="hello").future.add_done_callback(call_back)
    assert stuck.close() == []
    for _ in range(3):
        assert closed.acquire(timeout=PATIENCE_S)
    assert time.monotonic() - began < 12
    assert hanging.result().status == calling.result().status == "cancelled"
    assert "orchestrator.tools_still_running tools=['fetch']" in caplog.text
    wait_until(lambda: our_threads() == ["orchestrator-tool-1"])
    gate.open.set()
    wait_until(lambda: our_threads() == [])


def test_stopping_every_pykka_actor_of_the_process_ends_the_runs_with_their_ids(stage: Stage) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        runs = [orchestrator.start(stage.assistant, messages="fetch") for _ in range(3)]
        for _ in runs:
            gate.wait_until_reached()
        ActorRegistry.stop_all(timeout=PATIENCE_S)
        for run in runs:
            with pytest.raises(
                OrchestratorClosed, match=f"before run {run.run_id!r} on thread {run.thread_id}"
            ):
                run.result(PATIENCE_S)
            assert run.snapshot().phase is Phase.FINISHED
            run.cancel()
        with pytest.raises(
            OrchestratorClosed, match=r"supervisor has ended, .*: close it and make a new one"
        ):
            orchestrator.start(stage.assistant, messages="hello")
        gate.open.set()


def test_two_orchestrators_share_the_loop_thread_and_the_last_one_ends_it(stage: Stage) -> None:
    one, other = stage.orchestrator(), stage.orchestrator()
    streaming(one, stage, 1)
    streaming(other, stage, 1)
    assert our_threads().count("orchestrator-actors") == 1
    one.close()
    assert our_threads().count("orchestrator-actors") == 1
    other.close()
    assert our_threads() == []
