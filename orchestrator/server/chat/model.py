"""The model that asks a Chat Completions endpoint.

Owns the exchange: connections, attempts, bounds of size and time. What is asked is `question`'s business,
what an answer means that of `answer`, and what a failure is called that of `failure`.

A completion changes nothing at the endpoint, so it may be asked for again until something of the answer was
passed on: refused connections, 429, 5xx and streams that break before their first word are tried again by
the policy of `orchestrator.client.retry`. Afterwards a failure is the run's. A cancelled run closes its
connection at once, which is how endpoints learn to stop.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

import msgspec

from orchestrator.client.retry import RetryPolicy, Verdict, delay_s, judge
from orchestrator.client.transport import Translated, async_client
from orchestrator.errors import APIConnectionError, APIError, APIStatusError, APITimeout, status_error
from orchestrator.server.chat.answer import Answer, UnreadableAnswerError
from orchestrator.server.chat.failure import detail_of, failure
from orchestrator.server.chat.incoming import Incoming
from orchestrator.server.chat.question import adapted, optional_in, question
from orchestrator.server.models import ModelFailedError
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import TracebackType

    import httpx

    from orchestrator.protocol.objects import JSON
    from orchestrator.server.chat.endpoint import Endpoint
    from orchestrator.server.models import ModelOutput, Prompt

__all__ = ["Bounds", "ChatModel"]

_log = get_logger(__name__)

_POLICY: Final = RetryPolicy(retry_after_cap_s=60.0)
_WHERE: Final = {"method": "POST", "path": "/chat/completions"}
_ERROR_BYTES: Final = 64 * 1024
_USAGE_S: Final = 5.0
"""How long usage is waited for once the answer is complete, in seconds."""

_END_S: Final = 0.1
"""How long the end of the body is waited for after `[DONE]`, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one completion may take.

    Attributes:
        connect_s: Seconds to connect.
        first_s: Seconds until the first byte of the answer; a local model reads a long prompt for minutes.
        idle_s: Seconds between two pieces of it.
        total_s: Seconds for all attempts together, waits included.
        answer_bytes: The most bytes of one answer as it is sent.
        answer_chars: The most characters of text and arguments in it.
        connections: The most completions at once; more wait for their turn.
    """

    connect_s: float = 5.0
    first_s: float = 300.0
    idle_s: float = 60.0
    total_s: float = 600.0
    answer_bytes: int = 64 * 1024 * 1024
    answer_chars: int = 4 * 1024 * 1024
    connections: int = 2_000


@dataclass(slots=True, kw_only=True)
class _Exchange:
    """One completion over all its attempts; times are the loop's."""

    body: JSON
    ends: float
    unknown: set[str] = field(default_factory=set)
    attempts: int = 0
    began: bool = False


class _AdaptedError(Exception):
    """The endpoint does not know a parameter that the next attempt will do without."""


class ChatModel:
    """A `Model` behind a Chat Completions endpoint; an async context manager that owns the connections.

    `orchestrator.server.app.create_app` enters it on the server's loop and leaves it at the end.

    Args:
        endpoint: Where it is.
        name: The model to ask for, whatever the run says; by default, what the run says.
        bounds: What a completion may take.
        policy: How often a failed request is tried.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        name: str | None = None,
        bounds: Bounds | None = None,
        policy: RetryPolicy = _POLICY,
    ) -> None:
        self._endpoint = endpoint
        self._name = name
        self._bounds = bounds or Bounds()
        self._policy = policy
        self._unknown: set[str] = set()
        self._http: httpx.AsyncClient | None = None

    async def __aenter__(self) -> ChatModel:
        """Prepare to connect; reads certificates and the environment's proxies, some 20 ms."""
        self._http = async_client(max_connections=self._bounds.connections)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection."""
        if self._http is not None:
            await self._http.aclose()

    async def respond(self, prompt: Prompt) -> AsyncGenerator[ModelOutput, None]:
        """Yield one completion as it comes in; cancelled, it closes its connection.

        Raises:
            ModelFailedError: The endpoint refused, failed, or answered what cannot be understood.
        """
        exchange = _Exchange(
            body=question(prompt, model=self._name),
            ends=asyncio.get_running_loop().time() + self._bounds.total_s,
        )
        while True:
            answer = Answer(parallel=prompt.parallel_tool_calls, max_chars=self._bounds.answer_chars)
            try:
                async with aclosing(self._attempt(exchange, answer)) as outputs:
                    async for output in outputs:
                        exchange.began = True
                        yield output
            except APIError as error:
                await self._wait_after(error, exchange)
            except UnreadableAnswerError as error:
                raise ModelFailedError("server_error", f"The answer of the model's server {error}.") from None
            except _AdaptedError:
                continue
            else:
                return

    async def _attempt(self, exchange: _Exchange, answer: Answer) -> AsyncGenerator[ModelOutput, None]:
        response = await self._ask(exchange)
        try:
            if response.status_code != HTTPStatus.OK:
                raise await self._refused(response, exchange)
            self._unknown |= exchange.unknown
            kind = response.headers.get("content-type", "")
            incoming = Incoming(kind, max_bytes=self._bounds.answer_bytes)
            async with aclosing(self._chunks(response, exchange, answer)) as chunks:
                async for chunk in chunks:
                    for data in incoming.feed(chunk):
                        for output in answer.feed(data):
                            yield output
                    if incoming.done:
                        await _drain(chunks)
                        break
            for data in incoming.end():
                for output in answer.feed(data):
                    yield output
            if not (incoming.done or answer.finished):
                raise APIConnectionError("the answer ended in the middle", sent=True, **_WHERE)
            for output in answer.end():
                yield output
        finally:
            await response.aclose()

    async def _ask(self, exchange: _Exchange) -> httpx.Response:
        assert self._http is not None, "the model is used outside of its `async with`"
        exchange.attempts += 1
        timeouts = {"connect": self._bounds.connect_s, "pool": None, "read": None, "write": None}
        request = self._http.build_request(
            "POST",
            self._endpoint.url,
            headers=self._endpoint.headers,
            content=msgspec.json.encode(adapted(exchange.body, self._unknown | exchange.unknown)),
            extensions={"lane": "stream", "timeout": timeouts},
        )
        with Translated(**_WHERE):
            async with asyncio.timeout_at(_until(exchange, self._bounds.first_s)):
                return await self._http.send(request, stream=True)

    async def _chunks(
        self, response: httpx.Response, exchange: _Exchange, answer: Answer
    ) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes, within the bounds; after the answer's end no failure matters."""
        patience_s = self._bounds.first_s
        async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_bytes())) as chunks:
            while True:
                try:
                    with Translated(**_WHERE):
                        async with asyncio.timeout_at(_until(exchange, patience_s)):
                            chunk = await anext(chunks, None)
                except APIError:
                    if answer.finished:
                        return
                    raise
                if chunk is None:
                    return
                yield chunk
                patience_s = _USAGE_S if answer.finished else self._bounds.idle_s

    async def _refused(self, response: httpx.Response, exchange: _Exchange) -> Exception:
        """Read what an endpoint says instead of an answer."""
        body = bytearray()
        with suppress(APIError):  # the status says enough
            async with aclosing(self._chunks(response, exchange, _NO_ANSWER)) as chunks:
                async for chunk in chunks:
                    body += chunk[: _ERROR_BYTES - len(body)]
                    if len(body) == _ERROR_BYTES:
                        break
        status = response.status_code
        unknown = optional_in(bytes(body), exchange.body) - self._unknown - exchange.unknown
        if status in (400, 422) and unknown:
            exchange.unknown |= unknown
            exchange.attempts -= 1
            return _AdaptedError()
        headers = {name.lower(): value for name, value in response.headers.items()}
        detail = detail_of(bytes(body), self._endpoint)
        return status_error(status)(detail, status=status, headers=headers, **_WHERE)

    async def _wait_after(self, error: APIError, exchange: _Exchange) -> None:
        """Wait until the next attempt is due.

        Raises:
            ModelFailedError: There is none.
        """
        pause_s = self._pause_s(error, exchange)
        status = error.status if isinstance(error, APIStatusError) else None
        kind = type(error).__name__
        if pause_s is None:
            _log.warning("server.model_failed", status=status, kind=kind, attempts=exchange.attempts)
            raise failure(error, attempts=exchange.attempts, began=exchange.began) from None
        _log.info("server.model_retried", status=status, kind=kind, attempts=exchange.attempts)
        await asyncio.sleep(pause_s)

    def _pause_s(self, error: APIError, exchange: _Exchange) -> float | None:
        waited_in_vain = isinstance(error, APITimeout) and error.sent
        if exchange.began or waited_in_vain or exchange.attempts >= self._policy.attempts:
            return None
        if judge(error, repeatable=True) is not Verdict.AGAIN or not self._policy.when(error):
            return None
        jitter = random.random()  # noqa: S311 - it spreads attempts, it keeps no secret
        pause_s = delay_s(
            self._policy, failures=exchange.attempts, error=error, jitter=jitter, unix_now=time.time()
        )
        left_s = exchange.ends - asyncio.get_running_loop().time()
        return pause_s if pause_s < left_s else None


async def _drain(chunks: AsyncGenerator[bytes, None]) -> None:
    """Read the end of a body that says nothing more, so that its connection can be used again."""
    with suppress(APIError, TimeoutError):
        async with asyncio.timeout(_END_S):
            async for _ in chunks:
                pass


_NO_ANSWER: Final = Answer(parallel=False, max_chars=0)


def _until(exchange: _Exchange, patience_s: float) -> float:
    return min(exchange.ends, asyncio.get_running_loop().time() + patience_s)
