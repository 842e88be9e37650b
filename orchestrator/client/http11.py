"""A connection of our own that speaks HTTP/1.1: opened by its first request, then used again and again.

Owns what a request looks like on the wire, and whether the connection may be used again. Answers are the
wire's (`orchestrator.client.wire`). It refuses to know pools, retries and what a body means; it speaks no
HEAD, CONNECT or upgrade, and sends bodies whole. What goes wrong it says with httpcore's own exceptions, so
that nobody above needs to know whose connection it was.

httpcore's own connections cost ten times as much for each piece of an answer, and event streams come in many.
Imported on first use, because it imports httpcore.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Final, cast

import httpcore
from httpcore import AsyncConnectionInterface

from orchestrator.client.dialing import Places, acquire, dial
from orchestrator.client.wire import Wire

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable

__all__ = ["DirectBody", "DirectConnection"]

# What RFC 9110 allows; a line break in a header of the user's would begin another one.
_HEADER_NAME: Final = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_HEADER_VALUE: Final = re.compile(rb"(?:[^\x00\s](?:[^\x00\r\n\f\v]*[^\x00\s])?)?")
_TARGET: Final = re.compile(rb"[\x21-\x7e]+")


class DirectConnection(AsyncConnectionInterface):
    """A connection to a server, opened by its first request; one request at a time.

    Args:
        origin: The server.
        tls: Whom to trust, for https.
        keepalive_s: How long it may be idle.
        places: How many may be opened at once.
    """

    def __init__(
        self, origin: httpcore.Origin, *, tls: ssl.SSLContext | None, keepalive_s: float, places: Places
    ) -> None:
        self._origin = origin
        self._tls = tls if origin.scheme == b"https" else None
        self._keepalive_s = keepalive_s
        self._places = places
        self._wire: Wire | None = None
        self._idle_until = 0.0
        self._closed = False

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request; return its answer, whose body is still to be read or closed.

        Raises:
            httpcore.ConnectionNotAvailable: The connection is closed or busy; nothing was sent.
            httpcore.LocalProtocolError: The request cannot be sent; nothing was.
            httpcore.ConnectError: There is no connection; nothing was sent.
            httpcore.ConnectTimeout: The same.
            httpcore.WriteTimeout: The server does not take the request.
            httpcore.ReadTimeout: It does not answer.
            httpcore.ReadError: The connection broke.
            httpcore.RemoteProtocolError: The server hung up, or what it answers is no HTTP.
        """
        if self._closed or (self._wire is not None and not self._wire.is_idle):
            raise httpcore.ConnectionNotAvailable
        message = await _encoded(request)
        timeouts = request.extensions.get("timeout", {})
        if self._wire is None:
            self._wire = await self._opened(timeouts.get("connect"))
        answer = await self._wire.exchange(message, timeouts.get("write"), timeouts.get("read"))
        body = DirectBody(self._wire, self)
        return httpcore.Response(answer.status, headers=answer.headers, content=body)

    async def _opened(self, timeout_s: float | None) -> Wire:
        host, port = self._origin.host.decode("ascii"), self._origin.port
        place = self._places.to(host, port)
        await acquire(place)
        try:
            wire = await dial(Wire, host, port, tls=self._tls, timeout_s=timeout_s)
        finally:
            place.release()
        if self._closed:
            wire.close()
            raise httpcore.ConnectError("the connection was closed while it was opened")
        return wire

    def rest(self) -> None:
        """Take note that the answer was read to its end."""
        self._idle_until = time.monotonic() + self._keepalive_s

    async def aclose(self) -> None:
        """Close the connection, whatever is under way. Repeatable."""
        self._closed = True
        if self._wire is not None:
            self._wire.close()
            await asyncio.sleep(0)  # the loop lets go of the socket in its next turn

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        """Whether it leads to this server."""
        return origin == self._origin

    def is_available(self) -> bool:
        """Whether it can take a request."""
        return not self._closed and (self._wire is None or self._wire.is_idle)

    def is_idle(self) -> bool:
        """Whether it can be used again."""
        return not self._closed and self._wire is not None and self._wire.is_idle

    def is_over(self) -> bool:
        """Whether it was idle for too long, or is known to be of no more use."""
        if self._wire is None:
            return self._closed
        return time.monotonic() > self._idle_until or not self._wire.is_idle

    def has_expired(self) -> bool:
        """Whether it is over, or there is something to be read, which can only be its end."""
        return self.is_over() or (self._wire is not None and self._wire.is_readable())

    def is_closed(self) -> bool:
        """Whether it is of no more use."""
        return self._closed

    def info(self) -> str:
        """For people."""
        return f"{self._origin}, {'closed' if self._closed else 'idle' if self.is_idle() else 'active'}"


class DirectBody:
    """An answer's body, to be read once, to its end or not."""

    __slots__ = ("_connection", "_wire")

    def __init__(self, wire: Wire, connection: DirectConnection) -> None:
        self._wire = wire
        self._connection = connection

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._wire

    async def deliver(self, take: Callable[[bytes], bool]) -> None:
        """Hand every part over as it comes, on the spot, until the body ends or `take` wants no more.

        Nobody is woken for a part: for a stream of small events that would cost more than the events.
        """
        await self._wire.deliver(take)

    async def aclose(self) -> None:
        """Let go of the answer; only a connection whose answer came to its end can be used again."""
        if self._wire.finish():
            self._connection.rest()
        else:
            await self._connection.aclose()


async def _encoded(request: httpcore.Request) -> bytes:
    """A request as it goes out.

    Raises:
        httpcore.LocalProtocolError: It would not be one request.
    """
    target = request.url.target
    if not _TARGET.fullmatch(target) or not _HEADER_NAME.fullmatch(request.method):
        raise httpcore.LocalProtocolError("the method or the URL cannot be sent")
    lines = [b"%s %s HTTP/1.1" % (request.method, target)]
    for name, value in request.headers:
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            # Not repeated: it may be a key.
            raise httpcore.LocalProtocolError(f"Illegal header value of {name.decode('ascii', 'replace')!r}")
        lines.append(b"%s: %s" % (name, value))
    stream = cast("AsyncIterator[bytes]", request.stream)
    body = b"".join([part async for part in stream])
    return b"%s\r\n\r\n%s" % (b"\r\n".join(lines), body)
