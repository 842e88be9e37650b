"""The blocking client: `ThreadsClient`, for any number of threads.

The same calls, settings, answers and retries as the asynchronous one; only sending, reading and waiting
are written again here.
"""

from __future__ import annotations

import copy
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, Unpack, assert_never

from orchestrator.client.answers import answer, body_limit, is_success, too_large
from orchestrator.client.attempts import Attempts, Clocks
from orchestrator.client.azure import azure_server
from orchestrator.client.call import checked
from orchestrator.client.connections import BlockingConnections
from orchestrator.client.operations import BlockingOperations
from orchestrator.client.pages import Listed, Pager
from orchestrator.client.reconciliation import Again, Look, Pause
from orchestrator.client.retry import RetryPolicy
from orchestrator.client.settings import Settings
from orchestrator.client.tokens import BlockingTokens, authorized_blocking
from orchestrator.errors import APIError, OrchestratorClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    import httpx

    from orchestrator.client.auth import ApiKey, AuthHeader
    from orchestrator.client.call import Answer, Call, CallOptions
    from orchestrator.client.connections import OnResponse, Verify
    from orchestrator.client.options import BlockingClientOptions
    from orchestrator.client.reconciliation import Step
    from orchestrator.client.settings import Request
    from orchestrator.client.stream import EventStream
    from orchestrator.protocol.objects import Run

__all__ = ["ThreadsClient"]

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")
L = TypeVar("L", bound=Listed)


class ThreadsClient(BlockingOperations):
    """Every operation of the protocol, blocking, retried by a policy.

    Made anywhere, without I/O; may be used by any threads of the process that uses it first, save where an
    event loop runs: a call there is a `RuntimeError`. Each method takes the arguments of the function of its
    name in `orchestrator.client.endpoints`, ids by position and everything else by keyword, `CallOptions`
    included; `iter_…` takes those of `list_…`. Redirects are not followed, cookies are not kept, the
    environment's proxies are used, servers' certificates are verified.

    Args:
        base_url: Where the paths begin, such as `"http://127.0.0.1:8765/v1"`; else `OPENAI_BASE_URL`.
        api_key: Else `OPENAI_API_KEY`; may be missing only where `base_url` is this machine. A function is
            asked for a bearer token when the first request needs one, again when a server answers 401, and
            at no other time, by the thread of that request, which waits for it without limit.
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
            lower-case name, and the seconds until they came; on the calling thread.
            What it raises is logged and harms nothing.
        transport: Any httpx transport, instead of httpx's own; it gives each read the whole time anew, so
            that a server that drips is noticed at the first byte past the time.
        clocks: Where clocks and jitter come from.
        sleep: How a retry waits, given seconds.

    Raises:
        ValueError: The base URL or the key is missing, or an argument makes no sense.
        TypeError: `api_key` or `on_response` is a coroutine function, `verify` neither path nor context.
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
        transport: httpx.BaseTransport | None = None,
        clocks: Clocks | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = Settings.read(
            base_url=base_url,
            api_key=api_key,
            auth_header=auth_header,
            tokens=BlockingTokens,
            organization=organization,
            project=project,
            headers=headers,
            timeout_s=timeout,
            connect_timeout_s=connect_timeout,
            stream_idle_s=stream_idle_s,
            retry=retry or RetryPolicy(),
        )
        self._connections = BlockingConnections(
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

    @classmethod
    def for_azure(
        cls, endpoint: str, api_version: str, *, api_key: ApiKey, **options: Unpack[BlockingClientOptions]
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

    def attempt(self, call: Call[T]) -> Answer[T]:
        """Make exactly one request, whatever comes of it (two where a provider's token is refused); blocks.

        For callers that own their retries; the methods named after operations own theirs.

        Raises:
            APIError: One of its subclasses; `orchestrator.client.retry.judge` says what it allows.
            ValueError: The call streams, or its options make no sense.
        """
        if call.streams:
            raise ValueError(f"{call.operation} streams: use attempt_stream")
        request = self._settings.request(call)
        http = self._connections.client()
        return authorized_blocking(call, request, partial(self._answer, http, call))

    @contextmanager
    def attempt_stream(self, call: Call[Run]) -> Iterator[EventStream]:
        """Make exactly one request, and iterate over the events that answer it; blocks.

        Raises:
            APIError: The stream did not open; what happens later is raised by its iteration.
            ValueError: The call does not stream, or its options make no sense.
        """
        stream = self._open(call)
        with _closing(stream):
            yield stream

    def close(self) -> None:
        """Close the connections, those in use too. A client from `with_options` closes nothing."""
        if self._owns_connections:
            self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self, http: httpx.Client, call: Call[T], request: Request) -> Answer[T]:
        response, body = self._exchange(http, call, request)
        headers = dict(response.headers)
        if is_success(response.status_code) and len(body) > body_limit(response.status_code):
            raise too_large(call, headers)
        return answer(call, response.status_code, headers, bytes(body))

    def _exchange(
        self, http: httpx.Client, call: Call[Any], request: Request
    ) -> tuple[httpx.Response, bytearray]:
        from orchestrator.client.deadline import ends_at
        from orchestrator.client.transport import Translated

        ends = time.monotonic() + request.timeout_s
        with Translated(method=call.method, path=call.path), ends_at(ends):
            response = self._connections.send(http, call, request)
            try:
                return response, _read(response, ends)
            finally:
                response.close()

    def _open(self, call: Call[Run], *, until_started: bool = False) -> EventStream:
        if not call.streams:
            raise ValueError(f"{call.operation} does not stream: use attempt")
        request = self._settings.request(call)
        http = self._connections.client()
        return authorized_blocking(
            call, request, partial(self._opened, http, call, until_started=until_started)
        )

    def _opened(
        self, http: httpx.Client, call: Call[Run], request: Request, *, until_started: bool
    ) -> EventStream:
        from orchestrator.client.deadline import ends_at
        from orchestrator.client.stream import EventStream
        from orchestrator.client.transport import Translated

        ends = time.monotonic() + request.timeout_s
        with Translated(method=call.method, path=call.path), ends_at(ends):
            response = self._connections.send(http, call, request)
            try:
                headers = dict(response.headers)
                if not is_success(response.status_code):
                    answer(call, response.status_code, headers, bytes(_read(response, ends)))
                stream = EventStream(call, response, headers)
                if until_started:
                    stream.started()
            except BaseException:
                response.close()
                raise
        return stream

    def _perform(self, call: Call[T]) -> T:
        attempts = self._attempts(call)
        value: T = self._settled(attempts, self._value)
        attempts.learn(value)
        return value

    def _iterate(self, pager: Pager[L]) -> Iterator[L]:
        while (call := pager.next()) is not None:
            yield from pager.take(self._perform(call))

    @contextmanager
    def _stream(self, call: Call[Run]) -> Iterator[EventStream]:
        from orchestrator.client.stream import EventStream

        attempts = self._attempts(call)
        with ExitStack() as opened:  # from its birth: a plan may be left with a stream in hand

            def started(call: Call[Run]) -> EventStream:
                return opened.enter_context(_closing(self._open(call, until_started=True)))

            outcome = self._settled(attempts, started)
            if isinstance(outcome, EventStream):
                stream = outcome
            else:
                stream = opened.enter_context(_closing(EventStream.of(call, outcome)))
            attempts.learn(stream.upcoming_run)
            yield stream

    def _attempts(self, call: Call[T]) -> Attempts[T]:
        return Attempts(call, self._settings, self._clocks, echoing=self._echoing)

    def _value(self, call: Call[T]) -> T:
        return self.attempt(call).value

    def _settled(self, attempts: Attempts[T], send: Callable[[Call[T]], V]) -> V | T:
        """Send a call as often as its policy allows, and find out what became of it if that is not known."""
        try:
            return self._tried(attempts, send)
        except APIError as error:
            plan = attempts.settle(error)
        told: object = None
        while True:
            try:
                step = plan.send(told)
            except StopIteration as settled:
                value: V | T = settled.value
                return value
            told = self._taken(step, attempts, send)

    def _taken(self, step: Step, attempts: Attempts[T], send: Callable[[Call[T]], V]) -> object:
        try:
            match step:
                case Pause(seconds=seconds):
                    self._sleep(seconds)
                    return None
                case Look(call=call):
                    return self._tried(attempts.looking(call), self._value)
                case Again():
                    return self._tried(attempts, send)
                case _:
                    assert_never(step)
        except APIError as error:
            return error
        except OrchestratorClosed as error:
            return attempts.not_sent(error)

    def _tried(self, attempts: Attempts[T], send: Callable[[Call[T]], V]) -> V:
        from tenacity import Retrying

        try:
            return Retrying(sleep=self._sleep, **attempts.controls())(lambda: send(attempts.next()))
        except APIError as error:
            attempts.log_failure(error)
            raise


@contextmanager
def _closing(stream: EventStream) -> Iterator[EventStream]:
    try:
        yield stream
        if stream.is_told:
            stream.until_done()
    finally:
        stream.close()


def _read(response: httpx.Response, ends: float) -> bytearray:
    """Read a body, at most one chunk past its limit, until a time on the monotonic clock."""
    from httpx import DecodingError, NetworkError, ProtocolError

    body = bytearray()
    try:
        for chunk in response.iter_bytes():
            body += chunk
            if time.monotonic() > ends:
                raise TimeoutError("the answer took too long")
            if len(body) > body_limit(response.status_code):
                break
    except (DecodingError, NetworkError, ProtocolError):
        # A refusal is one without its text, too.
        if is_success(response.status_code):
            raise
    return body
