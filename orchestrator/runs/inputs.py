"""What the lifecycle is told: frozen facts, named in the past tense.

Every answer carries the `number` of the request it answers, as the lifecycle issued it, so that the machine
can tell a current observation from one that was overtaken. Building an input has no effects. Those that can
hold nothing of the user's, and so be part of no cycle, are not the garbage collector's (`gc=False`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeAlias

import msgspec

from orchestrator.errors import APIError
from orchestrator.protocol.events import StreamEvent
from orchestrator.protocol.objects import Message, Run, RunStep, Thread

__all__ = [
    "CancelRequested",
    "DetachRequested",
    "EventsObserved",
    "Input",
    "RequestFailed",
    "Resumed",
    "RunObserved",
    "RunsListed",
    "Started",
    "StreamEnded",
    "ThreadCreated",
    "Timer",
    "TimerFired",
    "ToolFinished",
    "ToolNoticed",
    "TranscriptFetched",
    "Word",
]


class Timer(StrEnum):
    """The lifecycle's timers; setting one replaces the earlier one of the same name."""

    DEADLINE = "deadline"
    """The run's own deadline."""
    RETRY = "retry"
    """The backoff before a failed request is sent again."""
    SETTLE = "settle"
    """The pause between the two looks that settle an ambiguous create."""
    POLL = "poll"
    """The next look at the run."""
    STALL = "stall"
    """No progress for a while."""
    FILL = "fill"
    """What a lost stream would have shown has been asked for long enough; the submission goes out."""
    RERUN = "rerun"
    """The pause before a run that failed or expired is followed by another."""
    UNKNOWN = "unknown"
    """A status that nobody knows has lasted too long."""
    CANCEL = "cancel"
    """A cancelled run has not reached its end."""


class Started(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Admission was granted: the run may send its first request."""


class Resumed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A new incarnation of the run's actor took the record over.

    Attributes:
        in_flight: Numbers of the requests that are under way or whose outcome was told to nobody; it will be.
        open_calls: Ids of the calls of the record's round that are under way, or whose outcome is not in the
            record; it will be told. A call of an earlier round does not count, though it had the same id.
        unwanted: Somebody has asked for the run's end, and that is told next.
    """

    in_flight: frozenset[int] = frozenset()
    open_calls: frozenset[str] = frozenset()
    unwanted: bool = False


class ThreadCreated(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The empty thread exists."""

    number: int
    thread: Thread


class RunObserved(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A whole run object was seen, in an answer or in a stream.

    Attributes:
        number: The request that showed it.
        run: The run.
        event: The event it came in, or `None` when it was the answer to a request.
        poll_after_s: The server's hint for the next look, or `None`.
        expires_in_s: Seconds left to the run by the server's own clock, or `None` when that is unknown.
    """

    number: int
    run: Run
    event: StreamEvent | None = None
    poll_after_s: float | None = None
    expires_in_s: float | None = None


class EventsObserved(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Other events were seen in a stream, one after the other."""

    number: int
    events: tuple[StreamEvent, ...]


class RunsListed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The runs of the thread were listed, newest first."""

    number: int
    runs: tuple[Run, ...]


class TranscriptFetched(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The messages and steps of the run were fetched, oldest first."""

    number: int
    messages: tuple[Message, ...]
    steps: tuple[RunStep, ...]


class StreamEnded(msgspec.Struct, frozen=True, kw_only=True):
    """A stream is over and its connection closed; that is never a verdict.

    Attributes:
        number: The request that opened it.
        error: What broke it, or `None` for an end without an error.
    """

    number: int
    error: APIError | None = None


class RequestFailed(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt failed, and its connection is closed or given back."""

    number: int
    error: APIError


class ToolFinished(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call has its outcome; there is exactly one for each call that was started.

    Attributes:
        round: The batch it belongs to.
        call_id: The server's id.
        output: What the model is told.
        error: Why the call failed, or `None`.
        fatal: What the tool raised, or a `TimeoutError`, where that is to end the run; else `None`.
        attempts: How often the function was executed; 0 when it never was.
        duration_s: Seconds it took.
    """

    round: int
    call_id: str
    output: str
    error: str | None = None
    fatal: BaseException | None = None
    attempts: int = 1
    duration_s: float = 0.0


class ToolNoticed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A tool call has something to say before it is over.

    Attributes:
        round: The batch it belongs to.
        call_id: The server's id.
        notice: What it says.
        detail: A sentence for people, or `None`.
        fraction: How much is done, from 0.0 to 1.0, or `None`.
    """

    round: int
    call_id: str
    notice: Literal["tool.approval_asked", "tool.approved", "tool.progress"]
    detail: str | None = None
    fraction: float | None = None


class CancelRequested(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Somebody wants the run to end."""


class DetachRequested(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Stop watching and leave the run to the server; its ids are reported."""


class TimerFired(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A timer is due.

    Attributes:
        timer: Which.
        serial: The serial it was set with; a fired timer that was replaced meanwhile is ignored.
    """

    timer: Timer
    serial: int


Word: TypeAlias = Started | CancelRequested | DetachRequested
"""What somebody has said of the run; it stands for every incarnation, heard by the last one or not."""

Input: TypeAlias = (
    Started
    | Resumed
    | ThreadCreated
    | RunObserved
    | EventsObserved
    | RunsListed
    | TranscriptFetched
    | StreamEnded
    | RequestFailed
    | ToolFinished
    | ToolNoticed
    | CancelRequested
    | DetachRequested
    | TimerFired
)
