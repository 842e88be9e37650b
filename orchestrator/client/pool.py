"""Who may use a connection: lanes for both clients, and a constant-time pool for the asynchronous one.

httpcore's own pool looks at every idle connection for every request, several times over; at a thousand
open streams that costs more than all the rest. Here a request costs the same beside one stream or
thousands: idle connections wait on a stack per origin, and each lane is a semaphore. The blocking client,
whose requests cost a thread each, keeps httpcore's pool behind the same lanes. The connections themselves,
TLS, proxies, timeouts and exceptions stay httpcore's, so that a `ConnectError` still means what it says.

Imported on first use, because it imports httpcore. Asyncio only; a `LanePool` belongs to the loop it is used
on.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from contextlib import AsyncExitStack
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import httpcore

from orchestrator.client.deadline import PunctualBackend
from orchestrator.client.dialing import Places, acquire, patience_until
from orchestrator.client.http11 import DirectBody, DirectConnection
from orchestrator.client.sockets import TidyBackend

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

    from httpcore import AsyncConnectionInterface

__all__ = ["BlockingLanePool", "LanePool", "hand_over", "lanes"]

LOOK_S: Final = 1.0
"""How often idle connections are looked at, in seconds, while there are any."""


def lanes(max_connections: int) -> dict[str, int]:
    """Return how many requests each lane may have open at once.

    Args:
        max_connections: Open streams; control calls and cancels have their own share beside them.
    """
    return {
        "stream": max_connections,
        "control": max(8, max_connections // 4),
        "cancel": max(4, max_connections // 10),
    }


_Origin: TypeAlias = tuple[bytes, bytes, int]


class LanePool(httpcore.AsyncConnectionPool):
    """A pool whose requests cost the same, however many connections are open or idle.

    A request waits for a permit of its lane (extension `"lane"`; `"control"` without one), takes the
    connection of its origin that was used last or opens one, and holds both until its answer is closed.
    Idle connections leave the stack when their time is over or their peer hung up: each is looked at when it
    is taken, and one timer looks at all of them, so that none is forgotten when no request follows.

    Args:
        stock: The pool that knows how to connect, through a proxy if need be.
        permits: A semaphore for each lane, shared by the pools of one client.
    """

    def __init__(self, stock: httpcore.AsyncConnectionPool, permits: Mapping[str, asyncio.Semaphore]) -> None:
        super().__init__()
        self._places = Places()
        stock._network_backend = TidyBackend(stock._network_backend, self._places)  # noqa: SLF001 - the seam, again
        self._stock = stock
        self._permits = permits
        expiry = stock._keepalive_expiry  # noqa: SLF001 - the same
        self._keepalive_s = math.inf if expiry is None else expiry
        # Stacks that lose one from their middle as cheaply as from their end; the oldest comes first.
        self._idle: defaultdict[_Origin, dict[AsyncConnectionInterface, None]] = defaultdict(dict)
        self._active: set[AsyncConnectionInterface] = set()
        self._look: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._shut = False

    def create_connection(self, origin: httpcore.Origin) -> AsyncConnectionInterface:
        """Return a connection that will be opened by its first request: our own, unless there is a proxy."""
        stock = self._stock
        if type(stock) is not httpcore.AsyncConnectionPool:
            return stock.create_connection(origin)
        return DirectConnection(
            origin,
            tls=stock._ssl_context,  # noqa: SLF001 - the seam, again
            keepalive_s=self._keepalive_s,
            places=self._places,
        )

    @property
    def connections(self) -> list[AsyncConnectionInterface]:
        """The connections that are open, idle ones first."""
        return [*(connection for stack in self._idle.values() for connection in stack), *self._active]

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request; the answer's stream must be closed, as httpx does.

        Raises:
            httpcore.PoolTimeout: The lane was full for too long; nothing was sent.
        """
        if request.url.scheme not in (b"http", b"https"):
            raise httpcore.UnsupportedProtocol(f"not http or https: {request.url.scheme.decode()!r}")
        permit = self._permits[request.extensions.get("lane", "control")]
        wait_s = request.extensions.get("timeout", {}).get("pool")
        patience_until.set(None if wait_s is None else asyncio.get_running_loop().time() + wait_s)
        await acquire(permit)
        try:
            connection, response = await self._send(request)
        except BaseException:
            permit.release()
            raise
        lent = _LentStream(self, connection, _key(request.url.origin), permit, response.stream)
        return httpcore.Response(
            response.status, headers=response.headers, content=lent, extensions=response.extensions
        )

    async def _send(self, request: httpcore.Request) -> tuple[AsyncConnectionInterface, httpcore.Response]:
        while True:
            connection = await self._take(request.url.origin)
            try:
                return connection, await connection.handle_async_request(request)
            except httpcore.ConnectionNotAvailable:
                await self._discard(connection)
            except BaseException:
                await self._discard(connection)
                raise

    async def _take(self, origin: httpcore.Origin) -> AsyncConnectionInterface:
        if self._shut:
            raise httpcore.ConnectError("the pool is closed")
        while stack := self._idle.get(_key(origin)):
            connection, _ = stack.popitem()
            if not connection.has_expired():
                break
            await connection.aclose()
        else:
            connection = self.create_connection(origin)
        self._active.add(connection)
        return connection

    async def give_back(
        self, connection: AsyncConnectionInterface, origin: _Origin, permit: asyncio.Semaphore
    ) -> None:
        """Take back a connection and the permit it was used under, once."""
        try:
            if connection.is_idle() and not self._shut:
                self._active.discard(connection)
                self._idle[origin][connection] = None
                if self._look is None:
                    self._look_later()
            else:
                await self._discard(connection)
        finally:
            permit.release()

    def _look_later(self) -> None:
        delay_s = min(self._keepalive_s, LOOK_S)
        # In a context of its own: it outlives the request that begins it.
        self._look = asyncio.get_running_loop().call_later(delay_s, self._close_those_over, context=Context())

    def _close_those_over(self) -> None:
        """Close the idle connections that are over, and look again later if others are left."""
        self._look = None
        over: list[AsyncConnectionInterface] = []
        for origin, stack in list(self._idle.items()):
            gone = [connection for connection in stack if _is_over(connection)]
            for connection in gone:
                del stack[connection]
            if not stack:
                del self._idle[origin]
            over += gone
        if over:
            task = asyncio.get_running_loop().create_task(_close_each(over))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        if self._idle:
            self._look_later()

    async def _discard(self, connection: AsyncConnectionInterface) -> None:
        self._active.discard(connection)
        await connection.aclose()

    async def aclose(self) -> None:
        """Close every connection, used ones too; what still comes back is closed then."""
        self._shut = True
        connections = self.connections
        self._idle.clear()
        self._active.clear()
        if self._look is not None:
            self._look.cancel()
            self._look = None
        await _close_each(connections)
        if self._closing:
            await asyncio.wait(self._closing)


async def hand_over(parts: AsyncIterator[bytes], take: Callable[[bytes], bool]) -> None:
    """Hand the parts of a body over one by one, until it ends or `take` wants no more."""
    async for part in parts:
        if not take(part):
            return


class _LentStream:
    """An answer's body, and with it the connection: whichever way it ends, both go back exactly once."""

    __slots__ = ("_body", "_connection", "_origin", "_parts", "_permit", "_pool", "_returned")

    def __init__(
        self,
        pool: LanePool,
        connection: AsyncConnectionInterface,
        origin: _Origin,
        permit: asyncio.Semaphore,
        body: Any,
    ) -> None:
        self._pool = pool
        self._connection = connection
        self._origin = origin
        self._permit = permit
        self._body = body
        self._parts: AsyncIterator[bytes] = aiter(body)
        self._returned = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._returned:
            # Whatever comes on that connection now belongs to somebody else.
            raise httpcore.ReadError("the answer was closed before it was read")
        try:
            return await self._parts.__anext__()
        except StopAsyncIteration:
            raise
        except BaseException:
            await self.aclose()
            raise

    async def deliver(self, take: Callable[[bytes], bool]) -> None:
        """Hand every part over as it comes, until the body ends or `take` wants no more."""
        if self._returned or not isinstance(self._body, DirectBody):
            await hand_over(self, take)
            return
        try:
            await self._body.deliver(take)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        if self._returned:
            return
        self._returned = True
        try:
            await self._body.aclose()
        finally:
            await self._pool.give_back(self._connection, self._origin, self._permit)


class BlockingLanePool(httpcore.ConnectionPool):
    """A pool whose requests wait for a permit of their lane (extension `"lane"`), and for nothing else.

    Args:
        stock: The pool that keeps the connections; at least as large as all lanes together.
        permits: A semaphore for each lane, shared by the pools of one client.
    """

    def __init__(self, stock: httpcore.ConnectionPool, permits: Mapping[str, threading.Semaphore]) -> None:
        super().__init__()
        stock._network_backend = PunctualBackend(stock._network_backend)  # noqa: SLF001 - the seam, again
        self._stock = stock
        self._permits = permits
        self._shut = False

    @property
    def connections(self) -> list[httpcore.ConnectionInterface]:
        """The connections that are open."""
        return self._stock.connections

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request; the answer's stream must be closed, as httpx does.

        Raises:
            httpcore.PoolTimeout: The lane was full for too long; nothing was sent.
        """
        permit = self._permits[request.extensions.get("lane", "control")]
        wait_s = request.extensions.get("timeout", {}).get("pool")
        if not permit.acquire(timeout=wait_s):
            raise httpcore.PoolTimeout(f"no connection was free for {wait_s} s")
        try:
            if self._shut:
                raise httpcore.ConnectError("the pool is closed")
            response = self._stock.handle_request(request)
        except BaseException:
            permit.release()
            raise
        lent = _PermittedStream(response.stream, permit)
        return httpcore.Response(
            response.status, headers=response.headers, content=lent, extensions=response.extensions
        )

    def close(self) -> None:
        """Close every connection, used ones too; who waits for a permit is refused."""
        self._shut = True
        self._stock.close()


class _PermittedStream:
    """An answer's body, and with it the permit: whichever way it ends, it goes back exactly once."""

    def __init__(self, body: Any, permit: threading.Semaphore) -> None:
        self._body = body
        self._permit = permit
        self._returned = False

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._returned:
            return
        self._returned = True
        try:
            self._body.close()
        finally:
            self._permit.release()


async def _close_each(connections: Iterable[AsyncConnectionInterface]) -> None:
    # The stack closes each of them, also when the one who closes is cancelled on the way.
    async with AsyncExitStack() as stack:
        for connection in connections:
            stack.push_async_callback(connection.aclose)


def _is_over(connection: AsyncConnectionInterface) -> bool:
    # One of ours is told when its peer hangs up; httpcore's have to ask the system each time.
    return connection.is_over() if isinstance(connection, DirectConnection) else connection.has_expired()


def _key(origin: httpcore.Origin) -> _Origin:
    """Return an origin as something that can be hashed."""
    return origin.scheme, origin.host, origin.port
