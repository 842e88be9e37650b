"""One asyncio transport that carries HTTP/1.1: bytes go out, an answer comes in, and then perhaps the next.

Owns the framing of answers (httptools parses them), the waiting with its time-outs, and back pressure. What
goes wrong it says as httpcore would. It refuses to know what is sent and who asks.

Imported on first use, because it imports httpcore.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Any, Final, cast

import httpcore
import httptools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["MAX_HEAD_BYTES", "MAX_UNREAD_BYTES", "Wire"]

MAX_HEAD_BYTES: Final = 100 * 1024
"""The most that an answer's head, or its trailers, may take: as much as httpcore allows."""

MAX_UNREAD_BYTES: Final = 256 * 1024
"""With more than this unread, the server has to wait."""

EMPTY_LINE: Final = b"\r\n\r\n"
"""With the end of the line before it."""

Headers = list[tuple[bytes, bytes]]


class Wire(asyncio.Protocol):
    """The connection's two ends: what is written and read, and who waits for that."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self._loop = asyncio.get_running_loop()
        self._parser: Any = None
        self._parts: list[bytes] = []
        self._unread = 0
        self._head_bytes = 0
        self._has_head = self._is_complete = False
        self._is_busy = self._is_broken = False
        self._is_chunked = self._needs_end = False
        self._tail = b""
        self._fed_body = self._fed_heads = 0
        self._error: Exception | None = None
        self._read_s: float | None = None
        self._take: Callable[[bytes], bool] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._is_full = self._is_paused = False
        self._reads_by = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    # What a request needs.

    @property
    def is_idle(self) -> bool:
        """Whether it waits for the next request."""
        return not (self._is_busy or self._is_broken)

    async def exchange(self, message: bytes, write_s: float | None, read_s: float | None) -> Wire:
        """Send a request and wait for the head of its answer."""
        self._begin(read_s)
        self._transport.write(message)
        if self._is_full:
            await self._wait_for_room(write_s)
        while not self._has_head:
            if self._error is not None:
                raise self._error
            await self._wait()
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Wait for the next part of the body: everything that has come."""
        while not self._parts:
            if self._is_complete or not self._is_busy:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            await self._wait()
        return self._taken()

    async def deliver(self, take: Callable[[bytes], bool]) -> None:
        """Hand over every part of the body as it comes; what `take` raises is raised here."""
        self._take = take
        try:
            if self._parts and not take(self._taken()):
                return
            while self._take is not None and self._is_busy and not self._is_complete:
                if self._error is not None:
                    raise self._error
                await self._wait()
        finally:
            self._take = None

    def _taken(self) -> bytes:
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        self._unread = 0
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    def finish(self) -> bool:
        """Be idle, if the answer came to its end and the connection outlives it."""
        self._is_busy = False
        self._parts = []
        self._unread = 0
        return self._is_complete and not (self._is_broken or self._is_full or self._is_paused)

    def is_readable(self) -> bool:
        """Whether the system has something for us that the loop did not come to yet."""
        descriptor = self._transport.get_extra_info("socket").fileno()
        if descriptor < 0:
            return True
        if not hasattr(select, "poll"):
            return bool(select.select([descriptor], [], [], 0)[0])
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close it at once; whoever waits is told."""
        self._is_broken = True
        self._fail(httpcore.ReadError("the connection was closed while it was used"))
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._transport.abort()

    def _begin(self, read_s: float | None) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._is_busy = True
        self._has_head = self._is_complete = False
        self._head_bytes = 0
        self._tail = b""
        self._read_s = read_s
        self._error = None

    async def _wait_for_room(self, write_s: float | None) -> None:
        """Wait until the request has left, or an answer makes that superfluous."""
        try:
            async with asyncio.timeout(write_s):
                while self._is_full and not self._has_head and self._error is None:
                    self._drained = self._loop.create_future()
                    await self._drained
        except TimeoutError as error:
            raise httpcore.WriteTimeout(f"the request was not taken in {write_s} s") from error
        finally:
            self._drained = None

    async def _wait(self) -> None:
        """Wait for the server, no longer than one read may take."""
        self._waiter = self._loop.create_future()
        if self._read_s is not None:
            self._reads_by = self._loop.time() + self._read_s
            if self._alarm is None:
                self._alarm = self._loop.call_at(self._reads_by, self._ring)
            elif self._alarm.when() > self._reads_by:
                self._alarm.cancel()
                self._alarm = self._loop.call_at(self._reads_by, self._ring)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _ring(self) -> None:
        # One timer for many reads: each would have its own set and cancelled, for every event of a stream.
        self._alarm = None
        if self._waiter is None or self._read_s is None:
            return
        if self._loop.time() < self._reads_by:
            self._alarm = self._loop.call_at(self._reads_by, self._ring)
            return
        self._fail(httpcore.ReadTimeout(f"nothing came for {self._read_s} s"))

    def _wake(self) -> None:
        for waiting in (self._waiter, self._drained):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._is_broken = True
        if self._error is None and not self._is_complete:
            self._error = error
        self._wake()

    # What asyncio tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what has come; what nobody has asked for ends the connection."""
        if self._is_busy and not self._is_complete:
            self._parse(data)
        else:
            self._is_broken = True  # nobody has asked for it

    def _parse(self, data: bytes) -> None:
        had_head = self._has_head
        self._fed_body = self._fed_heads = 0
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(httpcore.RemoteProtocolError(f"no HTTP: {error}"))
        if not self._is_complete:
            self._head_bytes = 0 if self._fed_body else self._head_bytes + len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._fail(httpcore.RemoteProtocolError(f"headers are larger than {MAX_HEAD_BYTES} bytes"))
        if self._is_complete and not self._ends_with(data, had_head=had_head):
            self._is_broken = True
        self._tail = data[-5:] if len(data) > 4 else (self._tail + data)[-5:]
        if self._take is not None:
            self._hand_over(self._take)
            return
        if self._unread > MAX_UNREAD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def _hand_over(self, take: Callable[[bytes], bool]) -> None:
        """Hand over what has come, and wake whoever waits if that was all."""
        if self._parts:
            try:
                if not take(self._taken()):
                    self._take = None
            except Exception as error:  # noqa: BLE001 - it goes to whoever waits
                self._take = None
                if self._waiter is not None and not self._waiter.done():
                    self._waiter.set_exception(error)
        if self._take is None or self._is_complete or self._error is not None:
            self._wake()
        elif self._read_s is not None:
            self._reads_by = self._loop.time() + self._read_s

    def _ends_with(self, data: bytes, *, had_head: bool) -> bool:
        """Whether the answer that is complete now ends where these bytes end.

        The parser tells of a message that follows, but swallows line ends between two.
        """
        seen = self._tail + data
        if self._is_chunked:
            return seen.endswith(EMPTY_LINE) and not seen.endswith(b"\n\r\n\r\n")
        begins = len(self._tail)
        if not had_head:
            # Heads that only announced the answer end with an empty line, too, perhaps in the tail.
            begins = self._tail.find(EMPTY_LINE) + len(EMPTY_LINE) if EMPTY_LINE in self._tail else 0
            for _ in range(self._fed_heads):
                ends = seen.find(EMPTY_LINE, begins)
                if ends < 0:
                    return False
                begins = ends + len(EMPTY_LINE)
        return len(seen) - begins == self._fed_body

    def eof_received(self) -> None:
        """The peer sends no more: the end of an answer that is as long as the connection, else a failure."""
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Likewise, and nothing can be sent."""
        self._end(exc)

    def pause_writing(self) -> None:
        """A request does not fit into the buffers any more."""
        self._is_full = True

    def resume_writing(self) -> None:
        """It does again."""
        self._is_full = False
        self._wake()

    def _end(self, exc: Exception | None) -> None:
        if self._is_busy and self._has_head and self._needs_end and exc is None and self._error is None:
            self._is_complete = True
        elif exc is not None:
            error = httpcore.ReadError(str(exc) or type(exc).__name__)
            error.__cause__ = exc
            self._fail(error)
        elif self._has_head:
            self._fail(httpcore.RemoteProtocolError("the server hung up before the answer's end"))
        else:
            self._fail(httpcore.RemoteProtocolError("Server disconnected without sending a response."))
        self._is_broken = True
        self._wake()

    # What the parser tells.

    def on_message_begin(self) -> None:
        """Begin a head."""
        if self._is_complete:
            self._is_broken = True  # bytes after the answer
            return
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        if not self._has_head:  # what follows a chunked body is no header
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """End a head: perhaps the answer's."""
        if self._is_complete:
            return
        self._fed_heads += 1
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return  # the answer itself is still to come
        framing = {name.lower() for name, _ in self.headers}
        self._is_chunked = b"transfer-encoding" in framing
        self._needs_end = not self._is_chunked and b"content-length" not in framing
        self._has_head = True
        if not self._parser.should_keep_alive():
            self._is_broken = True

    def on_body(self, data: bytes) -> None:
        """Keep a part of the body."""
        if not self._is_complete:
            self._parts.append(data)
            self._unread += len(data)
            self._fed_body += len(data)

    def on_message_complete(self) -> None:
        """End the answer."""
        if self._has_head:
            self._is_complete = True
