"""Connections are opened a few at a time, so that a burst does not outlast its own time to connect."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpcore
from drivers import KEY
from faulty_server import PATIENCE_S, FaultyServer, Peer, full_backlog, reply

from orchestrator.client import NO_RETRIES, AsyncThreadsClient
from orchestrator.client.dialing import OPENING, Places
from orchestrator.client.sockets import TidyBackend
from orchestrator.errors import APIConnectionError, APITimeout

THREAD = {"id": "thread_1", "object": "thread"}


class Counting(httpcore.AsyncNetworkBackend):
    """Connects as httpcore does, and knows how many connections were being opened at most."""

    def __init__(self) -> None:
        self.most = self._opening = 0

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        self._opening += 1
        self.most = max(self.most, self._opening)
        try:
            return await httpcore.AnyIOBackend().connect_tcp(*args, **kwargs)
        finally:
            self._opening -= 1


def test_of_a_burst_only_so_many_connections_are_opened_at_once() -> None:
    async def main() -> int:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        counting = Counting()
        tidy = TidyBackend(counting, Places())
        burst = (tidy.connect_tcp("127.0.0.1", port, timeout=5.0) for _ in range(3 * OPENING))
        for stream in await asyncio.gather(*burst):
            await stream.aclose()
        server.close()
        await server.wait_closed()
        return counting.most

    assert asyncio.run(main()) == OPENING


def test_neither_are_more_of_our_own_opened_at_once_and_a_handshake_is_part_of_that() -> None:
    most = opening = 0
    full = asyncio.Event()

    async def fail_the_handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most, opening
        opening += 1
        most = max(most, opening)
        if opening == OPENING:
            full.set()
        await reader.read(1)
        await full.wait()
        for _ in range(5):  # whoever is one too many comes in these turns
            await asyncio.sleep(0)
        opening -= 1
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(fail_the_handshake, "127.0.0.1", 0, backlog=4 * OPENING)
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        client = AsyncThreadsClient(
            url, api_key=KEY, retry=NO_RETRIES, timeout=40.0, max_connections=12 * OPENING
        )
        async with client:
            burst = (client.get_thread("thread_1") for _ in range(3 * OPENING))
            outcomes = await asyncio.gather(*burst, return_exceptions=True)
        server.close()
        await server.wait_closed()
        assert all(isinstance(one, APIConnectionError) and not one.sent for one in outcomes)

    asyncio.run(main())
    assert most == OPENING


def test_a_burst_of_our_own_connections_is_opened_to_the_last() -> None:
    async def main(url: str) -> None:
        client = AsyncThreadsClient(url, api_key=KEY, retry=NO_RETRIES, max_connections=12 * OPENING)
        async with client:
            burst = (client.get_thread("thread_1") for _ in range(3 * OPENING))
            answers = await asyncio.gather(*burst)
        assert [answer.id for answer in answers] == ["thread_1"] * (3 * OPENING)

    together = threading.Barrier(3 * OPENING)

    def at_once(peer: Peer) -> bool:
        together.wait(PATIENCE_S)
        return reply(THREAD)(peer)

    with FaultyServer(default=at_once) as server:
        asyncio.run(main(server.url))
        assert server.accepted == 3 * OPENING


def test_what_never_came_to_be_opened_was_not_sent() -> None:
    async def main(url: str) -> list[bool]:
        client = AsyncThreadsClient(
            url, api_key=KEY, retry=NO_RETRIES, timeout=4.0, max_connections=24 * OPENING
        )
        async with client:
            calls = (client.get_thread("thread_1") for _ in range(6 * OPENING))
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        return [isinstance(outcome, APITimeout) and not outcome.sent for outcome in outcomes]

    with full_backlog() as url:
        assert all(asyncio.run(main(url)))


def test_a_host_that_cannot_be_reached_keeps_no_other_waiting() -> None:
    async def main(nowhere: str, url: str) -> None:
        client = AsyncThreadsClient(nowhere, api_key=KEY, retry=NO_RETRIES)
        async with client:
            stuck = [asyncio.ensure_future(client.get_thread("thread_1")) for _ in range(2 * OPENING)]
            await asyncio.sleep(0)
            answer = await client.get_thread("thread_1", base_url=url, api_key=KEY, timeout=2.0)
            assert answer.id == "thread_1"
            assert not any(task.done() for task in stuck)
            for task in stuck:
                task.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)

    with full_backlog() as nowhere, FaultyServer(reply(THREAD)) as server:
        asyncio.run(main(nowhere, server.url))
