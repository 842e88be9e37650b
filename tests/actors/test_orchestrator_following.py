"""Who hears of a run: readers and waiters on threads and loops, callables, actors, futures."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import as_completed
from typing import TYPE_CHECKING, Any

import pykka
import pytest
from stage import PATIENCE_S, Gate, Stage

from orchestrator import RunResult
from orchestrator.protocol.events import RunEvent

if TYPE_CHECKING:
    from orchestrator import Orchestrator
    from orchestrator.runs.result import StreamedEvent

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def names(events: list[StreamedEvent]) -> list[str | None]:
    return [event.event for event in events]


def test_events_are_one_stream_across_tool_rounds_and_carry_the_run_id(stage: Stage) -> None:
    def fetch(word: str) -> str:
        return word

    def other(word: str) -> str:
        return word

    with stage.orchestrator(tools=[fetch, other]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="twice")
        events = list(run.events())
        assert run.done()
        assert list(run.events()) == events
    seen = names(events)
    assert {event.run_id for event in events} == {run.run_id}
    assert [name for name in seen if name and name.startswith("tool.")] == [
        "tool.started",
        "tool.finished",
    ] * 2
    assert seen[0] == "thread.run.created"
    assert seen[-1] == "thread.run.completed"
    assert seen.count("thread.run.completed") == 1
    assert seen.index("thread.run.requires_action") < seen.index("tool.started")


def test_the_events_of_a_run_hold_its_definitions_once_between_them(stage: Stage) -> None:
    with stage.orchestrator(tools=[Gate(opened=True).fetch]) as orchestrator:
        events = list(orchestrator.start(stage.assistant, messages="fetch", instructions="Go.").events())
    runs = [event.data for event in events if isinstance(event, RunEvent)]
    assert len(runs) > 5
    assert runs[0].tools
    assert len({id(run.tools) for run in runs}) == len({id(run.instructions) for run in runs}) == 1
    assert [run.status for run in runs][-1] == "completed"


def test_a_run_can_be_awaited_and_followed_on_the_users_loop(stage: Stage) -> None:
    async def main() -> tuple[RunResult, list[StreamedEvent]]:
        async with stage.orchestrator() as orchestrator:
            run = orchestrator.start(stage.assistant, messages="hello")
            events = [event async for event in run]
            return await run, events

    result, events = asyncio.run(main())
    assert result.text == "hello to you"
    assert names(events)[-1] == "thread.run.completed"


def test_two_loops_on_two_threads_may_wait_for_the_same_run(stage: Stage) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        run = orchestrator.start(stage.assistant, messages="fetch")
        texts: list[str] = []

        async def wait() -> None:
            count = len([event async for event in run])
            texts.append(f"{(await run).text} after {count} events")

        threads = [threading.Thread(target=lambda: asyncio.run(wait())) for _ in range(2)]
        for thread in threads:
            thread.start()
        gate.open.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert len(texts) == 2
    assert len(set(texts)) == 1


def test_one_orchestrator_serves_one_loop_after_the_other(stage: Stage) -> None:
    async def text(orchestrator: Orchestrator) -> str:
        return (await orchestrator.start(stage.assistant, messages="hello")).text

    async def within() -> str:
        async with stage.orchestrator() as orchestrator:
            return await text(orchestrator)

    with stage.orchestrator() as orchestrator:
        texts = [asyncio.run(text(orchestrator)) for _ in range(3)]
    assert texts == ["hello to you"] * 3
    assert [asyncio.run(within()) for _ in range(2)] == ["hello to you"] * 2


def test_cancelling_the_waiter_leaves_the_run_alone(stage: Stage) -> None:
    gate = Gate()

    async def main() -> str:
        async with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
            run = orchestrator.start(stage.assistant, messages="fetch")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_result(run), 0.01)
            gate.open.set()
            return (await run).text

    async def _result(run: Any) -> Any:
        return await run

    assert asyncio.run(main()) == "got it"


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        ("result", "use `await handle`"),
        ("events", "use `async for event in handle`"),
    ],
)
def test_a_call_that_would_block_a_running_loop_raises_with_the_hint(
    stage: Stage, call: str, hint: str
) -> None:
    async def main() -> None:
        async with stage.orchestrator() as orchestrator:
            run = orchestrator.start(stage.assistant, messages="hello")
            with pytest.raises(RuntimeError, match=hint):
                getattr(run, call)()
            with pytest.raises(RuntimeError, match="use `async with`"):
                orchestrator.close()
            with pytest.raises(RuntimeError, match=r"asyncio\.to_thread"):
                orchestrator.drain(1)
            with pytest.raises(RuntimeError, match=r"asyncio\.to_thread"):
                orchestrator.sweep("thread_1", orphans="adopt")

    asyncio.run(main())


def test_a_plain_with_on_a_running_loop_raises_on_entry(stage: Stage) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="use `async with`"), stage.orchestrator():
            pass

    asyncio.run(main())


def test_a_callable_is_told_every_event_in_order_however_slow_it_is(stage: Stage) -> None:
    told: list[StreamedEvent] = []
    slow = threading.Event()

    def consume(event: StreamedEvent) -> None:
        slow.wait(0.002)
        told.append(event)

    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello", stream_to=consume)
        run.result(PATIENCE_S)
        events = list(run.events())
    assert told == events


def test_a_consumer_that_hangs_delays_neither_its_run_nor_its_result(stage: Stage) -> None:
    hanging = threading.Event()
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(
            stage.assistant, messages="hello", stream_to=lambda _: hanging.wait(PATIENCE_S)
        )
        assert run.result(PATIENCE_S).text == "hello to you"
        assert not hanging.is_set()
        hanging.set()


def test_a_consumer_that_raises_is_told_no_more_and_harms_nobody(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str | None] = []

    def consume(event: StreamedEvent) -> None:
        told.append(event.event)
        raise SystemExit("a consumer's own business")

    with stage.orchestrator() as orchestrator:
        raising = orchestrator.start(stage.assistant, messages="hello", stream_to=consume, key="raising")
        assert raising.result(PATIENCE_S).text == "hello to you"
        beside: list[StreamedEvent] = []
        orchestrator.start(stage.assistant, messages="hello", stream_to=beside.append).result(PATIENCE_S)
    assert told == ["thread.run.created"]
    assert names(beside)[-1] == "thread.run.completed"
    assert "run.consumer_failed run_key='raising'" in caplog.text


def test_an_actor_is_told_every_event(stage: Stage) -> None:
    class Listener(pykka.ThreadingActor):
        def __init__(self) -> None:
            super().__init__()
            self.told: list[Any] = []

        def on_receive(self, message: Any) -> Any:
            if message == "what were you told?":
                return self.told
            return self.told.append(message)

    listener = Listener.start()
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello", stream_to=listener)
        run.result(PATIENCE_S)
    assert listener.ask("what were you told?", timeout=PATIENCE_S) == list(run.events())
    listener.stop(timeout=PATIENCE_S)


def test_an_actor_that_died_is_told_nothing_and_the_run_goes_on(stage: Stage) -> None:
    listener = pykka.ThreadingActor.start()
    listener.stop(timeout=PATIENCE_S)
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello", stream_to=listener)
        assert run.result(PATIENCE_S).text == "hello to you"


def test_a_reference_that_cannot_be_told_is_told_no_more_and_the_run_goes_on(stage: Stage) -> None:
    class Broken(pykka.ActorRef[Any]):
        asked = 0

        def tell(self, message: Any) -> None:
            Broken.asked += 1
            raise LookupError(message)

    broken = Broken(pykka.ThreadingActor())
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello", stream_to=broken)
        assert run.result(PATIENCE_S).text == "hello to you"
    assert (Broken.asked, run.snapshot().restarts) == (1, 0)


def test_futures_can_be_waited_for_as_they_complete(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        futures = {orchestrator.start(stage.assistant, messages="hello").future for _ in range(5)}
        done = {
            future for future in as_completed(futures, PATIENCE_S) if future.result().text == "hello to you"
        }
    assert done == futures


def test_a_future_cannot_be_cancelled_and_is_the_same_each_time(stage: Stage) -> None:
    with stage.orchestrator() as orchestrator:
        run = orchestrator.start(stage.assistant, messages="hello")
        assert run.future is run.future
        assert not run.future.cancel()
        assert run.future.result(PATIENCE_S) is run.result(PATIENCE_S)
    assert run.future.done()


def test_a_callback_that_blocks_on_another_run_blocks_nobody_else(stage: Stage) -> None:
    gate = Gate()
    with stage.orchestrator(tools=[gate.fetch]) as orchestrator:
        second = orchestrator.start(stage.assistant, messages="fetch")
        first = orchestrator.start(stage.assistant, messages="hello")
        texts: list[str] = []
        first.future.add_done_callback(lambda _: texts.append(second.result(PATIENCE_S).text))
        first.result(PATIENCE_S)
        gate.open.set()
        assert second.result(PATIENCE_S).text == "got it"
    assert texts == ["got it"]
