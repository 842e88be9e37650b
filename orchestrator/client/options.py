"""What a client may be told beside its server: the same for every way to make one."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import httpx

    from orchestrator.client.attempts import Clocks
    from orchestrator.client.connections import OnResponse, Verify
    from orchestrator.client.retry import RetryPolicy

__all__ = ["AsyncClientOptions", "BlockingClientOptions"]


class ClientOptions(TypedDict, total=False):
    """Explained where the clients are."""

    timeout: float
    connect_timeout: float
    stream_idle_s: float
    retry: RetryPolicy | None
    headers: Mapping[str, str] | None
    max_connections: int
    verify: Verify | None
    proxy: str | httpx.Proxy | None
    on_response: OnResponse | None
    clocks: Clocks | None


class AsyncClientOptions(ClientOptions, total=False):
    """What only `AsyncThreadsClient` takes so."""

    transport: httpx.AsyncBaseTransport | None
    sleep: Callable[[float], Awaitable[None]]


class BlockingClientOptions(ClientOptions, total=False):
    """What only `ThreadsClient` takes so."""

    transport: httpx.BaseTransport | None
    sleep: Callable[[float], None]
