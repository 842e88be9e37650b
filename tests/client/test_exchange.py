"""What an answer is to the asynchronous client, and where its requests go: on our pools as on httpx's own."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
import traceback
import zlib
from typing import TYPE_CHECKING, NamedTuple

import httpcore
import httpx
import pytest
from faulty_server import PATIENCE_S, FaultyServer, Peer, Step, event, head, raw, reply

from orchestrator.client.exchange import AsyncCarrier
from orchestrator.client.settings import Request
from orchestrator.errors import APIConnectionError

if TYPE_CHECKING:
    from collections.abc import Mapping

CARRIERS = pytest.mark.parametrize("stock", [False, True], ids=["ours", "httpx's"])
SECRET = "sk-very-secret"


class Got(NamedTuple):
    """One answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    parts: list[bytes]


def request(base_url: str, path: str = "/threads", headers: dict[str, str] | None = None) -> Request:
    return Request(
        method="GET",
        base_url=base_url,
        path=path,
        query="",
        headers=headers or {},
        content=None,
        timeout_s=10.0,
        extensions={"timeout": {"pool": 5.0, "connect": 5.0, "write": 5.0, "read": 5.0}, "lane": "control"},
        tokens=None,
        exposes_key=False,
    )


def ask(*requests: Request, stock: bool = False) -> list[Got]:
    """Send one request after another."""

    async def main() -> list[Got]:
        carrier = AsyncCarrier(
            max_connections=1,
            transport=httpx.AsyncHTTPTransport() if stock else None,
            verify=None,
            proxy=None,
        )
        got = []
        try:
            for one in requests:
                answer = await carrier.send(one)
                parts = [part async for part in answer.parts]
                await answer.aclose()
                got.append(Got(answer.status, answer.headers, parts))
        finally:
            await carrier.aclose()
        return got

    return asyncio.run(main())


def answering(*headers: bytes, body: bytes = b"{}") -> Step:
    lines = [b"HTTP/1.1 200 OK", b"content-length: %d" % len(body), *headers]
    return raw(b"\r\n".join([*lines, b"", body]))


@CARRIERS
def test_headers_have_small_names_and_those_that_come_twice_are_joined(stock: bool) -> None:
    step = answering(b"X-One: 1", b"x-two: a", b"X-ONE: 2", b"x-one: 3, 4", b"x-none:")
    with FaultyServer(step) as server:
        (got,) = ask(request(server.url), stock=stock)
    assert got.headers == {"content-length": "2", "x-one": "1, 2, 3, 4", "x-two": "a", "x-none": ""}


@CARRIERS
@pytest.mark.parametrize("value", ["gr\u00fc\u00df dich", "\u65e5\u672c"], ids=["latin", "further"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_headers_may_hold_any_text(stock: bool, value: str, encoding: str) -> None:
    raw_value = value.encode(encoding, "replace")
    with FaultyServer(answering(b"x-request-id: " + raw_value)) as server:
        (got,) = ask(request(server.url), stock=stock)
    assert got.headers["x-request-id"] == raw_value.decode(encoding)


EVENTS = [event("thread.message.delta", {"text": letter * 50}) for letter in "abc"]


@CARRIERS
def test_a_compressed_answer_is_read_as_what_it_was(stock: bool) -> None:
    body = b"".join(EVENTS)
    step = reply(gzip.compress(body), headers={"content-encoding": "gzip"})
    with FaultyServer(step, step) as server:
        first, second = ask(*[request(server.url)] * 2, stock=stock)
        assert server.accepted == 1
    assert b"".join(first.parts) == b"".join(second.parts) == body


@CARRIERS
def test_a_compressed_stream_is_read_as_it_comes(stock: bool) -> None:
    squeeze = zlib.compressobj(wbits=31)
    pieces = [squeeze.compress(data) + squeeze.flush(zlib.Z_SYNC_FLUSH) for data in EVENTS]
    pieces.append(squeeze.flush())
    read = threading.Semaphore(0)

    async def main(url: str) -> list[bytes]:
        carrier = AsyncCarrier(
            max_connections=1,
            transport=httpx.AsyncHTTPTransport() if stock else None,
            verify=None,
            proxy=None,
        )
        answer = await carrier.send(request(url))
        parts = []
        async for part in answer.parts:
            parts.append(part)
            read.release()
        await answer.aclose()
        await carrier.aclose()
        return parts

    def in_time(peer: Peer) -> bool:
        peer.read()
        peer.send(head(200, transfer_encoding="chunked", content_encoding="gzip"))
        for piece in pieces[:-1]:
            peer.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            assert read.acquire(timeout=PATIENCE_S), "the part never came"
        peer.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(pieces[-1]), pieces[-1]))
        return True

    with FaultyServer(in_time) as server:
        assert asyncio.run(main(server.url)) == EVENTS


def loopbacks() -> list[str]:
    """The addresses of this machine for itself: not every one has IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return ["127.0.0.1"]
    return ["127.0.0.1", "::1"]


@CARRIERS
@pytest.mark.parametrize("host", loopbacks())
@pytest.mark.parametrize("prefix", ["", "/v1", "/openai/v1/", "/a%20b"])
def test_a_base_url_may_have_a_port_and_a_path(stock: bool, host: str, prefix: str) -> None:
    with FaultyServer(default=reply({}), host=host) as server:
        root = server.url.removesuffix("/v1")
        for _ in range(2):
            ask(request(f"{root}{prefix.rstrip('/')}"), stock=stock)
        assert [one.target for one in server.received] == [f"{prefix.rstrip('/')}/threads"] * 2
        assert server.received[0].headers["host"] == root.removeprefix("http://")


@pytest.mark.parametrize("end", ["\r\nx-other: 1", "\n", "\r", "\x00", "\u00fc"])
def test_a_header_that_cannot_be_sent_is_refused_and_not_repeated(end: str) -> None:
    with FaultyServer(default=reply({})) as server:
        with pytest.raises((httpcore.LocalProtocolError, APIConnectionError)) as caught:
            ask(request(server.url, headers={"authorization": f"Bearer {SECRET}{end}"}))
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        assert not getattr(caught.value, "sent", False)
        assert server.accepted == 0


@pytest.mark.parametrize("path", ["/a b", "/a\r\nx: y", "/\u00fc"])
def test_a_path_that_cannot_be_sent_is_refused(path: str) -> None:
    with FaultyServer(default=reply({})) as server:
        with pytest.raises((httpcore.LocalProtocolError, APIConnectionError)):
            ask(request(server.url, path))
        assert server.accepted == 0
