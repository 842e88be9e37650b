"""The asynchronous client: `AsyncThreadsClient`, for one event loop.

Owns the loop's connections and the order of sending, reading and closing. What is sent is described in
`endpoints`, what an answer means in `answers`, what may be repeated in `retry`.
"""

from __future__ import annotations

import asyncio
import copy
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar, Unpack, assert_never

from orchestrator.client.answers import answer, body_limit, is_success, too_large
from orchestrator.client.attempts import Attempts, Clocks
from orchestrator.client.azure import azure_server
from orchestrator.client.call import checked
from orchestrator.client.connections import AsyncConnections
from orchestrator.client.operations import AsyncOperations
from orchestrator.client.pages import Listed, Pager
from orchestrator.client.reconciliation import Again, Look, Pause
from orchestrator.client.retry import RetryPolicy
from orchestrator.client.settings import Settings
from orchestrator.client.tokens import AsyncTokens, authorized
from orchestrator.errors import APIError, OrchestratorClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from types import TracebackType

    import httpx

    from orchestrator.client.auth import ApiKey, AuthHeader
    from orchestrator.client.call import Answer, Call, CallOptions
    from orchestrator.client.connections import OnResponse, Verify
    from orchestrator.client.exchange import AsyncAnswer, AsyncCarrier
    from orchestrator.client.options import AsyncClientOptions
    from orchestrator.client.reconciliation import Step
    from orchestrator.client.settings import Account, Request
    from orchestrator.client.stream import AsyncEventStream
    from orchestrator.protocol.objects import Run

__all__ = ["AsyncThreadsClient"]

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")
L = TypeVar("L", bound=Listed)


class AsyncThreadsClient(AsyncOperations):
    """Every operation of the protocol, awaited, retried by a policy.

    Made anywhere, without I/O; belongs to the event loop and process that use it first. Each method takes
    the arguments of the function of its name in `orchestrator.client.endpoints`, ids by position and
    everything else by keyword, `CallOptions` included; `iter_…` takes those of `list_…`. Redirects are not
    followed, cookies are not kept, the environment's proxies are used, servers' certificates are verified.

    Args:
        base_url: Where the paths begin, such as `"http://127.0.0.1:8765/v1"`; else `OPENAI_BASE_URL`.
        api_key: Else `OPENAI_API_KEY`; may be missing only where `base_url` is this machine. A function is
            asked for a bearer token when the first request needs one, again when a server answers 401, and
            at no other time: a coroutine function on the client's loop, any other in a thread.
        auth_header: What carries a key: `"authorization"`, as a bearer token, or `"api-key"`.
        organization: Else `OPENAI_ORG_ID`, if set.
        project: Else `OPENAI_PROJECT_ID`, if set.
        timeout: Seconds for one request, from waiting for a connection to the last byte of the answer; for
            a stream, until it has begun.
        connect_timeout: The most of it for opening a connection; never more than a quarter.
        retry: How often and how patiently a call is tried.
        headers: Added to every request.
        max_connections: Streams that may be open at once; other calls have their own share beside them.
        stream_idle_s: The longest silence in an open stream, in seconds.
        verify: A file of CA certificates to trust instead of the public ones, or an `ssl.SSLContext`, used as
            it is.
        proxy: Where every request goes through, such as `"http://user:password@proxy:3128"`; else what
            `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
        on_response: Called for every answer, errors included, with the operation, the status, the headers by
            lower-case name, and the seconds until they came; on the client's loop, so it must be quick.
            What it raises is logged and harms nothing.
        transport: Any httpx transport, instead of our own.
        clocks: Where clocks and jitter come from.
        sleep: How a retry waits, given seconds.

    Raises:
        ValueError: The base URL or the key is missing, or an argument makes no sense.
        TypeError: `on_response` is no plain function, or `verify` neither a path nor a context.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: ApiKey | None = None,
        auth_header: AuthHeader = "authorization",
        organization: str | None = None,
        project: str | None = None,
        timeout: float = 60.0,
        connect_timeout: float = 5.0,
        retry: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
        max_connections: int = 1000,
        stream_idle_s: float = 45.0,
        verify: Verify | None = None,
        proxy: str | httpx.Proxy | None = None,
        on_response: OnResponse | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clocks: Clocks | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = Settings.read(
            base_url=base_url,
            api_key=api_key,
            auth_header=auth_header,
            tokens=AsyncTokens,
            organization=organization,
            project=project,
            headers=headers,
            timeout_s=timeout,
            connect_timeout_s=connect_timeout,
            stream_idle_s=stream_idle_s,
            retry=retry or RetryPolicy(),
        )
        self._connections = AsyncConnections(
            max_connections=max_connections,
            transport=transport,
            verify=verify,
            proxy=proxy,
            on_response=on_response,
        )
        self._owns_connections = True
        self._clocks = clocks or Clocks()
        self._sleep = sleep
        self._echoing: set[str] = set()
        self._account: Account | None = None

    @classmethod
    def for_azure(
        cls, endpoint: str, api_version: str, *, api_key: ApiKey, **options: Unpack[AsyncClientOptions]
    ) -> Self:
        """Return a client for a server of Azure's; the environment's key and account are not used.

        Args:
            endpoint: Azure OpenAI's, such as `"https://<resource>.openai.azure.com"`, or a Foundry project's:
                `"https://<resource>.services.ai.azure.com/api/projects/<project>"`.
            api_version: Sent with every request; `"v1"` for a project.
            api_key: Azure OpenAI's key, sent as `api-key`, or a function that returns an Entra token, as
                `azure.identity.get_bearer_token_provider` makes one. A project takes tokens only.
            **options: As for the client itself.

        Raises:
            ValueError: The endpoint is neither, or an argument makes no sense.
            TypeError: As for the client itself.
        """
        server = azure_server(endpoint, api_version)
        if not api_key:
            raise ValueError(f"no key for {server.base_url}: pass api_key")
        client = cls(server.base_url, api_key=api_key, **options)
        client._settings = client._settings.on_azure(server)
        return client

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self._settings.base_url}>"

    @property
    def base_url(self) -> str:
        """Where the paths begin."""
        return self._settings.base_url

    @property
    def organization(self) -> str | None:
        """The organization that requests are made for, or `None`."""
        return self._settings.credentials.organization

    @property
    def project(self) -> str | None:
        """The project that requests are made for, or `None`."""
        return self._settings.credentials.project

    @property
    def account(self) -> Account:
        """The server and whose limits requests count towards there; shows no key."""
        if self._account is None:
            self._account = self._settings.account
        return self._account

    @property
    def owns_connections(self) -> bool:
        """Whether closing this client closes the connections; a client from `with_options` closes nothing."""
        return self._owns_connections

    def with_options(self, **options: Unpack[CallOptions]) -> Self:
        """Return a client with other settings on the same connections.

        Closing it closes nothing: the connections belong to the client they came from.

        Raises:
            ValueError: A value makes no sense, or another server is named without a key for it.
        """
        client = copy.copy(self)
        client._settings = self._settings.with_options(checked("with_options", options))  # noqa: SLF001 - a copy of this one
        client._owns_connections = False  # noqa: SLF001 - a copy of this one
        client._account = None  # noqa: SLF001 - a copy of this one
        return client

    async def attempt(self, call: Call[T]) -> Answer[T]:
        """Make exactly one request, whatever comes of it (two where a provider's token is refused).

        For callers that own their retries; the methods named after operations own theirs.

        Raises:
            APIError: One of its subclasses; `orchestrator.client.retry.judge` says what it allows.
            ValueError: The call streams, or its options make no sense.
        """
        if call.streams:
            raise ValueError(f"{call.operation} streams: use attempt_stream")
        request = self._settings.request(call)
        carrier = self._connections.carrier()
        return await authorized(call, request, partial(self._answer, carrier, call))

    def attempt_stream(self, call: Call[Run]) -> AbstractAsyncContextManager[AsyncEventStream]:
        """Make exactly one request, and iterate over the events that answer it.

        Raises:
            APIError: The stream did not open; what happens later is raised by its iteration.
            ValueError: The call does not stream, or its options make no sense.
        """
        return _Open(lambda: self._open(call))

    async def aclose(self) -> None:
        """Close the connections, those in use too. A client from `with_options` closes nothing."""
        if self._owns_connections:
            await self._connections.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _answer(self, carrier: AsyncCarrier, call: Call[T], request: Request) -> Answer[T]:
        from orchestrator.client.transport import Translated

        with Translated(method=call.method, path=call.path):
            async with asyncio.timeout(request.timeout_s):
                answered = await self._connections.send(carrier, call, request)
                try:
                    body = await _read(answered)
                finally:
                    await answered.aclose()
        if is_success(answered.status) and len(body) > body_limit(answered.status):
            raise too_large(call, answered.headers)
        return answer(call, answered.status, answered.headers, bytes(body))

    async def _open(self, call: Call[Run], *, until_started: bool = False) -> AsyncEventStream:
        if not call.streams:
            raise ValueError(f"{call.operation} does not stream: use attempt")
        request = self._settings.request(call)
        carrier = self._connections.carrier()
        opened = partial(self._opened, carrier, call, until_started=until_started)
        return await authorized(call, request, opened)

    async def _opened(
        self, carrier: AsyncCarrier, call: Call[Run], request: Request, *, until_started: bool
    ) -> AsyncEventStream:
        from orchestrator.client.stream import AsyncEventStream
        from orchestrator.client.transport import Translated

        with Translated(method=call.method, path=call.path):
            async with asyncio.timeout(request.timeout_s):
                answered = await self._connections.send(carrier, call, request)
                try:
                    if not is_success(answered.status):
                        answer(call, answered.status, answered.headers, bytes(await _read(answered)))
                    stream = AsyncEventStream(call, answered)
                    if until_started:
                        await stream.started()
                except BaseException:
                    await answered.aclose()
                    raise
        return stream

    async def _perform(self, call: Call[T]) -> T:
        attempts = self._attempts(call)
        value: T = await self._settled(attempts, self._value)
        attempts.learn(value)
        return value

    async def _iterate(self, pager: Pager[L]) -> AsyncIterator[L]:
        while (call := pager.next()) is not None:
            for one in pager.take(await self._perform(call)):
                yield one

    @asynccontextmanager
    async def _stream(self, call: Call[Run]) -> AsyncIterator[AsyncEventStream]:
        from orchestrator.client.stream import AsyncEventStream

        attempts = self._attempts(call)
        async with AsyncExitStack() as opened:  # from its birth: a plan may be left with a stream in hand

            async def started(call: Call[Run]) -> AsyncEventStream:
                return await opened.enter_async_context(_Open(lambda: self._open(call, until_started=True)))

            outcome = await self._settled(attempts, started)
            if isinstance(outcome, AsyncEventStream):
                stream = outcome
            else:
                settled = AsyncEventStream.of(call, outcome)
                stream = await opened.enter_async_context(_Open(lambda: _ready(settled)))
            attempts.learn(stream.upcoming_run)
            yield stream

    def _attempts(self, call: Call[T]) -> Attempts[T]:
        return Attempts(call, self._settings, self._clocks, echoing=self._echoing)

    async def _value(self, call: Call[T]) -> T:
        return (await self.attempt(call)).value

    async def _settled(self, attempts: Attempts[T], send: Callable[[Call[T]], Awaitable[V]]) -> V | T:
        """Send a call as often as its policy allows, and find out what became of it if that is not known."""
        try:
            return await self._tried(attempts, send)
        except APIError as error:
            plan = attempts.settle(error)
        told: object = None
        while True:
            try:
                step = plan.send(told)
            except StopIteration as settled:
                value: V | T = settled.value
                return value
            told = await self._taken(step, attempts, send)

    async def _taken(
        self, step: Step, attempts: Attempts[T], send: Callable[[Call[T]], Awaitable[V]]
    ) -> object:
        try:
            match step:
                case Pause(seconds=seconds):
                    await self._sleep(seconds)
                    return None
                case Look(call=call):
                    return await self._tried(attempts.looking(call), self._value)
                case Again():
                    return await self._tried(attempts, send)
                case _:
                    assert_never(step)
        except APIError as error:
            return error
        except OrchestratorClosed as error:
            return attempts.not_sent(error)

    async def _tried(self, attempts: Attempts[T], send: Callable[[Call[T]], Awaitable[V]]) -> V:
        from tenacity import AsyncRetrying

        async def once() -> V:
            return await send(attempts.next())

        try:
            value: V = await AsyncRetrying(sleep=self._sleep, **attempts.controls())(once)
        except APIError as error:
            attempts.log_failure(error)
            raise
        return value


class _Open:
    """A stream that is opened, and closed whatever happens; one that is told is read to its end before."""

    __slots__ = ("_open", "_stream")

    def __init__(self, open_: Callable[[], Awaitable[AsyncEventStream]]) -> None:
        self._open = open_

    async def __aenter__(self) -> AsyncEventStream:
        self._stream = await self._open()
        return self._stream

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stream = self._stream
        try:
            if exc is None and stream.is_told:
                await stream.until_done()
        except BaseException:
            await stream.aclose()
            raise
        await stream.aclose(reuse=exc is None)


async def _ready(stream: AsyncEventStream) -> AsyncEventStream:
    return stream


async def _read(answered: AsyncAnswer) -> bytearray:
    """Read a body, at most one part past its limit."""
    from orchestrator.client.transport import BROKEN

    body = bytearray()
    try:
        async for part in answered.parts:
            body += part
            if len(body) > body_limit(answered.status):
                break
    except BROKEN:
        # A refusal is one without its text, too.
        if is_success(answered.status):
            raise
    return body
