"""`stream_to` on both clients: who is told what, on which thread, and that it does the stream no harm."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any

import pykka
import pytest
from drivers import AsyncDriver, both, driven
from faulty_server import DONE, FaultyServer, chunks, event, failure, reply, stall
from test_streams import COMPLETED, CREATED, DELTA, QUEUED, THREAD_CREATED, WHOLE, names, partial, run

from orchestrator.client import AsyncThreadsClient, ThreadsClient
from orchestrator.errors import APIConnectionError, APITimeout
from orchestrator.protocol.events import ErrorEvent, MessageDeltaEvent, RunEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivers import Driver

    from orchestrator.protocol.events import StreamEvent

STREAMS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "stream_run": (("thread_1",), {"assistant_id": "asst_1"}),
    "stream_thread_and_run": ((), {"assistant_id": "asst_1"}),
    "stream_tool_outputs": (("thread_1", "run_1"), {"tool_outputs": []}),
}
TOLD = ["thread.run.created", "thread.run.queued", "thread.message.delta", "thread.run.completed", "done"]


def until(
    driver: Driver, stream_to: Any, count: int, *, fail: bool = False, close: bool = False
) -> list[str]:
    """Open a stream, iterate some events, and leave the block: normally, failing, or after closing it."""

    async def leave(client: AsyncThreadsClient) -> list[str]:
        async with client.stream_run("thread_1", assistant_id="asst_1", stream_to=stream_to) as stream:
            seen = [(await anext(stream)).event for _ in range(count)]
            if fail:
                raise LookupError("the body's own")
            if close:
                await stream.aclose()
        return seen

    if isinstance(driver, AsyncDriver):
        return driver.runner.run(leave(driver.client))
    with driver.client.stream_run("thread_1", assistant_id="asst_1", stream_to=stream_to) as stream:
        seen = [next(stream).event for _ in range(count)]
        if fail:
            raise LookupError("the body's own")
        if close:
            stream.close()
    return seen


class Listener(pykka.ThreadingActor):
    """Keeps what it is told, and says when there is enough."""

    def __init__(self, told: list[StreamEvent], enough: threading.Event) -> None:
        super().__init__()
        self.told, self.enough = told, enough

    def on_receive(self, message: Any) -> None:
        self.told.append(message)
        if message.event == "done":
            self.enough.set()


@pytest.fixture
def listener() -> Iterator[tuple[pykka.ActorRef[Any], list[StreamEvent], threading.Event]]:
    told: list[StreamEvent] = []
    enough = threading.Event()
    ref = Listener.start(told, enough)
    yield ref, told, enough
    ref.stop()


@both
@pytest.mark.parametrize("name", STREAMS)
def test_a_callable_is_told_every_event_beside_the_iteration(kind: str, name: str) -> None:
    ids, fields = STREAMS[name]
    told: list[StreamEvent] = []
    with FaultyServer(chunks(WHOLE)) as server, driven(kind, server.url) as driver:
        seen = driver.stream(name, *ids, **fields, stream_to=told.append)
        assert "stream_to" not in server.received[0].json
    assert names(told) == TOLD
    assert told == seen
    assert isinstance(told[0], RunEvent)
    assert isinstance(told[2], MessageDeltaEvent)


@both
def test_an_actor_is_told_every_event_instead_of_the_iteration(
    kind: str, listener: tuple[pykka.ActorRef[Any], list[StreamEvent], threading.Event]
) -> None:
    ref, told, enough = listener
    with FaultyServer(chunks(WHOLE)) as server, driven(kind, server.url) as driver:
        assert until(driver, ref, 0) == []
    assert enough.wait(20)
    assert names(told) == TOLD


@both
def test_each_event_is_told_once_and_before_it_is_iterated(kind: str) -> None:
    told: list[StreamEvent] = []
    with FaultyServer(chunks([THREAD_CREATED, *WHOLE])) as server, driven(kind, server.url) as driver:
        # Opening reads on to the first run event; nothing is told by that.
        assert until(driver, told.append, 1, close=True) == ["thread.created"]
    assert names(told) == ["thread.created"]


@both
def test_leaving_normally_reads_what_is_left(kind: str) -> None:
    told: list[StreamEvent] = []
    with FaultyServer(chunks(WHOLE)) as server, driven(kind, server.url) as driver:
        assert until(driver, told.append, 2) == TOLD[:2]
    assert names(told) == TOLD


@both
def test_leaving_on_an_exception_reads_no_more(kind: str) -> None:
    told: list[StreamEvent] = []
    with FaultyServer(stall(partial(CREATED, QUEUED))) as server, driven(kind, server.url) as driver:
        with pytest.raises(LookupError):
            until(driver, told.append, 1, fail=True)
        server.wait_until(lambda server: not server.open_connections)
    assert names(told) == TOLD[:1]


@both
def test_closing_the_stream_is_the_way_to_stop_it(kind: str) -> None:
    told: list[StreamEvent] = []
    with FaultyServer(stall(partial(CREATED, QUEUED))) as server, driven(kind, server.url) as driver:
        assert until(driver, told.append, 1, close=True) == TOLD[:1]
        server.wait_until(lambda server: not server.open_connections)
    assert names(told) == TOLD[:1]


@both
def test_without_stream_to_leaving_early_does_not_wait_for_the_rest(kind: str) -> None:
    with FaultyServer(stall(partial(CREATED, QUEUED))) as server, driven(kind, server.url) as driver:
        assert until(driver, None, 1) == TOLD[:1]
        server.wait_until(lambda server: not server.open_connections)


@both
def test_one_that_raises_is_logged_and_told_no_more_and_the_stream_goes_on(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[StreamEvent] = []

    def refuse(one: StreamEvent) -> None:
        told.append(one)
        if len(told) == 2:
            raise LookupError("cannot take it")

    with (
        caplog.at_level(logging.ERROR, "orchestrator"),
        FaultyServer(chunks(WHOLE)) as server,
        driven(kind, server.url) as driver,
    ):
        seen = driver.stream("stream_run", "thread_1", assistant_id="asst_1", stream_to=refuse)
    assert names(seen) == TOLD
    assert names(told) == TOLD[:2]
    (record,) = caplog.records
    assert "stream.consumer_failed" in record.getMessage()
    assert "cannot take it" in caplog.text


@both
def test_an_actor_that_is_dead_does_no_harm(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    ref = Listener.start([], threading.Event())
    ref.stop()
    with FaultyServer(chunks(WHOLE)) as server, driven(kind, server.url) as driver:
        assert until(driver, ref, 5) == TOLD
    assert caplog.text.count("stream.consumer_failed") == 1


@both
def test_what_the_user_interrupts_is_interrupted(kind: str) -> None:
    def interrupt(one: StreamEvent) -> None:
        raise KeyboardInterrupt

    with (
        FaultyServer(stall(partial(CREATED))) as server,
        driven(kind, server.url) as driver,
    ):
        with pytest.raises(KeyboardInterrupt):
            until(driver, interrupt, 1)
        server.wait_until(lambda server: not server.open_connections)


@both
def test_what_breaks_while_the_rest_is_read_is_raised_by_leaving(kind: str) -> None:
    told: list[StreamEvent] = []
    with (
        FaultyServer(chunks([CREATED, DELTA], end=b"5\r\nab")) as server,
        driven(kind, server.url) as driver,
        pytest.raises(APIConnectionError),
    ):
        until(driver, told.append, 0)
    assert names(told) == [TOLD[0], TOLD[2]]


@both
def test_silence_while_the_rest_is_read_times_out(kind: str) -> None:
    with (
        FaultyServer(stall(partial(CREATED))) as server,
        driven(kind, server.url, stream_idle_s=0.2) as driver,
        pytest.raises(APITimeout),
    ):
        until(driver, lambda one: None, 0)


@both
def test_an_error_that_the_body_dealt_with_does_not_come_again(kind: str) -> None:
    async def dealt(client: AsyncThreadsClient) -> None:
        async with client.stream_run("thread_1", assistant_id="a", stream_to=print) as stream:
            with pytest.raises(APIConnectionError):
                await stream.until_done()

    def dealt_with(client: ThreadsClient) -> None:
        with (
            client.stream_run("thread_1", assistant_id="a", stream_to=print) as stream,
            pytest.raises(APIConnectionError),
        ):
            stream.until_done()

    with FaultyServer(chunks([CREATED], end=b"zz\r\n")) as server, driven(kind, server.url) as driver:
        if isinstance(driver, AsyncDriver):
            driver.runner.run(dealt(driver.client))
        else:
            dealt_with(driver.client)


@both
def test_an_error_event_is_told_like_any_other(kind: str) -> None:
    told: list[StreamEvent] = []
    parts = [CREATED, event("error", {"message": "down"})]
    with FaultyServer(chunks(parts)) as server, driven(kind, server.url) as driver:
        until(driver, told.append, 0)
    assert isinstance(told[-1], ErrorEvent)


@both
def test_nothing_is_told_twice_when_opening_takes_several_attempts(kind: str) -> None:
    told: list[StreamEvent] = []
    script = [failure(429), failure(429), chunks(WHOLE)]
    with FaultyServer(*script) as server, driven(kind, server.url) as driver:
        until(driver, told.append, 0)
        assert len(server.received) == 3
    assert names(told) == TOLD


@both
def test_a_server_that_cannot_stream_is_told_as_one_event(kind: str) -> None:
    told: list[StreamEvent] = []
    with FaultyServer(reply(run("queued"))) as server, driven(kind, server.url) as driver:
        until(driver, told.append, 0)
    assert names(told) == ["thread.run.queued"]


async def coroutine(one: StreamEvent) -> None:
    """What nobody would await."""


class Awaited:
    async def __call__(self, one: StreamEvent) -> None:
        """The same, of an object."""


@both
@pytest.mark.parametrize("wrong", [coroutine, Awaited(), "not callable", 7, []])
def test_what_cannot_be_told_is_refused_before_anything_is_sent(kind: str, wrong: Any) -> None:
    with FaultyServer() as server, driven(kind, server.url) as driver:
        with pytest.raises(TypeError, match="stream_to must be"):
            driver.client.stream_run("thread_1", assistant_id="asst_1", stream_to=wrong)
        with pytest.raises(TypeError, match="stream_to"):
            driver.call("create_run", "thread_1", assistant_id="asst_1", stream_to=print)
        assert server.accepted == 0


def test_a_callable_is_called_where_the_stream_is_read() -> None:
    threads: list[int] = []

    def note(one: StreamEvent) -> None:
        threads.append(threading.get_ident())
        tasks.append(asyncio.current_task())

    tasks: list[Any] = []

    async def main(url: str) -> None:
        async with (
            AsyncThreadsClient(url, api_key="k") as client,
            client.stream_run("t", assistant_id="a", stream_to=note),
        ):
            pass
        assert set(tasks) == {asyncio.current_task()}

    with FaultyServer(default=chunks([CREATED, COMPLETED, DONE])) as server:
        asyncio.run(main(server.url))
        with (
            ThreadsClient(server.url, api_key="k") as client,
            client.stream_run(
                "t", assistant_id="a", stream_to=lambda one: threads.append(threading.get_ident())
            ),
        ):
            pass
    assert threads == [threading.get_ident()] * 6
