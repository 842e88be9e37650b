"""Streams, control calls and cancels never wait for each other, on both clients."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack, ExitStack

import httpx
import pytest
from drivers import KEY, both, driven
from faulty_server import FaultyServer, Peer, event, full_backlog, head, stall

from orchestrator.client import NO_RETRIES, AsyncThreadsClient, ThreadsClient
from orchestrator.client.transport import sync_client, was_sent
from orchestrator.errors import APITimeout

RUN = {"id": "run_1", "object": "thread.run", "thread_id": "thread_1", "status": "queued"}
BODY = b'{"id": "run_1", "object": "thread.run", "thread_id": "thread_1", "status": "queued"}'
BEGUN = head(200, content_type="text/event-stream") + event("thread.run.created", RUN)
LIMIT = 3


def server_of_open_streams() -> FaultyServer:
    """Streams begin and never end; everything else is answered."""

    def step(peer: Peer) -> bool:
        received = peer.read()
        if received.headers["accept"] == "text/event-stream":
            peer.send(BEGUN)
            peer.wait_for_hang_up()
            return False
        peer.send(head(200, content_type="application/json", content_length=str(len(BODY))) + BODY)
        return True

    return FaultyServer(default=step)


def test_open_streams_keep_no_cancel_waiting_asynchronously() -> None:
    async def main(url: str) -> None:
        client = AsyncThreadsClient(url, api_key=KEY, max_connections=LIMIT, retry=NO_RETRIES, timeout=5.0)
        async with client, AsyncExitStack() as streams:
            for _ in range(LIMIT):
                await streams.enter_async_context(client.stream_run("thread_1", assistant_id="asst_1"))
            assert (await client.cancel_run("thread_1", "run_1")).id == "run_1"
            assert (await client.get_run("thread_1", "run_1")).id == "run_1"
            with pytest.raises(APITimeout, match="not sent in time") as caught:
                async with client.stream_run("thread_1", assistant_id="asst_1", timeout=0.2):
                    pass
            assert not caught.value.sent

    with server_of_open_streams() as server:
        asyncio.run(main(server.url))
        assert len(server.received) == LIMIT + 2


def test_open_streams_keep_no_cancel_waiting_for_threads() -> None:
    with (
        server_of_open_streams() as server,
        ThreadsClient(
            server.url, api_key=KEY, max_connections=LIMIT, retry=NO_RETRIES, timeout=5.0
        ) as client,
        ExitStack() as streams,
    ):
        for _ in range(LIMIT):
            streams.enter_context(client.stream_run("thread_1", assistant_id="asst_1"))
        assert client.cancel_run("thread_1", "run_1").id == "run_1"
        assert client.get_run("thread_1", "run_1").id == "run_1"
        with (
            pytest.raises(APITimeout, match="not sent in time") as caught,
            client.stream_run("thread_1", assistant_id="asst_1", timeout=0.2),
        ):
            pass
        assert not caught.value.sent
        assert len(server.received) == LIMIT + 2


def test_control_calls_without_an_answer_keep_no_cancel_waiting_for_threads() -> None:
    def step(peer: Peer) -> bool:
        if peer.read().target.endswith("/cancel"):
            peer.send(head(200, content_length=str(len(BODY))) + BODY)
            return True
        peer.wait_for_hang_up()
        return False

    with FaultyServer(default=step) as server:
        client = ThreadsClient(server.url, api_key=KEY, max_connections=1, retry=NO_RETRIES, timeout=2.0)

        def look() -> None:
            with pytest.raises(APITimeout):
                client.get_run("thread_1", "run_1")

        threads = [threading.Thread(target=look) for _ in range(8)]
        with client:
            for thread in threads:
                thread.start()
            server.wait_until(lambda server: len(server.received) == 8)
            assert client.cancel_run("thread_1", "run_1").id == "run_1"
            for thread in threads:
                thread.join()


def test_whoever_waits_for_a_lane_goes_on_when_one_leaves_it() -> None:
    with (
        server_of_open_streams() as server,
        ThreadsClient(server.url, api_key=KEY, max_connections=1, timeout=20.0) as client,
    ):
        for _ in range(3):
            with client.stream_run("thread_1", assistant_id="asst_1") as stream:
                assert next(stream).event == "thread.run.created"
        assert server.accepted == 3


def in_stream_lane(url: str) -> httpx.Request:
    timeout = {"pool": 0.1, "connect": 0.2, "read": 0.2, "write": 1.0}
    return httpx.Request("GET", url, extensions={"lane": "stream", "timeout": timeout})


def test_every_end_of_a_request_gives_the_lane_back() -> None:
    with (
        FaultyServer(stall(), stall(head(200, content_length="9") + b"x")) as server,
        full_backlog() as nowhere,
        sync_client(max_connections=1) as client,
    ):
        for url, error in (
            (server.url, httpx.ReadTimeout),
            (server.url, httpx.ReadTimeout),
            (nowhere, httpx.ConnectTimeout),
            ("http://no-such-host.invalid/", httpx.ConnectError),
        ):
            with pytest.raises(error):
                client.send(in_stream_lane(url))
        response = client.send(in_stream_lane(server.url), stream=True)
        with pytest.raises(httpx.PoolTimeout) as caught:
            client.send(in_stream_lane(server.url))
        assert not was_sent(caught.value)
        for _ in range(2):
            response.stream.close()  # type: ignore[union-attr]  # a blocking client's streams close so
        assert client.send(in_stream_lane(server.url)).status_code == 418


@both
def test_a_limit_of_none_is_refused(kind: str) -> None:
    client = ThreadsClient if kind == "sync" else AsyncThreadsClient
    for limit in (0, -1, True, 2.5):
        with pytest.raises(ValueError, match="max_connections must be at least 1"):
            client("http://127.0.0.1/", max_connections=limit)  # type: ignore[arg-type]  # what is refused


@both
def test_the_time_to_connect_can_be_set(kind: str) -> None:
    with full_backlog() as url:
        settings = {"connect_timeout": 0.2, "timeout": 30.0, "retry": NO_RETRIES}
        with driven(kind, url, **settings) as driver, pytest.raises(APITimeout) as caught:
            driver.call("get_thread", "thread_1")
    assert not caught.value.sent
