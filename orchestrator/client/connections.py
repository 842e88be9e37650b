"""What a client holds open, and how a request goes out over it.

Owns the httpx client, made on first use and then bound to its process (and event loop), the arguments it is
made from, and what is said about each request: `on_response`, and one warning about a key in the clear.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlsplit

from orchestrator.client.callables import is_async
from orchestrator.client.files import USUAL_CONNECTIONS, expect_connections
from orchestrator.errors import OrchestratorClosed
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    import ssl

    import httpx

    from orchestrator.client.call import Call
    from orchestrator.client.exchange import AsyncAnswer, AsyncCarrier
    from orchestrator.client.settings import Request

__all__ = ["AsyncConnections", "BlockingConnections", "OnResponse", "Verify"]

OnResponse: TypeAlias = Callable[[str, int, Mapping[str, str], float], object]
"""Told the operation, the status, the headers by lower-case name, and the seconds until they came."""

Verify: TypeAlias = "str | os.PathLike[str] | ssl.SSLContext"
"""A file of CA certificates to trust instead of the public ones, or a context that is used as it is."""

PROXY_SCHEMES: Final = ("http", "https", "socks5", "socks5h")

log = get_logger(__name__)


class _Connections:
    """What both share: checked arguments, and what is said about requests and answers."""

    def __init__(
        self,
        *,
        max_connections: int,
        transport: Any,
        verify: Verify | None,
        proxy: str | httpx.Proxy | None,
        on_response: OnResponse | None,
    ) -> None:
        if transport is not None and (verify is not None or proxy is not None):
            raise ValueError("verify and proxy are for our own transport: tell them to the one you pass in")
        if isinstance(max_connections, bool) or not isinstance(max_connections, int) or max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, got {max_connections!r}")
        if on_response is not None and (not callable(on_response) or is_async(on_response)):
            raise TypeError("on_response must be a plain function: it is called, not awaited")
        if transport is None and max_connections > USUAL_CONNECTIONS:
            from orchestrator.client.pool import lanes

            expect_connections(sum(lanes(max_connections).values()))
        self._arguments: dict[str, Any] = {
            "max_connections": max_connections,
            "transport": transport,
            "verify": _context(verify),
            "proxy": _checked_proxy(proxy),
        }
        self._on_response = on_response
        self._exposures = itertools.count()
        self._closed = False

    def _announce(self, request: Request) -> None:
        # Counting is one step, also between threads: one of them gets the zero.
        if request.exposes_key and next(self._exposures) == 0:
            log.warning("client.key_exposed", server=urlsplit(request.base_url).netloc, remedy="use https")

    def _tell(self, call: Call[Any], status: int, headers: Mapping[str, str], begun: float) -> None:
        if self._on_response is None:
            return
        elapsed_s = time.monotonic() - begun
        try:
            self._on_response(call.operation, status, dict(headers), elapsed_s)
        except Exception:
            # A listener must not decide what becomes of a call.
            log.exception("client.on_response_failed", operation=call.operation)


class AsyncConnections(_Connections):
    """What carries requests: made on first use, and then bound to that event loop and process."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._carrier: AsyncCarrier | None = None
        # At most one: `setdefault` lets one loop win where several come at once, and holds no lock, which a
        # fork would copy as it stands.
        self._owners: dict[None, tuple[int, asyncio.AbstractEventLoop]] = {}

    def carrier(self) -> AsyncCarrier:
        """Return what carries requests.

        Raises:
            OrchestratorClosed: It is closed, or was inherited by a fork.
            RuntimeError: It belongs to another loop.
        """
        if self._closed:
            raise OrchestratorClosed("the client is closed: make a new one")
        loop = asyncio.get_running_loop()
        pid, owner = self._owners.setdefault(None, (os.getpid(), loop))
        if pid != os.getpid():
            raise OrchestratorClosed("the client was inherited by a fork: make a new one in this process")
        if owner is not loop:
            raise RuntimeError("the client was first used on another event loop: make one for each loop")
        if self._carrier is None:
            from orchestrator.client.exchange import AsyncCarrier

            self._carrier = AsyncCarrier(**self._arguments)
        return self._carrier

    async def send(self, carrier: AsyncCarrier, call: Call[Any], request: Request) -> AsyncAnswer:
        """Send a request and return its answer, unread."""
        self._announce(request)
        begun = time.monotonic()
        answer = await carrier.send(request)
        self._tell(call, answer.status, answer.headers, begun)
        return answer

    async def aclose(self) -> None:
        """Close the connections, once."""
        # A forked child must not touch its parent's sockets.
        is_ours = any(pid == os.getpid() for pid, _ in self._owners.values())
        if self._carrier is not None and is_ours and not self._closed:
            carrier = self.carrier()
            self._closed = True
            await carrier.aclose()
        self._closed = True


class BlockingConnections(_Connections):
    """The httpx client: made on first use, and then bound to that process."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # By process id. Without a lock, which a fork would copy as it stands: threads that come at once make
        # one each, the first is kept, and the others have nothing open.
        self._clients: dict[int, httpx.Client] = {}

    def client(self) -> httpx.Client:
        """Return the httpx client.

        Raises:
            OrchestratorClosed: It is closed, or was inherited by a fork.
            RuntimeError: An event loop runs on this thread.
        """
        _refuse_on_event_loop()
        client = self._clients.get(os.getpid())
        if client is None and not self._closed:
            if self._clients:
                raise OrchestratorClosed("the client was inherited by a fork: make a new one in this process")
            from orchestrator.client.transport import sync_client

            client = self._clients.setdefault(os.getpid(), sync_client(**self._arguments))
        if client is None or self._closed:
            raise OrchestratorClosed("the client is closed: make a new one")
        return client

    def send(self, http: httpx.Client, call: Call[Any], request: Request) -> httpx.Response:
        """Send a request and return its answer, unread."""
        from orchestrator.client.transport import prepared

        self._announce(request)
        begun = time.monotonic()
        response = http.send(prepared(request), stream=True)
        self._tell(call, response.status_code, response.headers, begun)
        return response

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        # A forked child must not touch its parent's sockets.
        client = self._clients.get(os.getpid())
        if client is not None:
            client.close()


def _refuse_on_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "ThreadsClient would block the event loop that runs on this thread:"
        " use AsyncThreadsClient and await its methods"
    )


def _context(verify: Verify | None) -> ssl.SSLContext | None:
    if verify is None:
        return None
    import ssl

    if isinstance(verify, ssl.SSLContext):
        return verify
    if not isinstance(verify, (str, os.PathLike)):  # `False` above all
        raise TypeError(
            "verify must be the path of a file of CA certificates, or an ssl.SSLContext;"
            f" servers are always verified, so {verify!r} makes no sense"
        )
    try:
        return ssl.create_default_context(cafile=verify)
    except OSError as error:
        raise ValueError(
            f"verify: no CA certificates can be read from {os.fspath(verify)!r}: {error}"
        ) from None


def _checked_proxy(proxy: str | httpx.Proxy | None) -> str | httpx.Proxy | None:
    if isinstance(proxy, str):
        parts = urlsplit(proxy)
        if parts.scheme not in PROXY_SCHEMES or not parts.hostname:
            # Not repeated: it may hold a password.
            raise ValueError(f"proxy must begin with one of {', '.join(PROXY_SCHEMES)}, and name a host")
    return proxy
