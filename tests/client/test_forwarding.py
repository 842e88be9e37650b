"""Events that are handed over as they arrive are those that iterating yields; on our pools and on httpx's."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from faulty_server import DONE, FaultyServer, Peer, Step, chunks, event, head, reply, reset_after, stall

from orchestrator.client import AsyncThreadsClient, endpoints
from orchestrator.errors import APIConnectionError, APIError, APIResponseError, APITimeout

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.protocol.events import StreamEvent

CARRIERS = pytest.mark.parametrize("stock", [False, True], ids=["ours", "httpx's"])

CALL = endpoints.stream_run("thread_1", assistant_id="asst_1")
STREAM_HEAD = head(200, content_type="text/event-stream", transfer_encoding="chunked")


def run(status: str) -> dict[str, Any]:
    return {"id": "run_1", "object": "thread.run", "thread_id": "thread_1", "status": status}


CREATED, COMPLETED = (event(f"thread.run.{status}", run(status)) for status in ("queued", "completed"))
WHOLE = [CREATED, COMPLETED, DONE]


def begun(*parts: bytes) -> bytes:
    return STREAM_HEAD + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


def slowly(parts: list[bytes], pause_s: float) -> Step:
    """Answer in chunks with pauses between them."""

    def step(peer: Peer) -> bool:
        never = threading.Event()
        peer.read()
        peer.send(STREAM_HEAD)
        for part in parts:
            never.wait(pause_s)
            peer.send(b"%x\r\n%s\r\n" % (len(part), part))
        peer.send(b"0\r\n\r\n")
        return True

    return step


class Heard:
    """What was handed over, and how the stream ended."""

    def __init__(self) -> None:
        self.events: list[StreamEvent] = []
        self.calls: list[int] = []
        self.error: BaseException | None = None

    def take(self, events: list[StreamEvent]) -> bool:
        self.events += events
        self.calls.append(len(events))
        return True

    @property
    def names(self) -> list[str]:
        return [one.event for one in self.events]


def forwarded(
    url: str,
    *,
    stock: bool,
    hear: Callable[[Heard, list[StreamEvent]], bool] = Heard.take,
    times: int = 1,
    **options: Any,
) -> Heard:
    """Have a stream handed over, `times` after each other; the last one's is returned."""

    async def main() -> Heard:
        transport = httpx.AsyncHTTPTransport() if stock else None
        async with AsyncThreadsClient(base_url=url, api_key="k", transport=transport, **options) as client:
            for _ in range(times):
                heard = Heard()
                try:
                    async with client.attempt_stream(CALL) as stream:
                        await stream.forward(partial(hear, heard))
                except Exception as error:  # noqa: BLE001 - whatever it is, it is asserted
                    heard.error = error
            return heard

    return asyncio.run(main())


@CARRIERS
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_all_events_are_handed_over_wherever_the_bytes_are_cut(stock: bool, size: int) -> None:
    whole = b"".join(WHOLE)
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    with FaultyServer(chunks(parts)) as server:
        heard = forwarded(server.url, stock=stock)
    assert (heard.names, heard.error) == (["thread.run.queued", "thread.run.completed", "done"], None)


@CARRIERS
def test_an_end_without_done_is_an_end(stock: bool) -> None:
    with FaultyServer(chunks([CREATED])) as server:
        heard = forwarded(server.url, stock=stock)
    assert (heard.names, heard.error) == (["thread.run.queued"], None)


@CARRIERS
def test_a_server_that_cannot_stream_shows_the_run(stock: bool) -> None:
    with FaultyServer(reply(run("completed"))) as server:
        heard = forwarded(server.url, stock=stock)
    assert (heard.names, heard.error) == (["thread.run.completed"], None)


@CARRIERS
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (reset_after(begun(CREATED)), APIConnectionError),
        (chunks([CREATED], end=b""), APIConnectionError),
        (stall(begun(CREATED)), APITimeout),
        (chunks([CREATED, b"data: " + b"x" * 17_000_000]), APIResponseError),
    ],
    ids=["reset", "cut", "silence", "too large"],
)
def test_what_came_before_a_failure_is_handed_over_before_it_is_raised(
    stock: bool, fault: Step, error: type[APIError]
) -> None:
    with FaultyServer(fault) as server:
        heard = forwarded(server.url, stock=stock, stream_idle_s=0.3)
    assert heard.names == ["thread.run.queued"]
    assert type(heard.error) is error


@CARRIERS
def test_patience_is_for_each_silence_and_not_for_all_of_them(stock: bool) -> None:
    patience_s = 1.0
    with FaultyServer(slowly([CREATED] * 8 + WHOLE, patience_s / 5)) as server:
        heard = forwarded(server.url, stock=stock, stream_idle_s=patience_s)
    assert (len(heard.events), heard.error) == (11, None)


@CARRIERS
def test_who_wants_no_more_gets_no_more(stock: bool) -> None:
    def only_one(heard: Heard, events: list[StreamEvent]) -> bool:
        heard.take(events)
        return False

    with FaultyServer(chunks(WHOLE)) as server:
        heard = forwarded(server.url, stock=stock, hear=only_one)
    assert heard.calls == [len(heard.events)]
    assert heard.error is None


@CARRIERS
def test_what_the_hearer_raises_is_raised(stock: bool) -> None:
    def refuse(heard: Heard, events: list[StreamEvent]) -> bool:
        raise LookupError(len(events))

    with FaultyServer(chunks(WHOLE)) as server:
        heard = forwarded(server.url, stock=stock, hear=refuse)
    assert type(heard.error) is LookupError


@CARRIERS
def test_thousands_that_come_at_once_are_handed_over_by_the_64(stock: bool) -> None:
    with FaultyServer(chunks([b"".join([CREATED] * 1000), *WHOLE])) as server:
        heard = forwarded(server.url, stock=stock)
    assert len(heard.events) == 1003
    assert max(heard.calls) == 64


@CARRIERS
def test_a_connection_whose_stream_said_done_is_used_again(stock: bool) -> None:
    with FaultyServer(default=chunks(WHOLE)) as server:
        assert forwarded(server.url, stock=stock, times=3).error is None
        assert (server.accepted, len(server.received)) == (1, 3)
