"""Our own HTTP/1.1: an answer is the same in whatever pieces it comes, and the one that httpcore reads."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import httpcore
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.client.dialing import Places
from orchestrator.client.http11 import DirectConnection
from orchestrator.client.wire import MAX_HEAD_BYTES, MAX_UNREAD_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence


PATIENCE_S = 5.0
TIMEOUTS = {"connect": PATIENCE_S, "write": PATIENCE_S, "read": PATIENCE_S}

thoroughly = settings(
    max_examples=2000 if os.environ.get("ORCHESTRATOR_LONG") else 100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Reply:
    """What a request is answered with.

    Attributes:
        pieces: The bytes, each piece read by itself.
        ends: Whether the server hangs up then.
        resets: Whether it does that rudely.
    """

    pieces: Sequence[bytes]
    ends: bool = False
    resets: bool = False


@dataclass
class Server:
    """Answers each request with the next reply, and waits for its client to hang up when there is none."""

    script: deque[Reply]
    port: int = 0
    accepted: int = 0
    received: bytes = b""
    said: asyncio.Event = field(default_factory=asyncio.Event)
    handlers: set[asyncio.Task[Any]] = field(default_factory=set)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def origin(self) -> httpcore.Origin:
        return httpcore.Origin(b"http", b"127.0.0.1", self.port)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.handlers.add(task)
        self.writers.append(writer)
        self.accepted += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._answer(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while self.script:
            self.received += await reader.readuntil(b"\r\n\r\n")
            reply = self.script.popleft()
            for piece in reply.pieces:
                writer.write(piece)
                # The client, on the same loop, reads this piece before the next one is written.
                for _ in range(3):
                    await asyncio.sleep(0)
            self.said.set()
            if reply.resets:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if reply.ends or reply.resets:
                return
        self.received += await reader.read()


@asynccontextmanager
async def serving(*script: Reply) -> AsyncIterator[Server]:
    server = Server(deque(script))
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        await listener.wait_closed()
        for writer in server.writers:
            writer.transport.abort()  # if a test failed, nobody else does it
        await asyncio.gather(*server.handlers)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run something that must not hang."""
    return asyncio.run(asyncio.wait_for(main, 2 * PATIENCE_S))


def ours(origin: httpcore.Origin) -> DirectConnection:
    return DirectConnection(origin, tls=None, keepalive_s=60.0, places=Places())


def stock(origin: httpcore.Origin) -> httpcore.AsyncHTTPConnection:
    return httpcore.AsyncHTTPConnection(origin, keepalive_expiry=60.0)


def request(origin: httpcore.Origin, **more: Any) -> httpcore.Request:
    url = httpcore.URL(scheme=b"http", host=origin.host, port=origin.port, target=b"/x")
    fields: dict[str, Any] = {"method": "GET", "headers": [("host", "server.example")], **more}
    return httpcore.Request(fields.pop("method"), url, extensions={"timeout": TIMEOUTS}, **fields)


Make: TypeAlias = Callable[[httpcore.Origin], httpcore.AsyncConnectionInterface]


class Seen(NamedTuple):
    """What a client has of one answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    is_reusable: bool


async def answer(connection: httpcore.AsyncConnectionInterface, origin: httpcore.Origin) -> Seen:
    response = await connection.handle_async_request(request(origin))
    try:
        body = await response.aread()
    finally:
        await response.aclose()
    reusable = connection.is_idle() and not connection.has_expired()
    return Seen(response.status, response.headers, body, reusable)


async def conversation(make: Make, replies: Sequence[Reply]) -> tuple[list[Seen], int]:
    """Ask for one answer after another, on one connection as long as it can be used; say how many it took."""
    seen: list[Seen] = []
    async with serving(*replies) as server:
        connection = make(server.origin)
        for _ in replies:
            if seen and not seen[-1].is_reusable:
                await connection.aclose()
                connection = make(server.origin)
            seen.append(await answer(connection, server.origin))
        await connection.aclose()
    return seen, server.accepted


async def failure(make: Make, reply: Reply) -> str:
    """Ask for an answer that is broken; return the error's name."""
    async with serving(reply) as server:
        connection = make(server.origin)
        try:
            seen = await answer(connection, server.origin)
        except (httpcore.RemoteProtocolError, httpcore.ReadError) as error:
            assert not connection.is_idle() or connection.has_expired()
            return type(error).__name__
        finally:
            await connection.aclose()
    raise AssertionError(f"taken as whole: {seen}")


def head(status: int, *headers: tuple[bytes, bytes]) -> bytes:
    lines = [b"HTTP/1.1 %d Status" % status, *(b"%s: %s" % header for header in headers)]
    return b"\r\n".join([*lines, b"", b""])


def in_chunks(parts: Sequence[bytes], extension: bytes = b"", trailers: bytes = b"") -> bytes:
    chunks = (b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
    return b"".join([*chunks, b"0\r\n", trailers, b"\r\n"])


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
LENGTH = (b"Content-Length", b"5")
CHUNKED = (b"Transfer-Encoding", b"chunked")

WHOLE = {
    "a length": head(200, LENGTH) + b"hello",
    "a length of none": head(200, (b"content-length", b"0")),
    "chunks": head(200, CHUNKED) + in_chunks([b"hel", b"lo"], b";a=b", b"x-sum: 1\r\n"),
    "no content": head(204),
    "after a 100": CONTINUE + head(200, LENGTH) + b"hello",
}
"""Answers that say themselves where they end."""

HEADERS = st.lists(
    st.sampled_from(
        [
            (b"X-One", b"1"),
            (b"x-one", b"2"),
            (b"Set-Cookie", b"a=b"),
            (b"set-cookie", b"c=d; path=/"),
            (b"x-empty", b""),
            (b"x-bytes", "gr\u00fc\u00df".encode()),
            (b"connection", b"close"),
            (b"connection", b"keep-alive"),
        ]
    ),
    max_size=4,
)
BODIES = st.binary(max_size=60) | st.sampled_from([b"\r\n\r\n", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
PARTS = st.lists(BODIES.filter(bool), max_size=4)


class Sent(NamedTuple):
    """An answer in one piece, and whether only the connection's end ends it."""

    data: bytes
    ends: bool


@st.composite
def answers(draw: st.DrawFn) -> Sent:
    kind = draw(st.sampled_from(["length", "chunks", "until the end", "no body"]))
    headers = draw(HEADERS)
    before = b"".join(draw(st.lists(st.sampled_from([CONTINUE, HINTS]), max_size=2)))
    status, body, ends = draw(st.sampled_from([200, 404, 500])), b"", kind == "until the end"
    if kind == "length":
        body = draw(BODIES)
        headers.insert(draw(st.integers(0, len(headers))), (b"Content-Length", b"%d" % len(body)))
    elif kind == "chunks":
        extension = draw(st.sampled_from([b"", b";a=b"]))
        trailers = draw(st.sampled_from([b"", b"x-sum: 1\r\n", b"x-one: 3\r\nx-b: 4\r\n"]))
        body = in_chunks(draw(PARTS), extension, trailers)
        headers.insert(draw(st.integers(0, len(headers))), CHUNKED)
    elif kind == "no body":
        status = draw(st.sampled_from([204, 304]))
    else:
        body = draw(BODIES)
    return Sent(before + head(status, *headers) + body, ends)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    ends = sorted({place % len(data) for place in places} - {0})
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


CUTS = st.lists(st.integers(0, 10_000), max_size=8) | st.just(list(range(10_000)))
"""Where an answer is cut, or everywhere."""


@thoroughly
@given(st.lists(st.tuples(answers(), CUTS), min_size=1, max_size=3))
def test_answers_in_pieces_are_what_they_are_in_one_and_what_httpcore_makes_of_them(
    cases: list[tuple[Sent, list[int]]],
) -> None:
    whole = [Reply([sent.data], ends=sent.ends) for sent, _ in cases]
    pieces = [Reply(cut(sent.data, places), ends=sent.ends) for sent, places in cases]
    in_one = run(conversation(ours, whole))
    assert run(conversation(ours, pieces)) == in_one
    assert run(conversation(stock, whole)) == in_one


def test_trailers_are_no_headers() -> None:
    """Whether they come with the head or long after it, which a proxy on the way may decide."""
    data = head(200, CHUNKED) + in_chunks([b"hello"], trailers=b"x-sum: 1\r\n")
    for pieces in ([data], cut(data, range(len(data)))):
        ((seen,), _) = run(conversation(ours, [Reply(pieces)]))
        assert seen == Seen(200, [CHUNKED], b"hello", is_reusable=True)


@pytest.mark.parametrize("before", [CONTINUE, HINTS, CONTINUE + HINTS])
def test_a_connection_is_used_again_after_an_answer_that_others_announced(before: bytes) -> None:
    data = before + head(200, LENGTH) + b"hello"
    for pieces in ([data], cut(data, range(len(data))), [before, data.removeprefix(before)]):
        _, accepted = run(conversation(ours, [Reply(pieces), Reply([data])]))
        assert accepted == 1


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE.keys())
@pytest.mark.parametrize("resets", [False, True], ids=["closed", "reset"])
def test_an_answer_cut_short_anywhere_is_never_taken_as_whole(data: bytes, resets: bool) -> None:
    async def main() -> None:
        for length in range(len(data)):
            reply = Reply([data[:length]], ends=True, resets=resets)
            error = await failure(ours, reply)
            if not resets:  # how much of what came before a reset is read, is chance
                assert error == await failure(stock, reply) == "RemoteProtocolError", length

    run(main())


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(data: bytes) -> None:
    for pieces in ([data], cut(data, range(len(data)))):
        for make in (ours, stock):
            assert run(failure(make, Reply(pieces))) == "RemoteProtocolError"


SURPLUS = [b"x", b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", head(200, LENGTH) + b"other"]


@thoroughly
@given(answers().filter(lambda sent: not sent.ends), st.sampled_from(SURPLUS), CUTS)
def test_a_connection_with_bytes_after_its_answer_is_not_used_again(
    sent: Sent, surplus: bytes, places: list[int]
) -> None:
    async def main() -> None:
        async with serving(Reply(cut(sent.data + surplus, places)), Reply([sent.data])) as server:
            connection = ours(server.origin)
            first = await answer(connection, server.origin)
            await server.said.wait()
            assert not connection.is_idle() or connection.has_expired()
            await connection.aclose()
            other = ours(server.origin)
            assert (await answer(other, server.origin))[:3] == first[:3]
            await other.aclose()

    run(main())


def test_trailers_have_a_greatest_size() -> None:
    async def main() -> None:
        pieces = [b"x" * 1000] * (MAX_HEAD_BYTES // 1000 + 1)
        async with serving(
            Reply([head(200, CHUNKED), b"5\r\nhello\r\n", b"0\r\nx-long: ", *pieces])
        ) as server:
            connection = ours(server.origin)
            with pytest.raises(httpcore.RemoteProtocolError, match="larger than"):
                await answer(connection, server.origin)
            await connection.aclose()

    run(main())


@pytest.mark.parametrize(
    "piece",
    [b"x" * 1000, b"\r\nx-many: 1" * 100, b"\r\n\r\nHTTP/1.1 100 Continue\r\nx: "],
    ids=["one header", "many headers", "many heads"],
)
def test_a_head_has_a_greatest_size(piece: bytes) -> None:
    async def main() -> None:
        pieces = [piece] * (MAX_HEAD_BYTES // len(piece) + 1)
        async with serving(Reply([b"HTTP/1.1 100 Continue\r\nx-long: ", *pieces])) as server:
            connection = ours(server.origin)
            with pytest.raises(httpcore.RemoteProtocolError, match="larger than"):
                await answer(connection, server.origin)
            await connection.aclose()

    run(main())


SECRET = "sk-very-secret"


@pytest.mark.parametrize(
    "fields",
    [
        *(
            pytest.param({"headers": [("authorization", value)]}, id=repr(value))
            for value in (
                f"{SECRET}\r\nx-other: 1",
                f"{SECRET}\n",
                f"\r{SECRET}",
                f"{SECRET}\x00",
                f" {SECRET}",
                f"{SECRET} ",
            )
        ),
        *(
            pytest.param({"headers": [(name, SECRET)]}, id=repr(name))
            for name in ("x y", "", "x:", "x\r\ny", "\x00")
        ),
        pytest.param({"method": "GET /other HTTP/1.1\r\nx:"}, id="a method"),
    ],
)
def test_what_would_be_another_request_is_refused_unsent_and_without_being_repeated(
    fields: dict[str, Any],
) -> None:
    async def main() -> None:
        async with serving(*[Reply([WHOLE["a length"]])] * 2) as server:
            connection = ours(server.origin)
            with pytest.raises(httpcore.LocalProtocolError) as caught:
                await connection.handle_async_request(request(server.origin, **fields))
            assert SECRET not in str(caught.value)
            assert server.accepted == 0
            assert (await answer(connection, server.origin)).is_reusable
            received = server.received
            with pytest.raises(httpcore.LocalProtocolError):
                await connection.handle_async_request(request(server.origin, **fields))
            assert (await answer(connection, server.origin)).is_reusable
            await connection.aclose()
        assert server.accepted == 1
        assert server.received == received * 2

    run(main())


def test_a_large_answer_that_nobody_read_does_not_stop_the_next_one() -> None:
    """Nothing is read from its connection, so that no other may wait for an answer there."""
    piece = b"x" * 2**15
    pieces = [piece] * (MAX_UNREAD_BYTES // len(piece) + 1)

    async def main() -> None:
        length = b"%d" % (len(pieces) * len(piece))
        reply = Reply([head(200, (b"content-length", length)), *pieces])
        async with serving(reply) as server:
            connection = ours(server.origin)
            response = await connection.handle_async_request(request(server.origin))
            await server.said.wait()
            assert connection._wire is not None
            assert connection._wire._is_paused
            await response.aclose()
            assert not connection.is_available()

    run(main())
