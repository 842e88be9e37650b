"""What "never sent" means: each failure of a real connection, on both clients."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx
import pytest
import uvloop
from drivers import both, driven
from faulty_server import (
    FaultyServer,
    Step,
    failure,
    full_backlog,
    hang_up,
    head,
    raw,
    refused_url,
    reply,
    reset_after,
    reset_unread,
    stall,
)

from orchestrator.client.transport import async_client, sync_client, was_sent
from orchestrator.errors import APIConnectionError

if TYPE_CHECKING:
    from collections.abc import Callable

OK = reply({"ok": True})


def failure_of(kind: str, url: str, *, pool_s: float = 5.0, read_s: float = 0.2) -> Exception:
    """Make one POST that fails, and return what the transport raised."""
    timeout = {"pool": pool_s, "connect": 0.3, "read": read_s, "write": 5.0}
    request = httpx.Request("POST", url, content=b"{}", extensions={"timeout": timeout})

    async def asynchronous() -> None:
        async with async_client(max_connections=1) as client:
            await client.send(request)

    def blocking() -> None:
        with sync_client(max_connections=1) as client:
            client.send(request)

    try:
        asyncio.run(asynchronous()) if kind == "async" else blocking()
    except Exception as exc:  # noqa: BLE001 - which one it is, is the test's question
        return exc
    raise AssertionError("the request did not fail")


@both
@pytest.mark.parametrize(
    "step",
    [
        hang_up,
        reset_after(),
        reset_unread,
        stall(),
        raw(b"garbage\r\n\r\n"),
        raw(head(200, content_length="9")),
    ],
    ids=["closed", "reset", "reset unread", "stalled", "garbage", "cut"],
)
def test_a_request_that_reached_the_server_counts_as_sent(kind: str, step: Step) -> None:
    with FaultyServer(step) as server:
        assert was_sent(failure_of(kind, server.url))


@both
def test_a_refused_connection_counts_as_never_sent(kind: str) -> None:
    error = failure_of(kind, refused_url())
    assert isinstance(error, httpx.ConnectError)
    assert not was_sent(error)


@both
def test_a_connection_never_established_counts_as_never_sent(kind: str) -> None:
    with full_backlog() as url:
        error = failure_of(kind, url)
    assert isinstance(error, httpx.ConnectTimeout)
    assert not was_sent(error)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["stock", "uvloop"])
@pytest.mark.parametrize("turns", range(4))
def test_a_connection_reset_as_soon_as_it_is_made_is_a_broken_one_and_no_defect_of_ours(
    loop: Callable[[], asyncio.AbstractEventLoop], turns: int
) -> None:
    """Whichever of the loop's first turns with the connection the reset meets."""

    async def reset_by(listener: socket.socket) -> None:
        while True:
            await asyncio.sleep(0)
            with suppress(BlockingIOError):
                accepted, _ = listener.accept()
                break
        for _ in range(turns):
            await asyncio.sleep(0)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()

    async def attempt(listener: socket.socket) -> Exception:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with async_client(max_connections=1) as client:
            resetting = asyncio.create_task(reset_by(listener))
            with pytest.raises(httpx.TransportError) as caught:
                await client.post(url, content=b"{}")
            await resetting
            return caught.value

    with socket.create_server(("127.0.0.1", 0)) as listener, asyncio.Runner(loop_factory=loop) as runner:
        listener.setblocking(False)
        error = runner.run(attempt(listener))
    if was_sent(error):  # the loop had the request by then, and does not say how far it came
        assert isinstance(error, httpx.ReadError | httpx.WriteError)
    else:
        assert isinstance(error, httpx.ConnectError)


@both
def test_a_name_nobody_knows_counts_as_never_sent(kind: str) -> None:
    assert not was_sent(failure_of(kind, "http://no-such-host.invalid/"))


@both
def test_a_broken_tls_handshake_counts_as_never_sent(kind: str) -> None:
    with FaultyServer(raw(b"this is not TLS"), default=OK) as server:
        error = failure_of(kind, server.url.replace("http:", "https:"))
        assert not was_sent(error)
        assert server.received == []


@both
def test_a_protocol_nobody_speaks_counts_as_never_sent(kind: str) -> None:
    assert not was_sent(failure_of(kind, "gopher://127.0.0.1/"))


@both
def test_a_proxy_that_refuses_to_connect_counts_as_never_sent(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyServer(failure(502)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        error = failure_of(kind, "https://server.example/v1")
        assert isinstance(error, httpx.ProxyError)
        assert not was_sent(error)
        assert [one.method for one in proxy.received] == ["CONNECT"]


@pytest.mark.parametrize("kind", [httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout])
def test_the_same_error_from_a_transport_that_states_nothing_counts_as_sent(kind: type[Exception]) -> None:
    assert was_sent(kind("some transport's own reset"))


@both
def test_a_url_that_cannot_be_asked_is_no_ambiguous_outcome(kind: str) -> None:
    with driven(kind, "http://xn--a.example/v1") as driver, pytest.raises(APIConnectionError) as caught:
        driver.call("create_run", "thread_1", assistant_id="asst_1")
    assert not caught.value.sent
