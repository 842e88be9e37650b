"""Open event streams, asynchronous and blocking, over one sans-I/O reader.

Owns the way from the bytes of one answer to typed events. Draws no conclusions: that a stream ended says
nothing about the run. It neither retries nor reopens; the protocol cannot.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Self

import msgspec

from orchestrator.client.answers import MAX_ANSWER_BYTES, answer, too_large
from orchestrator.client.call import poll_after_s
from orchestrator.client.consumer import Consumer
from orchestrator.errors import APIConnectionError, APIResponseError
from orchestrator.protocol.events import DoneEvent, ErrorEvent, RunEvent, StreamEvent, decode_event
from orchestrator.protocol.sse import EventTooLarge, SSEDecoder

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping

    import httpx

    from orchestrator.client.call import Call
    from orchestrator.client.exchange import AsyncAnswer
    from orchestrator.protocol.objects import Run

__all__ = ["AsyncEventStream", "EventStream"]

MOST_AT_ONCE: Final = 64
"""How many events are handed out together."""

_JSON: Final = {"content-type": "application/json"}

DRAIN_S: Final = 1.0
"""How long a stream that said `done` is given to end, so that its connection can be used again."""


class _Events:
    """What has arrived: bytes in, events out; the same for both streams."""

    def __init__(self, call: Call[Run], status: int, headers: Mapping[str, str]) -> None:
        self.call = call
        self.headers = headers
        self.ready: deque[StreamEvent] = deque()
        self.is_done = False
        self.consumer = None if call.tell is None else Consumer(call.tell, call.operation)
        self._status = status
        self._decoder = SSEDecoder()
        # A server that cannot stream answers the same request with the run itself.
        is_json = headers.get("content-type", "").lower().startswith("application/json")
        self._json: bytearray | None = bytearray() if is_json else None

    def feed(self, chunk: bytes) -> None:
        if self._json is not None:
            self._json += chunk
            if len(self._json) > MAX_ANSWER_BYTES:
                raise too_large(self.call, self.headers)
            return
        try:
            arrived = self._decoder.feed(chunk)
        except EventTooLarge as error:
            raise self.error(str(error)) from error
        self.ready.extend([decode_event(event.event, event.data) for event in arrived])

    def end(self) -> None:
        """Take note that no more bytes come."""
        if self._json is not None:
            run = answer(self.call, self._status, self.headers, bytes(self._json)).value
            self.ready.append(RunEvent(event=f"thread.run.{run.status}", data=run, run_id=run.id))
            self._json = None

    def pop(self) -> StreamEvent | None:
        """Take the next event out, or `None` when there is none or `done` was taken."""
        if self.is_done or not self.ready:
            return None
        event = self.ready.popleft()
        self.is_done = isinstance(event, DoneEvent)
        return event

    def hand_over(self, hear: Callable[[list[StreamEvent]], bool]) -> bool:
        """Hand over what is ready, up to `done`; say whether more is wanted."""
        wants_more = True
        while wants_more and self.ready and not self.is_done:
            taken: list[StreamEvent] = []
            while len(taken) < MOST_AT_ONCE and (event := self.pop()) is not None:
                taken.append(self.hand_out(event))
            wants_more = hear(taken)
        return wants_more and not self.is_done

    def hand_out(self, event: StreamEvent) -> StreamEvent:
        """Return an event that leaves the stream for good, once it was told."""
        if self.consumer is not None:
            self.consumer.tell(event)
        return event

    def error(self, message: str) -> APIResponseError:
        return APIResponseError(
            message,
            method=self.call.method,
            path=self.call.path,
            request_id=self.headers.get("x-request-id"),
        )

    def not_started(self, seen: list[StreamEvent]) -> APIResponseError:
        said = "".join(f": {event.data.message}" for event in seen if isinstance(event, ErrorEvent))
        return self.error(f"the stream ended before its first run event{said}")


class _Stream:
    """What both streams know of their answer."""

    def __init__(
        self,
        call: Call[Run],
        status: int,
        headers: Mapping[str, str],
    ) -> None:
        from orchestrator.client.transport import Translated

        self._status = status
        self._translated = Translated(method=call.method, path=call.path)
        self._events = _Events(call, status, headers)
        self._ended = False

    @property
    def status(self) -> int:
        """The answer's HTTP status."""
        return self._status

    @property
    def headers(self) -> Mapping[str, str]:
        """The answer's headers, by lower-case name."""
        return self._events.headers

    @property
    def request_id(self) -> str | None:
        """The server's `x-request-id`, or `None`."""
        return self.headers.get("x-request-id")

    @property
    def poll_after_s(self) -> float | None:
        """Seconds after which the server wants to be asked again, or `None` when it did not say."""
        return poll_after_s(self.headers)

    @property
    def upcoming_run(self) -> Run | None:
        """The run of the first run event that has arrived and was not iterated yet, or `None`."""
        return next((event.data for event in self._events.ready if isinstance(event, RunEvent)), None)

    @property
    def is_told(self) -> bool:
        """Whether somebody is told the events, who would miss those that are not read."""
        return self._events.consumer is not None

    @property
    def _is_waiting(self) -> bool:
        return not (self._events.ready or self._ended or self._events.is_done)

    def _drop(self) -> None:
        self._ended = True
        self._events.ready.clear()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._events.call.operation}, request {self.request_id}>"


class AsyncEventStream(_Stream):
    """The events of one answer, to be iterated once, on the loop that opened it.

    Iteration ends after `done` or when the server ends the answer. With `stream_to`, each event is told on
    its way out, and leaving the `with` block normally reads the rest first: closing the stream prevents it.

    Raises:
        APITimeout: Silence for longer than the client's `stream_idle_s`.
        APIConnectionError: The transfer broke off.
        APIResponseError: An event is too large, or a JSON answer cannot be understood.
    """

    def __init__(self, call: Call[Run], answer: AsyncAnswer) -> None:
        super().__init__(call, answer.status, answer.headers)
        self._parts = answer.parts
        self._deliver = answer.deliver
        self._hear: Callable[[list[StreamEvent]], bool] | None = None
        self._hearers_error: Exception | None = None
        self._close = answer.aclose

    @classmethod
    def of(cls, call: Call[Run], run: Run) -> Self:
        """Return what a server that cannot stream would answer: the run as it stands, and no more.

        For a request whose stream was lost, when a look has shown what became of it.
        """
        from orchestrator.client.exchange import AsyncAnswer
        from orchestrator.client.pool import hand_over

        async def whole() -> AsyncGenerator[bytes, None]:
            yield msgspec.json.encode(run)

        parts = whole()
        return cls(call, AsyncAnswer(200, _JSON, parts, partial(hand_over, parts), parts.aclose))

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        """Return itself: an answer cannot be read twice."""
        return self

    async def __anext__(self) -> StreamEvent:
        """Wait for the next event, and tell it to `stream_to`."""
        event = await self._next()
        if event is None:
            raise StopAsyncIteration
        return self._events.hand_out(event)

    async def forward(self, hear: Callable[[list[StreamEvent]], bool]) -> None:
        """Hand over all events as they arrive, in place of iterating: many streams cost much less this way.

        Args:
            hear: Called on this loop with what has come, at most 64 events at a time, before anybody else is
                woken; says whether it wants more. What it raises is raised here.
        """
        self._hear = hear
        if not self._events.hand_over(hear) or not self._is_waiting:
            return
        self._ended = True  # unless it goes on: what broke cannot be read on
        with self._translated:
            await self._deliver(self._forward_part)
        if self._hearers_error is not None:
            raise self._hearers_error
        if self._ended:
            self._events.end()
            self._events.hand_over(hear)

    def _forward_part(self, part: bytes) -> bool:
        self._events.feed(part)
        assert self._hear is not None
        try:
            self._ended = self._events.hand_over(self._hear)
        except Exception as error:  # noqa: BLE001 - raised once nobody can take it for the transport's
            self._hearers_error = error
            return False
        return self._ended

    async def until_done(self) -> None:
        """Read what is left of the stream, for the sake of `stream_to`."""
        async for _ in self:
            pass

    async def started(self) -> None:
        """Wait for the first run event, which says that the request took effect; nothing is lost by it.

        Raises:
            APIResponseError: The stream ended, or reported an error, without one.
        """
        seen: list[StreamEvent] = []
        while (event := await self._next()) is not None:
            seen.append(event)
            if isinstance(event, RunEvent):
                self._events.ready.extendleft(reversed(seen))
                return
            if isinstance(event, ErrorEvent):
                break
        raise self._events.not_started(seen)

    async def aclose(self, *, reuse: bool = False) -> None:
        """Close the answer, and drop what was not read.

        Only a stream that was read to its end leaves its connection to others.

        Args:
            reuse: Whether to wait, for at most a second, for the end of a stream that said `done`.
        """
        try:
            if reuse and self._events.is_done:
                await self._drain()
        finally:
            self._drop()
            await self._close()

    async def _next(self) -> StreamEvent | None:
        while self._is_waiting:
            await self._read()
        return self._events.pop()

    async def _read(self) -> None:
        self._ended = True  # unless a part comes: what broke cannot be read on
        try:
            with self._translated:
                part = await self._parts.__anext__()
        except StopAsyncIteration:
            self._events.end()
        else:
            self._events.feed(part)
            self._ended = False

    async def _drain(self) -> None:
        with suppress(APIConnectionError, APIResponseError, TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while not self._ended:
                    await self._read()


class EventStream(_Stream):
    """The events of one answer, to be iterated once; blocks the calling thread.

    Iteration ends after `done` or when the server ends the answer. With `stream_to`, each event is told on
    its way out, and leaving the `with` block normally reads the rest first: closing the stream prevents it.

    Raises:
        APITimeout: Silence for longer than the client's `stream_idle_s`.
        APIConnectionError: The transfer broke off.
        APIResponseError: An event is too large, or a JSON answer cannot be understood.
    """

    def __init__(
        self,
        call: Call[Run],
        response: httpx.Response,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(call, response.status_code, headers)
        self._response = response
        self._chunks: Iterator[bytes] = response.iter_bytes()

    @classmethod
    def of(cls, call: Call[Run], run: Run) -> Self:
        """Return what a server that cannot stream would answer; see `AsyncEventStream.of`."""
        import httpx

        return cls(call, httpx.Response(200, headers=_JSON, content=msgspec.json.encode(run)), _JSON)

    def __iter__(self) -> Iterator[StreamEvent]:
        """Return itself: an answer cannot be read twice."""
        return self

    def __next__(self) -> StreamEvent:
        """Wait for the next event, and tell it to `stream_to`."""
        event = self._next()
        if event is None:
            raise StopIteration
        return self._events.hand_out(event)

    def until_done(self) -> None:
        """Read what is left of the stream, for the sake of `stream_to`."""
        for _ in self:
            pass

    def started(self) -> None:
        """Wait for the first run event, which says that the request took effect; nothing is lost by it.

        Raises:
            APIResponseError: The stream ended, or reported an error, without one.
        """
        seen: list[StreamEvent] = []
        while (event := self._next()) is not None:
            seen.append(event)
            if isinstance(event, RunEvent):
                self._events.ready.extendleft(reversed(seen))
                return
            if isinstance(event, ErrorEvent):
                break
        raise self._events.not_started(seen)

    def close(self) -> None:
        """Close the answer, and drop what was not read.

        Only a stream that was read to its end leaves its connection to others.
        """
        self._drop()
        self._response.close()

    def _next(self) -> StreamEvent | None:
        while self._is_waiting:
            self._read()
        return self._events.pop()

    def _read(self) -> None:
        self._ended = True  # unless a chunk comes: what broke cannot be read on
        with self._translated:
            chunk = next(self._chunks, None)
        if chunk is None:
            self._events.end()
        else:
            self._events.feed(chunk)
            self._ended = False
