"""One request and its answer, whatever carries them.

Owns the way to the right pool, and what an answer is to the asynchronous client: a status, headers by name,
and a body in decoded parts. Our own pools are asked directly, in httpcore's terms: httpx's client would add a
redirect, a cookie jar, hooks and a log line to every request, and generators to every part of its answer. A
transport of the user's is asked as httpx asks it. Decides nothing about retries or meaning.

Imported on first use, because it imports httpx.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import httpcore
import httpx

from orchestrator.client.pool import LanePool, hand_over
from orchestrator.client.transport import async_client, prepared, unsendable

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from orchestrator.client.settings import Request

__all__ = ["AsyncAnswer", "AsyncCarrier"]


class AsyncAnswer(NamedTuple):
    """An answer that was not read yet.

    Attributes:
        status: The HTTP status.
        headers: By lower-case name; those that came several times are joined by commas.
        parts: The body, decompressed, to be read once.
        deliver: Hands the parts over instead, each as it comes and before anybody is woken, until the body
            ends or what is called wants no more; what that raises ends it, too.
        aclose: Lets go of it; the connection is used again if the body was read to its end.
    """

    status: int
    headers: Mapping[str, str]
    parts: AsyncIterator[bytes]
    deliver: Callable[[Callable[[bytes], bool]], Awaitable[None]]
    aclose: Callable[[], Awaitable[None]]


class _Way(NamedTuple):
    """How requests to one base URL go out."""

    pool: LanePool
    url: httpcore.URL
    host: bytes
    prefix: str


class AsyncCarrier:
    """Sends requests. Belongs to the event loop that uses it.

    Args:
        max_connections: See `orchestrator.client.pool.lanes`.
        transport: Used instead of our pools, as it is.
        verify: Whom to trust; see `async_client`.
        proxy: Takes every request, instead of what the environment names.
    """

    def __init__(
        self,
        *,
        max_connections: int,
        transport: httpx.AsyncBaseTransport | None,
        verify: ssl.SSLContext | None,
        proxy: httpx.Proxy | str | None,
    ) -> None:
        # Knows the proxies that the environment names, and closes what there is.
        self._client = async_client(
            max_connections=max_connections, transport=transport, verify=verify, proxy=proxy
        )
        self._transport = transport
        self._ways: dict[str, _Way] = {}

    async def send(self, request: Request) -> AsyncAnswer:
        """Send a request and return its answer, unread.

        Raises:
            APIConnectionError: Such a request cannot be sent; nothing was.
            Exception: What httpcore raises, or the user's transport; see `orchestrator.client.transport`.
        """
        if self._transport is not None:
            response = await self._transport.handle_async_request(prepared(request))
            return _decoding(response, dict(response.headers))
        way, message = self._message(request)
        return _answer(await way.pool.handle_async_request(message))

    async def aclose(self) -> None:
        """Close all connections, those in use too."""
        await self._client.aclose()

    def _message(self, request: Request) -> tuple[_Way, httpcore.Request]:
        try:
            way = self._ways.get(request.base_url) or self._way(request.base_url)
            target = f"{way.prefix}{request.target}".encode("ascii")
            pairs = request.headers.items()
            headers = [(name.encode("ascii"), value.encode("ascii")) for name, value in pairs]
        except (httpx.InvalidURL, UnicodeError) as error:
            raise unsendable(request, error) from None
        if "host" not in request.headers:
            headers.insert(0, (b"host", way.host))
        if request.content is not None or request.method in ("POST", "PUT", "PATCH"):
            headers.append((b"content-length", b"%d" % len(request.content or b"")))
        url = httpcore.URL(scheme=way.url.scheme, host=way.url.host, port=way.url.port, target=target)
        message = httpcore.Request(
            request.method, url, headers=headers, content=request.content, extensions=request.extensions
        )
        return way, message

    def _way(self, base_url: str) -> _Way:
        url = httpx.URL(base_url)
        transport = self._client._transport_for_url(url)  # noqa: SLF001 - as `async_client` says of its own
        pool = getattr(transport, "_pool", None)
        assert isinstance(pool, LanePool)
        way = self._ways[base_url] = _Way(
            pool=pool,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=b"/"),
            host=url.netloc,
            prefix=url.raw_path.decode("ascii").rstrip("/"),
        )
        return way


def _answer(response: httpcore.Response) -> AsyncAnswer:
    headers: dict[str, str] = {}
    for raw_name, raw_value in response.headers:
        name, value = raw_name.decode("ascii", "replace").lower(), _text(raw_value)
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    stream: Any = response.stream
    if "content-encoding" in headers:
        decoding = httpx.Response(response.status, headers=response.headers, stream=_Stream(response))
        return _decoding(decoding, headers)
    return AsyncAnswer(response.status, headers, stream, stream.deliver, stream.aclose)


def _decoding(response: httpx.Response, headers: Mapping[str, str]) -> AsyncAnswer:
    parts = response.aiter_bytes()
    return AsyncAnswer(response.status_code, headers, parts, partial(hand_over, parts), response.aclose)


class _Stream(httpx.AsyncByteStream):
    """httpcore's stream, as httpx wants one."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._response.aiter_stream()

    async def aclose(self) -> None:
        await self._response.aclose()


def _text(value: bytes) -> str:
    for encoding in ("ascii", "utf-8"):
        try:
            return value.decode(encoding)
        except UnicodeDecodeError:
            continue
    return value.decode("iso-8859-1")
