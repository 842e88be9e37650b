"""How the lifecycle's request effects become requests, and answers become inputs.

`Backend` is the seam: one method, one attempt, every outcome told as an input. `ThreadsBackend` speaks the
Threads/Runs protocol through an `AsyncThreadsClient`. It decides nothing: what is tried again, and what an
answer means, is the lifecycle's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, assert_never

from orchestrator.client import endpoints
from orchestrator.client.pages import Listed, Pager
from orchestrator.client.retry import NONCE_KEY
from orchestrator.errors import APIError, APIStatusError
from orchestrator.protocol.events import DoneEvent, ErrorEvent, RunEvent
from orchestrator.protocol.lean import Lean
from orchestrator.runs.effects import (
    CancelRun,
    CreateRun,
    CreateThread,
    FetchTranscript,
    ListRuns,
    RequestEffect,
    RetrieveRun,
    SubmitToolOutputs,
)
from orchestrator.runs.inputs import (
    EventsObserved,
    Input,
    RequestFailed,
    RunObserved,
    RunsListed,
    StreamEnded,
    ThreadCreated,
    TranscriptFetched,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from orchestrator.client import AsyncThreadsClient
    from orchestrator.client.call import Answer, Call
    from orchestrator.client.stream import AsyncEventStream
    from orchestrator.protocol.events import StreamEvent
    from orchestrator.protocol.objects import Message, Page, Run, RunStep

__all__ = ["Backend", "Heard", "Report", "ThreadsBackend"]

T = TypeVar("T")
L = TypeVar("L", bound=Listed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a server said around one of its answers, an error's or a stream's included.

    Attributes:
        status: The HTTP status.
        headers: By lower-case name.
        request_id: The server's `x-request-id`, or `None`.
    """

    status: int
    headers: Mapping[str, str]
    request_id: str | None


class Report(Protocol):
    """Tells the run what came of a request; called on the actors' loop."""

    def __call__(self, *inputs: Input) -> None:
        """Tell what has happened, in this order."""


class Backend(Protocol):
    """Carries out request effects, one attempt each."""

    def perform(self, effect: RequestEffect, report: Report) -> Awaitable[None]:
        """Make the request and report what came of it, with the effect's number on every input.

        Runs on the actors' loop. Never raises for what a server or a network does; a cancellation closes
        the connection and reports nothing more.
        """


class ThreadsBackend:
    """The Threads/Runs protocol.

    Args:
        client: Makes the requests, with the run's own credentials; it belongs to the actors' loop.
        heard: Told of every answer, on that loop, before what it means is reported. One that cannot be
            understood is not among them.
        lean: Shared with the other runs, so that what all have in common is held once.
    """

    def __init__(
        self, client: AsyncThreadsClient, *, heard: Callable[[Heard], object], lean: Lean | None = None
    ) -> None:
        self._client = client
        self._heard = heard
        self._lean = Lean(lean)

    async def perform(self, effect: RequestEffect, report: Report) -> None:
        """Make one attempt; see `Backend.perform`."""
        try:
            await self._performing(effect, report)
        except APIError as error:
            if isinstance(error, APIStatusError):
                self._hear(error)
            report(RequestFailed(number=effect.number, error=error))

    def _performing(self, effect: RequestEffect, report: Report) -> Awaitable[None]:
        # Not awaited here: a stream is open for long, and each coroutine that waits for it costs its share.
        match effect:
            case CreateThread():
                return self._create_thread(effect, report)
            case CreateRun():
                return self._send(effect, _creation(effect), report)
            case RetrieveRun():
                return self._run(effect, endpoints.get_run(effect.thread_id, effect.run_id), report)
            case CancelRun():
                return self._run(effect, endpoints.cancel_run(effect.thread_id, effect.run_id), report)
            case SubmitToolOutputs():
                return self._send(effect, _submission(effect), report)
            case ListRuns():
                return self._list_runs(effect, report)
            case FetchTranscript():
                return self._fetch_transcript(effect, report)
            case _:
                assert_never(effect)

    async def _create_thread(self, effect: CreateThread, report: Report) -> None:
        answer = await self._attempt(endpoints.create_thread(metadata={NONCE_KEY: effect.nonce}))
        report(ThreadCreated(number=effect.number, thread=answer.value))

    async def _list_runs(self, effect: ListRuns, report: Report) -> None:
        page = await self._attempt(endpoints.list_runs(effect.thread_id, limit=100, order="desc"))
        report(RunsListed(number=effect.number, runs=tuple(page.value.data)))

    async def _fetch_transcript(self, effect: FetchTranscript, report: Report) -> None:
        messages, steps = await self._messages(effect), await self._steps(effect)
        report(TranscriptFetched(number=effect.number, messages=messages, steps=steps))

    async def _attempt(self, call: Call[T]) -> Answer[T]:
        answer = await self._client.attempt(call)
        self._hear(answer)
        return answer

    def _hear(self, answer: Answer[Any] | APIStatusError | AsyncEventStream) -> None:
        self._heard(Heard(status=answer.status, headers=answer.headers, request_id=answer.request_id))

    def _send(
        self, effect: CreateRun | SubmitToolOutputs, call: Call[Run], report: Report
    ) -> Awaitable[None]:
        if effect.stream:
            return self._stream(effect.number, call, report)
        return self._run(effect, call, report)

    async def _run(self, effect: RequestEffect, call: Call[Run], report: Report) -> None:
        answer = await self._attempt(call)
        run = self._lean.whole(answer.value)
        report(
            RunObserved(
                number=effect.number,
                run=run,
                poll_after_s=answer.poll_after_s,
                expires_in_s=_ServerClock(answer.headers).seconds_until(run.expires_at),
            )
        )

    async def _stream(self, number: int, call: Call[Run], report: Report) -> None:
        async with self._client.attempt_stream(call) as stream:
            self._hear(stream)
            ending: APIError | None = None
            seen = _Seen(number, stream, self._lean, report)
            try:
                await stream.forward(seen.hear)
            except APIError as error:
                ending = error
        report(StreamEnded(number=number, error=ending))

    async def _messages(self, effect: FetchTranscript) -> tuple[Message, ...]:
        return await self._all(
            endpoints.list_messages(effect.thread_id, run_id=effect.run_id, order="asc", limit=100)
        )

    async def _steps(self, effect: FetchTranscript) -> tuple[RunStep, ...]:
        return await self._all(
            endpoints.list_run_steps(effect.thread_id, effect.run_id, order="asc", limit=100)
        )

    async def _all(self, first: Call[Page[L]]) -> tuple[L, ...]:
        pager = Pager(first)
        items: list[L] = []
        while (call := pager.next()) is not None:
            items.extend(pager.take((await self._attempt(call)).value))
        return tuple(items)


class _Seen:
    """Reports what a stream shows: each run by itself, what comes between two of them together.

    Args:
        number: The request that opened the stream.
        stream: The stream.
        lean: Makes the same of what was seen, without what is held already.
        report: Told the inputs.
    """

    __slots__ = ("_clock", "_lean", "_number", "_poll_after_s", "_report", "_run_id")

    def __init__(self, number: int, stream: AsyncEventStream, lean: Lean, report: Report) -> None:
        self._number = number
        self._poll_after_s = stream.poll_after_s
        self._clock = _ServerClock(stream.headers)
        self._lean = lean
        self._report = report
        self._run_id: str | None = None

    def hear(self, events: list[StreamEvent]) -> bool:
        """Report these events; say whether more is to be read."""
        inputs: list[Input] = []
        others: list[StreamEvent] = []
        is_over = False
        for event in events:
            if isinstance(event, RunEvent):
                self._add(others, inputs)
                others = []
                inputs.append(self._observed(event))
            elif isinstance(event, DoneEvent):
                is_over = True
            else:
                self._run_id = self._run_id or event.run_id
                others.append(self._lean.event(event, self._run_id))
                is_over = isinstance(event, ErrorEvent)
            if is_over:
                break
        self._add(others, inputs)
        if inputs:
            self._report(*inputs)
        return not is_over

    def _add(self, others: list[StreamEvent], inputs: list[Input]) -> None:
        if others:
            inputs.append(EventsObserved(number=self._number, events=tuple(others)))

    def _observed(self, event: RunEvent) -> RunObserved:
        run = self._lean.whole(event.data)
        self._run_id = self._run_id or run.id
        return RunObserved(
            number=self._number,
            run=run,
            event=RunEvent(event=event.event, data=run, run_id=run.id),
            poll_after_s=self._poll_after_s,
            expires_in_s=self._clock.seconds_until(run.expires_at),
        )


class _ServerClock:
    """The server's time as an answer's `Date` header told it, carried on by our own monotonic clock.

    Remaining time is reckoned on one clock, so that a skew between two machines does not matter. The header
    has a resolution of a second; the lifecycle's margin covers that.
    """

    __slots__ = ("_date", "_received_at")

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._received_at = time.monotonic()
        self._date = headers.get("date")

    def seconds_until(self, at: float | None) -> float | None:
        """Seconds from now to a moment of the server's, or `None` when either is unknown."""
        if at is None or self._date is None:
            return None
        server_time = _timestamp(self._date)
        return None if server_time is None else at - server_time - (time.monotonic() - self._received_at)


@lru_cache(maxsize=16)  # many answers come in one second
def _timestamp(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None


def _creation(effect: CreateRun) -> Call[Run]:
    build = endpoints.stream_run if effect.stream else endpoints.create_run
    return build(
        effect.thread_id,
        assistant_id=effect.assistant_id,
        metadata=dict(effect.metadata),
        nonce=effect.nonce,
        **_body(effect),
    )


def _submission(effect: SubmitToolOutputs) -> Call[Run]:
    build = endpoints.stream_tool_outputs if effect.stream else endpoints.submit_tool_outputs
    return build(effect.thread_id, effect.run_id, tool_outputs=effect.outputs)


def _body(effect: CreateRun) -> dict[str, Any]:
    """The optional fields of the create request that were given."""
    fields = dict(effect.options)
    messages = [*effect.messages, *(fields.pop("additional_messages", None) or ())]
    if messages:
        fields["additional_messages"] = messages
    return fields
