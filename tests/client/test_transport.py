"""The pool, on real sockets: reuse, lanes, cancellation at every stage, and what "never sent" means."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import TYPE_CHECKING, Any

import httpcore
import httpx
import pytest
from calls import wait_until
from drivers import both, driven
from faulty_server import (
    PATIENCE_S,
    FaultyServer,
    Peer,
    Step,
    chunks,
    full_backlog,
    head,
    held,
    reply,
    stall,
)

from orchestrator.client.pool import LanePool, lanes
from orchestrator.client.transport import KEEPALIVE_S, async_client, was_sent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

OK = reply({"ok": True})


def pool_of(client: httpx.AsyncClient) -> LanePool:
    pool = client._transport._pool  # type: ignore[attr-defined]  # httpx declares no pool on the base class
    assert isinstance(pool, LanePool)
    return pool


def free_permits(client: httpx.AsyncClient) -> dict[str, int]:
    return {lane: permit._value for lane, permit in pool_of(client)._permits.items()}


def in_lane(lane: str, pool_s: float = 10.0) -> dict[str, Any]:
    return {"lane": lane, "timeout": {"pool": pool_s, "connect": 5.0, "read": 10.0, "write": 10.0}}


async def get(client: httpx.AsyncClient, url: str, **extensions: Any) -> httpx.Response:
    return await client.send(httpx.Request("GET", f"{url}/x", extensions=extensions))


def on_pool(
    main: Callable[[httpx.AsyncClient], Awaitable[None]],
    *,
    max_connections: int = 40,
    keepalive_s: float = KEEPALIVE_S,
) -> None:
    """Run something on a client, and see that it left no permit, connection or task behind."""

    async def run() -> None:
        client = async_client(max_connections=max_connections, keepalive_s=keepalive_s)
        async with client:
            await main(client)
            assert free_permits(client) == lanes(max_connections)
            assert not pool_of(client)._active
        assert pool_of(client).connections == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_requests_one_after_another_share_a_connection() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        for _ in range(5):
            await get(client, server.url)

    with FaultyServer(default=OK) as server:
        on_pool(main)
        assert server.accepted == 1


def test_requests_at_once_get_a_connection_each_and_the_last_used_one_comes_first() -> None:
    gate = threading.Event()

    async def main(client: httpx.AsyncClient) -> None:
        requests = [asyncio.create_task(get(client, server.url)) for _ in range(5)]
        await asyncio.to_thread(
            server.wait_until, lambda server: len(server.received) == 0 and server.accepted == 5
        )
        gate.set()
        await asyncio.gather(*requests)
        newest = pool_of(client).connections[-1]
        for _ in range(3):
            await get(client, server.url)
            assert pool_of(client).connections[-1] is newest
        assert len({one.connection for one in server.received[-3:]}) == 1

    with FaultyServer(*[held(gate, OK)] * 5, default=OK) as server:
        on_pool(main)
        assert server.accepted == 5


def test_a_full_lane_says_that_nothing_was_sent_and_leaves_the_others_alone() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        async with client.stream("GET", f"{server.url}/s", extensions=in_lane("stream")):
            with pytest.raises(httpx.PoolTimeout) as caught:
                await get(client, server.url, **in_lane("stream", pool_s=0.05))
            assert not was_sent(caught.value)
            await get(client, server.url, **in_lane("control"))
            await get(client, server.url, **in_lane("cancel"))
            await get(client, server.url)

    with FaultyServer(chunks([b"x"]), default=OK) as server:
        on_pool(main, max_connections=1)
        assert len(server.received) == 4


def test_who_waits_for_a_lane_goes_on_when_one_leaves_it() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        async with client.stream("GET", f"{server.url}/s", extensions=in_lane("stream")) as response:
            waiting = [asyncio.create_task(get(client, server.url, **in_lane("stream"))) for _ in range(3)]
            await response.aread()
        assert [(await one).status_code for one in waiting] == [200] * 3

    with FaultyServer(default=chunks([b"x"])) as server:
        on_pool(main, max_connections=1)
        assert server.accepted == 1


def test_a_connection_that_the_server_closed_while_it_was_idle_is_not_used_again() -> None:
    gate = threading.Event()

    async def main(client: httpx.AsyncClient) -> None:
        await get(client, server.url)
        assert [connection.is_idle() for connection in pool_of(client).connections] == [True]
        gate.set()
        await asyncio.to_thread(server.wait_until, lambda server: server.open_connections == 0)
        await get(client, server.url)

    def close_later(peer: Peer) -> bool:
        return OK(peer) and not gate.wait(PATIENCE_S)

    with FaultyServer(close_later, default=OK) as server:
        on_pool(main)
        assert server.accepted == 2


def held_together(gate: threading.Event, count: int) -> FaultyServer:
    return FaultyServer(*[held(gate, OK)] * count, default=OK)


async def wave(client: httpx.AsyncClient, server: FaultyServer, gate: threading.Event, count: int) -> None:
    """Leave so many connections idle."""
    requests = [asyncio.create_task(get(client, server.url, **in_lane("stream"))) for _ in range(count)]
    await asyncio.to_thread(server.wait_until, lambda server: server.accepted == count)
    gate.set()
    await asyncio.gather(*requests)


def test_idle_connections_past_their_time_are_closed_though_no_request_follows() -> None:
    gate = threading.Event()

    async def main(client: httpx.AsyncClient) -> None:
        await wave(client, server, gate, 20)
        await asyncio.to_thread(server.wait_until, lambda server: server.open_connections == 0)
        pool = pool_of(client)
        assert pool.connections == []
        assert pool._look is None
        await get(client, server.url)
        assert pool._look is not None

    with held_together(gate, 20) as server:
        on_pool(main, keepalive_s=0.1)
        assert server.accepted == 21


def test_only_those_past_their_time_are_closed_wherever_they_stand() -> None:
    gate = threading.Event()

    async def main(client: httpx.AsyncClient) -> None:
        await wave(client, server, gate, 5)
        pool = pool_of(client)
        connections = pool.connections
        for index in (1, 3):
            connections[index]._idle_until = 0.0  # type: ignore[attr-defined]  # time passes
        await asyncio.to_thread(server.wait_until, lambda server: server.open_connections == 3)
        assert pool.connections == [connections[index] for index in (0, 2, 4)]
        assert pool._look is not None

    with held_together(gate, 5) as server:
        on_pool(main)


def test_connections_that_their_server_closed_do_not_wait_for_their_time() -> None:
    gate = threading.Event()

    def once(peer: Peer) -> bool:
        peer.read()
        gate.wait(PATIENCE_S)
        peer.send(head(200, content_length="2") + b"{}")
        return False

    async def main(client: httpx.AsyncClient) -> None:
        await wave(client, server, gate, 5)
        await asyncio.to_thread(wait_until, lambda: not pool_of(client).connections)

    with FaultyServer(*[once] * 5) as server:
        on_pool(main)


def test_a_request_leaves_the_timer_for_idle_connections_alone() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        await get(client, server.url)
        timer = pool_of(client)._look
        assert timer is not None
        for _ in range(3):
            await get(client, server.url)
            assert pool_of(client)._look is timer
        await client.aclose()
        assert timer.cancelled()
        assert pool_of(client)._look is None

    with FaultyServer(default=OK) as server:
        on_pool(main)


def test_closing_the_client_waits_for_idle_connections_that_are_being_closed() -> None:
    gate = threading.Event()

    async def main(client: httpx.AsyncClient) -> None:
        await wave(client, server, gate, 5)
        pool = pool_of(client)
        for connection in pool.connections:
            connection._idle_until = 0.0  # type: ignore[attr-defined]  # time passes
        pool._close_those_over()
        assert pool._closing
        await client.aclose()
        assert not pool._closing

    with held_together(gate, 5) as server:
        on_pool(main)
        server.wait_until(lambda server: server.open_connections == 0)


def test_two_servers_do_not_share_connections() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        for _ in range(2):
            await get(client, one.url)
            await get(client, other.url)

    with FaultyServer(default=OK) as one, FaultyServer(default=OK) as other:
        on_pool(main)
        assert (one.accepted, other.accepted) == (1, 1)


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_cancelling_while_waiting_for_a_lane_costs_nothing() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        async with client.stream("GET", f"{server.url}/s", extensions=in_lane("stream")):
            waiting = [asyncio.create_task(get(client, server.url, **in_lane("stream"))) for _ in range(3)]
            await asyncio.sleep(0)
            for one in waiting:
                await cancelled(one)
        await get(client, server.url, **in_lane("stream"))

    with FaultyServer(default=chunks([b"x"])) as server:
        on_pool(main, max_connections=1)
        assert len(server.received) == 2


def test_cancelling_at_the_moment_a_permit_comes_free_loses_none() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        for _ in range(20):
            async with client.stream("GET", f"{server.url}/s", extensions=in_lane("stream")) as response:
                waiting = [
                    asyncio.create_task(get(client, server.url, **in_lane("stream"))) for _ in range(2)
                ]
                await asyncio.sleep(0)
                await response.aread()
            # The answer is closed: the first in line holds a permit and has not run yet.
            await cancelled(waiting[0])
            assert (await waiting[1]).status_code == 200

    with FaultyServer(default=chunks([b"x"])) as server:
        on_pool(main, max_connections=1)


def test_cancelling_while_connecting_costs_nothing() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        with full_backlog() as url:
            task = asyncio.create_task(get(client, url, **in_lane("cancel")))
            for _ in range(3):
                await asyncio.sleep(0)
            assert pool_of(client)._active
            await cancelled(task)

    on_pool(main)


def test_cancelling_within_a_tls_handshake_closes_its_connection() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        task = asyncio.create_task(get(client, server.url.replace("http:", "https:")))
        await asyncio.to_thread(server.wait_until, lambda server: server.unread == 1)
        await cancelled(task)
        await asyncio.to_thread(server.wait_until, lambda server: server.open_connections == 0)

    def silent(peer: Peer) -> bool:
        peer.server.note_unread()
        peer.wait_for_hang_up()
        return False

    with FaultyServer(silent) as server:
        on_pool(main)


@pytest.mark.parametrize(
    ("step", "started"),
    [
        pytest.param(stall(), "sent", id="before the answer"),
        pytest.param(stall(head(200, content_length="9") + b"x"), "answered", id="within the answer"),
    ],
)
def test_cancelling_a_request_under_way_closes_its_connection(step: Step, started: str) -> None:
    async def main(client: httpx.AsyncClient) -> None:
        answered = asyncio.Event()

        async def request() -> None:
            async with client.stream("GET", f"{server.url}/x", extensions=in_lane("stream")) as response:
                answered.set()
                await response.aread()

        task = asyncio.create_task(request())
        await asyncio.to_thread(server.wait_until, lambda server: len(server.received) == 1)
        if started == "answered":
            await answered.wait()
        await cancelled(task)
        assert pool_of(client).connections == []
        await asyncio.to_thread(server.wait_until, lambda server: server.open_connections == 0)

    with FaultyServer(step, default=OK) as server:
        on_pool(main, max_connections=1)


def test_cancelling_twice_at_every_step_of_a_request_leaks_nothing() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        for turns in range(60):
            task = asyncio.create_task(get(client, server.url, **in_lane("stream")))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert free_permits(client) == lanes(1)
            assert not pool_of(client)._active

    with FaultyServer(default=OK) as server:
        on_pool(main, max_connections=1)


def test_an_answer_closed_twice_gives_its_connection_back_once() -> None:
    async def main(client: httpx.AsyncClient) -> None:
        response = await client.send(httpx.Request("GET", f"{server.url}/x"), stream=True)
        await response.aread()
        for _ in range(3):
            await response.stream.aclose()  # type: ignore[union-attr]  # an async client's streams close so
        assert len(pool_of(client).connections) == 1

    with FaultyServer(default=OK) as server:
        on_pool(main)


def test_an_answer_that_was_closed_gives_nothing_of_the_next_one() -> None:
    async def ask(pool: LanePool) -> httpcore.Response:
        return await pool.handle_async_request(
            httpcore.Request("GET", f"{server.url}/x", headers=[("h", "x")])
        )

    async def main(client: httpx.AsyncClient) -> None:
        pool = pool_of(client)
        closed = await ask(pool)
        await closed.aclose()
        response = await ask(pool)
        with pytest.raises(httpcore.ReadError, match="closed"):
            await anext(aiter(closed.stream))  # type: ignore[arg-type]  # an async pool's streams are
        assert await response.aread() == b'{"ok": true}'
        await response.aclose()

    with FaultyServer(default=OK) as server:
        on_pool(main)
        assert server.accepted == 1


def test_closing_the_client_ends_open_streams_and_what_waits_behind_them() -> None:
    async def main(url: str) -> None:
        client = async_client(max_connections=1)
        response = await client.send(httpx.Request("GET", url, extensions=in_lane("stream")), stream=True)
        waiting = asyncio.create_task(get(client, url, **in_lane("stream")))
        await asyncio.sleep(0)
        await client.aclose()
        with pytest.raises(httpx.ReadError):
            await response.aread()
        with pytest.raises(httpx.ConnectError) as caught:
            await waiting
        assert not was_sent(caught.value)
        assert free_permits(client) == lanes(1)

    with FaultyServer(stall(head(200, content_length="9"))) as server:
        asyncio.run(main(server.url))
        server.wait_until(lambda server: server.open_connections == 0)


@both
def test_the_environments_proxy_is_used_and_no_proxy_is_kept_to(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyServer(default=reply({"id": "thread_1"})) as proxy, FaultyServer(default=OK) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("no_proxy", raising=False)
        with driven(kind, "http://server.example/v1") as driver:
            for _ in range(2):
                assert driver.call("get_thread", "thread_1").id == "thread_1"
        assert [one.target for one in proxy.received] == ["http://server.example/v1/threads/thread_1"] * 2
        assert proxy.accepted == 1
        with driven(kind, server.url) as driver, pytest.raises(Exception, match="understood"):
            driver.call("get_thread", "thread_1")
        assert len(server.received) == 4


def test_a_request_costs_about_the_same_beside_500_open_streams() -> None:
    async def cost_s(client: httpx.AsyncClient, url: str) -> float:
        best = float("inf")
        for _ in range(5):
            begun = time.process_time()
            for _ in range(40):
                await get(client, url, **in_lane("control"))
            best = min(best, time.process_time() - begun)
        return best

    async def main(url: str) -> tuple[float, float]:
        async with async_client(max_connections=500) as client:
            await get(client, url)
            alone = await cost_s(client, url)
            streams = [
                await client.send(httpx.Request("GET", f"{url}/s", extensions=in_lane("stream")), stream=True)
                for _ in range(500)
            ]
            gc.collect()
            beside = await cost_s(client, url)
            for stream in streams:
                await stream.aclose()
        return alone, beside

    def answer(peer: Peer) -> bool:
        if peer.read().target.endswith("/s"):
            peer.send(head(200, content_length="9"))
        else:
            peer.send(head(200, content_length="2") + b"{}")
        return True

    with FaultyServer(default=answer) as server:
        alone, beside = asyncio.run(main(server.url))
    # httpcore's own pool takes about six times as long here.
    assert beside < 3 * alone
