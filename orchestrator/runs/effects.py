"""What the lifecycle wants done: frozen orders, named in the imperative.

A request effect is one attempt: whoever performs it reports exactly what came of it and tries nothing again.
Effects are performed in the order they are returned in. Those that can hold nothing of the user's, and so be
part of no cycle, are not the garbage collector's (`gc=False`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from orchestrator.errors import OrchestratorError
from orchestrator.protocol.objects import JSON, ToolCall, ToolOutput
from orchestrator.runs.inputs import Timer
from orchestrator.runs.record import RunRecord
from orchestrator.runs.result import RunResult, StreamedEvent

__all__ = [
    "CancelRun",
    "ClearTimer",
    "CloseStream",
    "CreateRun",
    "CreateThread",
    "Effect",
    "FetchTranscript",
    "Finish",
    "ListRuns",
    "Publish",
    "Record",
    "RequestEffect",
    "RetrieveRun",
    "SetTimer",
    "StartTools",
    "StopTools",
    "SubmitToolOutputs",
    "Withdraw",
]


class CreateThread(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Create an empty thread, marked with the nonce. Repeatable."""

    number: int
    nonce: str


class CreateRun(msgspec.Struct, frozen=True, kw_only=True):
    """Create the run. Not repeatable: its outcome is looked up by the nonce.

    Attributes:
        number: The request's number.
        thread_id: The thread.
        assistant_id: The assistant.
        nonce: Marks the run, in its metadata.
        messages: Messages added with the run.
        options: The other fields of the request's body.
        metadata: The user's metadata.
        stream: Whether to ask for an event stream.
    """

    number: int
    thread_id: str
    assistant_id: str
    nonce: str
    messages: tuple[JSON, ...]
    options: Mapping[str, Any]
    metadata: Mapping[str, str]
    stream: bool


class RetrieveRun(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Look at the run. Repeatable.

    Attributes:
        urgent: Whether the run's end or its outputs hang on it, so that it goes before routine looks.
    """

    number: int
    thread_id: str
    run_id: str
    urgent: bool = False


class ListRuns(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """List the thread's runs, newest first. Repeatable."""

    number: int
    thread_id: str


class FetchTranscript(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Fetch the run's messages and steps. Repeatable."""

    number: int
    thread_id: str
    run_id: str


class SubmitToolOutputs(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Submit a whole batch. Not repeatable: its outcome is looked up by retrieving the run."""

    number: int
    thread_id: str
    run_id: str
    outputs: tuple[ToolOutput, ...]
    stream: bool


class CancelRun(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Ask the server to cancel the run. Repeatable: a second cancel is refused or does nothing."""

    number: int
    thread_id: str
    run_id: str


class CloseStream(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Close the stream that a request opened; nothing more is told of it."""

    number: int


class Withdraw(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Take a request back that has not left yet; it then fails as one that was never sent.

    Of one that has left, nothing changes.
    """

    number: int


class StartTools(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Start these calls of one round, all at once.

    Attributes:
        round: The batch.
        calls: The calls.
        bound_s: Seconds until every one must have an outcome, or `None` for the tools' own timeouts.
        doubtful: Ids of those that may have been made before, and need somebody's approval.
    """

    round: int
    calls: tuple[ToolCall, ...]
    bound_s: float | None
    doubtful: frozenset[str] = frozenset()


class StopTools(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Stop every call that is under way; their outcomes no longer matter."""


class SetTimer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tell `TimerFired` after a while, in place of an earlier timer of the same name."""

    timer: Timer
    serial: int
    delay_s: float


class ClearTimer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Forget a timer."""

    timer: Timer


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Keep this: a successor goes on from the last record that was kept."""

    record: RunRecord


class Publish(msgspec.Struct, frozen=True, kw_only=True):
    """Show this to whoever reads the run's events, in this order."""

    events: tuple[StreamedEvent, ...]


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """The run is over for us: exactly one of the two is set. Nothing comes after it.

    Requests, streams and tool calls that are under way are given up with it, in one step: were they stopped
    before, an actor that died in between would leave a successor to start them again.
    """

    result: RunResult | None = None
    error: OrchestratorError | None = None


RequestEffect: TypeAlias = (
    CreateThread | CreateRun | RetrieveRun | ListRuns | FetchTranscript | SubmitToolOutputs | CancelRun
)

Effect: TypeAlias = (
    RequestEffect
    | Withdraw
    | CloseStream
    | StartTools
    | StopTools
    | SetTimer
    | ClearTimer
    | Record
    | Publish
    | Finish
)
