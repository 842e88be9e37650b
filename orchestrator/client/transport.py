"""Connections: a constant-time pool with lanes for httpx, and what a transport's failure says.

httpcore's own pool looks at every idle connection for every request, several times over; at a thousand
open streams that costs more than all the rest. Here a request costs the same beside one stream or
thousands: idle connections wait on a stack per origin, and each lane is a semaphore. The connections
themselves, TLS, proxies, timeouts and exceptions stay httpcore's, so that a `ConnectError` still means
what it says.

Imported on first use, because it imports httpx. Asyncio only; a pool belongs to the loop it is used on.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict, deque
from contextlib import AsyncExitStack, contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import httpcore
import httpx

from orchestrator.client.deadline import PunctualBackend
from orchestrator.errors import APIConnectionError, APIError, APIResponseError, APITimeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from httpcore import AsyncConnectionInterface

    from orchestrator.client.settings import Request

__all__ = [
    "LanePool",
    "api_error",
    "async_client",
    "lanes",
    "prepared",
    "sync_client",
    "translated",
    "was_sent",
]

KEEPALIVE_S: Final = 30.0
"""How long an idle connection is kept, in seconds; common servers close theirs after 60 to 75."""

_UNSENT: Final = (
    httpcore.ConnectError,
    httpcore.ConnectTimeout,
    httpcore.PoolTimeout,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
    httpcore.LocalProtocolError,
)


def was_sent(exc: BaseException) -> bool:
    """Say whether a byte of the request may have left; unknown means yes.

    Only httpcore's own statement counts: it raises these errors before it writes a request. A transport
    built on something else may use httpx's class of the same name for a connection that broke *after* the
    request was delivered, so the class alone proves nothing.

    Args:
        exc: What an httpx transport raised.
    """
    return not isinstance(exc.__cause__, _UNSENT)


def api_error(exc: Exception, *, method: str, path: str) -> APIError:
    """Return what a transport's failure means to a caller.

    Args:
        exc: What was raised while sending a request or reading its answer.
        method: The request's method.
        path: Its path below the base URL.
    """
    if isinstance(exc, httpx.DecodingError):
        return APIResponseError("the answer's compression is broken", method=method, path=path)
    sent = was_sent(exc)
    reason = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    if isinstance(exc, (httpx.TimeoutException, TimeoutError)):
        what = "no answer in time" if sent else "not sent in time"
        return APITimeout(f"{what} ({reason})", method=method, path=path, sent=sent)
    what = "the connection broke" if sent else "nothing was sent"
    return APIConnectionError(f"{what} ({reason})", method=method, path=path, sent=sent)


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


@contextmanager
def translated(*, method: str, path: str) -> Iterator[None]:
    """Turn whatever a transport raises inside into an `APIError`; ours pass as they are."""
    try:
        yield
    except APIError:
        raise
    except Exception as exc:  # a transport may raise anything, and unknown means sent
        raise api_error(exc, method=method, path=path) from exc


def prepared(request: Request, *, path: str) -> httpx.Request:
    """Return a request as httpx sends it; nothing of an httpx client's own defaults is added.

    Args:
        request: The request.
        path: Its path below the base URL.

    Raises:
        APIConnectionError: httpx cannot send to such a URL; nothing was sent.
    """
    try:
        return httpx.Request(
            request.method,
            request.url,
            headers=dict(request.headers),
            content=request.content,
            extensions=request.extensions,
        )
    except (httpx.InvalidURL, UnicodeError) as error:
        raise APIConnectionError(
            f"nothing was sent ({type(error).__name__}: {error})",
            method=request.method,
            path=path,
            sent=False,
        ) from None


def async_client(
    *, max_connections: int, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """Return an httpx client on constant-time pools, with the proxies that the environment names.

    Reads the environment and the CA certificates (some 20 ms, blocking); connects to nothing.

    Args:
        max_connections: See `lanes`.
        transport: Used instead of all that, as it is.
    """
    client = httpx.AsyncClient(
        verify=httpx.create_ssl_context(),
        limits=httpx.Limits(keepalive_expiry=KEEPALIVE_S),
        cookies=_no_cookies(),
        transport=transport,
    )
    if transport is not None:
        return client
    permits = {lane: asyncio.Semaphore(limit) for lane, limit in lanes(max_connections).items()}
    # httpx has no public way to put another pool under a transport that it configured itself, proxies
    # included; the upper bounds in pyproject.toml and a test hold this seam.
    for stock in (client._transport, *client._mounts.values()):  # noqa: SLF001 - as said above
        if isinstance(stock, httpx.AsyncHTTPTransport):
            stock._pool = LanePool(stock._pool, permits)  # noqa: SLF001 - as said above
    return client


def sync_client(*, max_connections: int, transport: httpx.BaseTransport | None = None) -> httpx.Client:
    """Return an httpx client on its stock pool, with the proxies that the environment names.

    Args:
        max_connections: As many as all lanes together are allowed; one pool serves them all.
        transport: Used instead of all that, as it is.
    """
    limit = sum(lanes(max_connections).values())
    limits = httpx.Limits(
        max_connections=limit, max_keepalive_connections=limit, keepalive_expiry=KEEPALIVE_S
    )
    client = httpx.Client(limits=limits, cookies=_no_cookies(), transport=transport)
    if transport is None:
        for stock in (client._transport, *client._mounts.values()):  # noqa: SLF001 - as in async_client
            if isinstance(stock, httpx.HTTPTransport):
                pool = stock._pool  # noqa: SLF001 - the same
                pool._network_backend = PunctualBackend(pool._network_backend)  # noqa: SLF001 - the same
    return client


def _no_cookies() -> CookieJar:
    """Return a jar that keeps nothing: calls must not depend on each other."""
    return CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))


_Origin: TypeAlias = tuple[bytes, bytes, int]


class LanePool(httpcore.AsyncConnectionPool):
    """A pool whose requests cost the same, however many connections are open or idle.

    A request waits for a permit of its lane (extension `"lane"`; `"control"` without one), takes the
    connection of its origin that was used last or opens one, and holds both until its answer is closed.
    Idle connections leave the stack when their time is over or their peer hung up: the newest is looked at
    when it is taken, the oldest whenever another comes back, so that none is forgotten.

    Args:
        stock: The pool that knows how to connect, through a proxy if need be.
        permits: A semaphore for each lane, shared by the pools of one client.
    """

    def __init__(self, stock: httpcore.AsyncConnectionPool, permits: Mapping[str, asyncio.Semaphore]) -> None:
        super().__init__()
        stock._network_backend = _TidyBackend(stock._network_backend)  # noqa: SLF001 - the seam, again
        self._stock = stock
        self._permits = permits
        self._idle: defaultdict[_Origin, deque[AsyncConnectionInterface]] = defaultdict(deque)
        self._ages: OrderedDict[AsyncConnectionInterface, _Origin] = OrderedDict()
        self._active: set[AsyncConnectionInterface] = set()
        self._shut = False

    def create_connection(self, origin: httpcore.Origin) -> AsyncConnectionInterface:
        """Return a connection that will be opened by its first request."""
        return self._stock.create_connection(origin)

    @property
    def connections(self) -> list[AsyncConnectionInterface]:
        """The connections that are open, idle ones first."""
        return [*self._ages, *self._active]

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request; the answer's stream must be closed, as httpx does.

        Raises:
            httpcore.PoolTimeout: The lane was full for too long; nothing was sent.
        """
        if request.url.scheme not in (b"http", b"https"):
            raise httpcore.UnsupportedProtocol(f"not http or https: {request.url.scheme.decode()!r}")
        permit = self._permits[request.extensions.get("lane", "control")]
        await _acquire(permit, request.extensions.get("timeout", {}).get("pool"))
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
            connection = stack.pop()
            del self._ages[connection]
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
                self._idle[origin].append(connection)
                self._ages[connection] = origin
            else:
                await self._discard(connection)
        finally:
            permit.release()
        await self._close_oldest()

    async def _close_oldest(self) -> None:
        oldest = next(iter(self._ages), None)
        if oldest is None or not oldest.has_expired():
            return
        # The oldest of all is the oldest of its origin: stacks grow in the order of their ages.
        origin = self._ages.pop(oldest)
        self._idle[origin].popleft()
        if not self._idle[origin]:
            del self._idle[origin]
        await oldest.aclose()

    async def _discard(self, connection: AsyncConnectionInterface) -> None:
        self._active.discard(connection)
        await connection.aclose()

    async def aclose(self) -> None:
        """Close every connection, used ones too; what still comes back is closed then."""
        self._shut = True
        connections = self.connections
        self._idle.clear()
        self._ages.clear()
        self._active.clear()
        # The stack closes each of them, also when the one who closes is cancelled on the way.
        async with AsyncExitStack() as stack:
            for connection in connections:
                stack.push_async_callback(connection.aclose)


class _LentStream:
    """An answer's body, and with it the connection: whichever way it ends, both go back exactly once."""

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
        self._returned = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._body:
                yield part
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


class _TidyBackend(httpcore.AsyncNetworkBackend):
    """Connects as another does, and closes what a cancelled TLS handshake would leave open."""

    def __init__(self, backend: httpcore.AsyncNetworkBackend) -> None:
        self._backend = backend

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        return _TidyStream(await self._backend.connect_tcp(*args, **kwargs))

    async def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        return await self._backend.connect_unix_socket(*args, **kwargs)

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


class _TidyStream(httpcore.AsyncNetworkStream):
    """A connected socket; all but the handshake goes straight to the stream it stands for."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        # Bound here, so that reading costs no further call.
        self.read = stream.read  # type: ignore[method-assign]
        self.write = stream.write  # type: ignore[method-assign]
        self.aclose = stream.aclose  # type: ignore[method-assign]
        self.get_extra_info = stream.get_extra_info  # type: ignore[method-assign]

    async def start_tls(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(*args, **kwargs)
        except BaseException:
            await self._stream.aclose()
            raise


def _key(origin: httpcore.Origin) -> _Origin:
    """Return an origin as something that can be hashed."""
    return origin.scheme, origin.host, origin.port


async def _acquire(permit: asyncio.Semaphore, timeout_s: float | None) -> None:
    if not permit.locked():
        await permit.acquire()
        return
    try:
        async with asyncio.timeout(timeout_s):
            await permit.acquire()
    except TimeoutError:
        raise httpcore.PoolTimeout(f"no connection was free for {timeout_s} s") from None
