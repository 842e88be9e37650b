"""The asynchronous client: `AsyncThreadsClient`, for one event loop.

Owns the loop's connections and the order of sending, reading and closing. What is sent is described in
`endpoints`, what an answer means in `answers`, what may be repeated in `retry`.
"""

from __future__ import annotations

import asyncio
import copy
import os
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, Unpack, assert_never

from orchestrator.client import endpoints
from orchestrator.client.answers import answer, body_limit, is_success, too_large
from orchestrator.client.attempts import Attempts, Clocks
from orchestrator.client.call import checked
from orchestrator.client.methods import described_by
from orchestrator.client.reconciliation import Again, Look, Pause
from orchestrator.client.retry import RetryPolicy
from orchestrator.client.settings import Settings
from orchestrator.errors import APIError, OrchestratorClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
    from types import TracebackType

    import httpx

    from orchestrator.client.call import Answer, Call, CallOptions
    from orchestrator.client.reconciliation import Step
    from orchestrator.client.settings import Request
    from orchestrator.client.stream import AsyncEventStream
    from orchestrator.protocol.objects import Run

__all__ = ["AsyncThreadsClient"]

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")


class _Connections:
    """The httpx client: made on first use, and then bound to that event loop and process."""

    def __init__(self, max_connections: int, transport: httpx.AsyncBaseTransport | None) -> None:
        self._max_connections = max_connections
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        # At most one: `setdefault` lets one loop win where several come at once, and holds no lock, which a
        # fork would copy as it stands.
        self._owners: dict[None, tuple[int, asyncio.AbstractEventLoop]] = {}
        self._closed = False

    def client(self) -> httpx.AsyncClient:
        if self._closed:
            raise OrchestratorClosed("the client is closed: make a new one")
        loop = asyncio.get_running_loop()
        pid, owner = self._owners.setdefault(None, (os.getpid(), loop))
        if pid != os.getpid():
            raise OrchestratorClosed("the client was inherited by a fork: make a new one in this process")
        if owner is not loop:
            raise RuntimeError("the client was first used on another event loop: make one for each loop")
        if self._client is None:
            from orchestrator.client.transport import async_client

            self._client = async_client(max_connections=self._max_connections, transport=self._transport)
        return self._client

    async def aclose(self) -> None:
        # A forked child must not touch its parent's sockets.
        is_ours = any(pid == os.getpid() for pid, _ in self._owners.values())
        if self._client is not None and is_ours and not self._closed:
            client = self.client()
            self._closed = True
            await client.aclose()
        self._closed = True


def _method(
    build: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncThreadsClient, P], Coroutine[Any, Any, T]]:
    @described_by(build)
    async def method(self: AsyncThreadsClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._perform(build(*args, **kwargs))

    return method


def _stream_method(
    build: Callable[P, Call[Run]],
) -> Callable[Concatenate[AsyncThreadsClient, P], AbstractAsyncContextManager[AsyncEventStream]]:
    @described_by(build)
    def method(
        self: AsyncThreadsClient, /, *args: P.args, **kwargs: P.kwargs
    ) -> AbstractAsyncContextManager[AsyncEventStream]:
        return self._stream(build(*args, **kwargs))

    return method


class AsyncThreadsClient:
    """Every operation of the protocol, awaited, retried by a policy.

    Made anywhere, without I/O; belongs to the event loop and process that use it first. Each method takes
    the arguments of the function of its name in `orchestrator.client.endpoints`, ids by position and
    everything else by keyword, `CallOptions` included. Redirects are not followed, cookies are not kept,
    the environment's proxies are used.

    Args:
        base_url: Where the paths begin, such as `"http://127.0.0.1:8765/v1"`; else `OPENAI_BASE_URL`.
        api_key: Else `OPENAI_API_KEY`; may be missing only where `base_url` is this machine.
        organization: Else `OPENAI_ORG_ID`, if set.
        project: Else `OPENAI_PROJECT_ID`, if set.
        timeout: Seconds for one request, from waiting for a connection to the last byte of the answer; for
            a stream, until it has begun.
        retry: How often and how patiently a call is tried.
        headers: Added to every request.
        max_connections: Streams that may be open at once; other calls have their own share beside them.
        stream_idle_s: The longest silence in an open stream, in seconds.
        transport: Any httpx transport, instead of our own.
        clocks: Where clocks and jitter come from.
        sleep: How a retry waits, given seconds.

    Raises:
        ValueError: The base URL or the key is missing, or an argument makes no sense.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        timeout: float = 60.0,
        retry: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
        max_connections: int = 1000,
        stream_idle_s: float = 45.0,
        transport: httpx.AsyncBaseTransport | None = None,
        clocks: Clocks | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = Settings.read(
            base_url=base_url,
            api_key=api_key,
            organization=organization,
            project=project,
            headers=headers,
            timeout_s=timeout,
            stream_idle_s=stream_idle_s,
            retry=retry or RetryPolicy(),
        )
        self._connections = _Connections(max_connections, transport)
        self._owns_connections = True
        self._clocks = clocks or Clocks()
        self._sleep = sleep
        self._echoing: set[str] = set()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self._settings.base_url}>"

    @property
    def base_url(self) -> str:
        """Where the paths begin."""
        return self._settings.base_url

    def with_options(self, **options: Unpack[CallOptions]) -> Self:
        """Return a client with other settings on the same connections.

        Closing it closes nothing: the connections belong to the client they came from.

        Raises:
            ValueError: A value makes no sense, or another server is named without a key for it.
        """
        client = copy.copy(self)
        client._settings = self._settings.with_options(checked("with_options", options))  # noqa: SLF001 - a copy of this one
        client._owns_connections = False  # noqa: SLF001 - a copy of this one
        return client

    async def attempt(self, call: Call[T]) -> Answer[T]:
        """Make exactly one request, whatever comes of it.

        For callers that own their retries; the methods named after operations own theirs.

        Raises:
            APIError: One of its subclasses; `orchestrator.client.retry.judge` says what it allows.
            ValueError: The call streams, or its options make no sense.
        """
        if call.streams:
            raise ValueError(f"{call.operation} streams: use attempt_stream")
        request = self._settings.request(call)
        response, body = await self._exchange(call, request)
        headers = dict(response.headers)
        if is_success(response.status_code) and len(body) > body_limit(response.status_code):
            raise too_large(call, headers)
        return answer(call, response.status_code, headers, bytes(body))

    @asynccontextmanager
    async def attempt_stream(self, call: Call[Run]) -> AsyncIterator[AsyncEventStream]:
        """Make exactly one request, and iterate over the events that answer it.

        Raises:
            APIError: The stream did not open; what happens later is raised by its iteration.
            ValueError: The call does not stream, or its options make no sense.
        """
        stream = await self._open(call)
        async with _closing(stream):
            yield stream

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

    async def _exchange(self, call: Call[Any], request: Request) -> tuple[httpx.Response, bytearray]:
        from orchestrator.client.transport import prepared, translated

        http = self._connections.client()
        with translated(method=call.method, path=call.path):
            async with asyncio.timeout(request.timeout_s):
                response = await http.send(prepared(request, path=call.path), stream=True)
                try:
                    return response, await _read(response)
                finally:
                    await response.aclose()

    async def _open(self, call: Call[Run], *, until_started: bool = False) -> AsyncEventStream:
        from orchestrator.client.stream import AsyncEventStream
        from orchestrator.client.transport import prepared, translated

        if not call.streams:
            raise ValueError(f"{call.operation} does not stream: use attempt")
        request = self._settings.request(call)
        http = self._connections.client()
        with translated(method=call.method, path=call.path):
            async with asyncio.timeout(request.timeout_s):
                response = await http.send(prepared(request, path=call.path), stream=True)
                try:
                    headers = dict(response.headers)
                    if not is_success(response.status_code):
                        answer(call, response.status_code, headers, bytes(await _read(response)))
                    stream = AsyncEventStream(call, response, headers)
                    if until_started:
                        await stream.started()
                except BaseException:
                    await response.aclose()
                    raise
        return stream

    async def _perform(self, call: Call[T]) -> T:
        attempts = self._attempts(call)
        value: T = await self._settled(attempts, self._value)
        attempts.learn(value)
        return value

    @asynccontextmanager
    async def _stream(self, call: Call[Run]) -> AsyncIterator[AsyncEventStream]:
        from orchestrator.client.stream import AsyncEventStream

        attempts = self._attempts(call)
        outcome = await self._settled(attempts, self._started)
        stream = outcome if isinstance(outcome, AsyncEventStream) else AsyncEventStream.of(call, outcome)
        attempts.learn(stream.upcoming_run)
        async with _closing(stream):
            yield stream

    def _attempts(self, call: Call[T]) -> Attempts[T]:
        return Attempts(call, self._settings, self._clocks, echoing=self._echoing)

    async def _value(self, call: Call[T]) -> T:
        return (await self.attempt(call)).value

    async def _started(self, call: Call[Run]) -> AsyncEventStream:
        return await self._open(call, until_started=True)

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

    async def _tried(self, attempts: Attempts[T], send: Callable[[Call[T]], Awaitable[V]]) -> V:
        from tenacity import AsyncRetrying

        async def once() -> V:
            return await send(attempts.next())

        value: V = await AsyncRetrying(sleep=self._sleep, **attempts.controls())(once)
        return value

    create_assistant = _method(endpoints.create_assistant)
    get_assistant = _method(endpoints.get_assistant)
    modify_assistant = _method(endpoints.modify_assistant)
    delete_assistant = _method(endpoints.delete_assistant)
    list_assistants = _method(endpoints.list_assistants)

    create_thread = _method(endpoints.create_thread)
    get_thread = _method(endpoints.get_thread)
    modify_thread = _method(endpoints.modify_thread)
    delete_thread = _method(endpoints.delete_thread)

    create_message = _method(endpoints.create_message)
    get_message = _method(endpoints.get_message)
    modify_message = _method(endpoints.modify_message)
    delete_message = _method(endpoints.delete_message)
    list_messages = _method(endpoints.list_messages)

    create_run = _method(endpoints.create_run)
    create_thread_and_run = _method(endpoints.create_thread_and_run)
    get_run = _method(endpoints.get_run)
    modify_run = _method(endpoints.modify_run)
    cancel_run = _method(endpoints.cancel_run)
    list_runs = _method(endpoints.list_runs)
    submit_tool_outputs = _method(endpoints.submit_tool_outputs)

    get_run_step = _method(endpoints.get_run_step)
    list_run_steps = _method(endpoints.list_run_steps)

    stream_run = _stream_method(endpoints.stream_run)
    stream_thread_and_run = _stream_method(endpoints.stream_thread_and_run)
    stream_tool_outputs = _stream_method(endpoints.stream_tool_outputs)


@asynccontextmanager
async def _closing(stream: AsyncEventStream) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        await stream.aclose()
        raise
    await stream.aclose(reuse=True)


async def _read(response: httpx.Response) -> bytearray:
    """Read a body, at most one chunk past its limit."""
    from httpx import DecodingError, NetworkError, ProtocolError

    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > body_limit(response.status_code):
                break
    except (DecodingError, NetworkError, ProtocolError):
        # A refusal is one without its text, too.
        if is_success(response.status_code):
            raise
    return body
