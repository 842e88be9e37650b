"""httpx clients on our pools, and what a transport's failure says.

Owns the one answer to "was it sent?", and puts certificates, proxies and pools together. Knows no operation
and no retry.

Imported on first use, because it imports httpx.
"""

from __future__ import annotations

import asyncio
import os
import threading
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import TYPE_CHECKING, Final

import httpcore
import httpx

from orchestrator.client.files import out_of_files
from orchestrator.client.pool import BlockingLanePool, LanePool, lanes
from orchestrator.errors import APIConnectionError, APIError, APIResponseError, APITimeout, OutOfFiles

if TYPE_CHECKING:
    import ssl

    from orchestrator.client.settings import Request

__all__ = [
    "BROKEN",
    "Translated",
    "api_error",
    "async_client",
    "prepared",
    "sync_client",
    "unsendable",
    "was_sent",
]

KEEPALIVE_S: Final = 30.0
"""How long an idle connection is kept, in seconds; common servers close theirs after 60 to 75."""

_NO_FORK: Final = threading.RLock()
"""Held while certificates are read: a fork waits for that, or it would copy OpenSSL's own locks as held."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_NO_FORK.acquire, after_in_parent=_NO_FORK.release, after_in_child=_NO_FORK.release
    )

_UNSENT: Final = (
    httpcore.ConnectError,
    httpcore.ConnectTimeout,
    httpcore.PoolTimeout,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
    httpcore.LocalProtocolError,
)


BROKEN: Final = (
    httpx.DecodingError,
    httpx.NetworkError,
    httpx.ProtocolError,
    httpcore.NetworkError,
    httpcore.ProtocolError,
)
"""What ends an answer's body before its end."""


def was_sent(exc: BaseException) -> bool:
    """Say whether a byte of the request may have left; unknown means yes.

    Only httpcore's own statement counts: it raises these errors before it writes a request. A transport
    built on something else may use httpx's class of the same name for a connection that broke *after* the
    request was delivered, so the class alone proves nothing.

    Args:
        exc: What httpcore raised, or an httpx transport.
    """
    return not (isinstance(exc, _UNSENT) or isinstance(exc.__cause__, _UNSENT))


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
    if not sent and (cause := out_of_files(exc)) is not None:
        return OutOfFiles(f"nothing was sent: {cause}", method=method, path=path)
    reason = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    if isinstance(exc, (httpx.TimeoutException, httpcore.TimeoutException, TimeoutError)):
        what = "no answer in time" if sent else "not sent in time"
        return APITimeout(f"{what} ({reason})", method=method, path=path, sent=sent)
    what = "the connection broke" if sent else "nothing was sent"
    return APIConnectionError(f"{what} ({reason})", method=method, path=path, sent=sent)


class Translated:
    """Turns whatever a transport raises inside into an `APIError`; ours pass as they are. Reusable."""

    __slots__ = ("_method", "_path")

    def __init__(self, *, method: str, path: str) -> None:
        self._method = method
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A transport may raise anything, and unknown means sent. The end of a body is no failure.
        if isinstance(exc, Exception) and not isinstance(exc, (APIError, StopAsyncIteration)):
            _forget_locals(exc)
            raise api_error(exc, method=self._method, path=self._path) from exc


_CARRIERS: Final = (
    "httpx",
    "httpcore",
    "h11",
    "anyio",
    "asyncio",
    "socket",
    "ssl",
    "orchestrator.client.deadline",
    "orchestrator.client.dialing",
    "orchestrator.client.http11",
    "orchestrator.client.pool",
    "orchestrator.client.wire",
)


def _forget_locals(exc: BaseException | None) -> None:
    """Drop the frames that hold a request as it was sent: reports that show locals would show the key."""
    while exc is not None:
        exc.__traceback__ = _without_carriers(exc.__traceback__)
        exc = exc.__cause__ or exc.__context__


def _without_carriers(frames: TracebackType | None) -> TracebackType | None:
    if frames is None:
        return None
    below = _without_carriers(frames.tb_next)
    module = frames.tb_frame.f_globals.get("__name__", "")
    if any(module == carrier or module.startswith(f"{carrier}.") for carrier in _CARRIERS):
        return below
    return TracebackType(below, frames.tb_frame, frames.tb_lasti, frames.tb_lineno)


def prepared(request: Request) -> httpx.Request:
    """Return a request as httpx sends it; nothing of an httpx client's own defaults is added.

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
        raise unsendable(request, error) from None


def unsendable(request: Request, error: Exception) -> APIConnectionError:
    """Return the error for a request that cannot be written; nothing was sent."""
    reason = f"nothing was sent ({type(error).__name__}: {error})"
    return APIConnectionError(reason, method=request.method, path=request.path, sent=False)


def async_client(
    *,
    max_connections: int,
    transport: httpx.AsyncBaseTransport | None = None,
    verify: ssl.SSLContext | None = None,
    proxy: httpx.Proxy | str | None = None,
    keepalive_s: float = KEEPALIVE_S,
) -> httpx.AsyncClient:
    """Return an httpx client on constant-time pools, with the proxies that the environment names.

    Reads the environment and the CA certificates (some 20 ms, blocking); connects to nothing.

    Args:
        max_connections: See `lanes`.
        transport: Used instead of all that, as it is.
        verify: Whom to trust; else the certificates that come with httpx, or those `SSL_CERT_FILE` names.
        proxy: Takes every request, instead of what the environment names.
        keepalive_s: How long an idle connection is kept.
    """
    with _NO_FORK:
        context = verify or httpx.create_ssl_context()
        client = httpx.AsyncClient(
            verify=context,
            proxy=proxy,
            limits=httpx.Limits(keepalive_expiry=keepalive_s),
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
            _trust(stock._pool, context)  # noqa: SLF001 - as said above
            stock._pool = LanePool(stock._pool, permits)  # noqa: SLF001 - as said above
    return client


def sync_client(
    *,
    max_connections: int,
    transport: httpx.BaseTransport | None = None,
    verify: ssl.SSLContext | None = None,
    proxy: httpx.Proxy | str | None = None,
) -> httpx.Client:
    """Return an httpx client on its stock pools behind lanes; everything else as for `async_client`."""
    limit = sum(lanes(max_connections).values())
    with _NO_FORK:
        context = verify or httpx.create_ssl_context()
        client = httpx.Client(
            verify=context,
            proxy=proxy,
            limits=httpx.Limits(
                max_connections=limit, max_keepalive_connections=limit, keepalive_expiry=KEEPALIVE_S
            ),
            cookies=_no_cookies(),
            transport=transport,
        )
    if transport is not None:
        return client
    permits = {lane: threading.Semaphore(limit) for lane, limit in lanes(max_connections).items()}
    for stock in (client._transport, *client._mounts.values()):  # noqa: SLF001 - as in async_client
        if isinstance(stock, httpx.HTTPTransport):
            _trust(stock._pool, context)  # noqa: SLF001 - the same
            stock._pool = BlockingLanePool(stock._pool, permits)  # noqa: SLF001 - the same
    return client


def _trust(pool: httpcore.AsyncConnectionPool | httpcore.ConnectionPool, context: ssl.SSLContext) -> None:
    """Let a proxy that is itself asked over TLS be verified as servers are; httpx would not."""
    if isinstance(pool, (httpcore.AsyncHTTPProxy, httpcore.HTTPProxy)) and pool._proxy_ssl_context is None:  # noqa: SLF001 - the same
        pool._proxy_ssl_context = context  # noqa: SLF001 - the same


def _no_cookies() -> CookieJar:
    """Return a jar that keeps nothing: calls must not depend on each other."""
    return CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))
