"""What the lifecycle wants done: frozen orders, named in the imperative.

A request effect is one attempt: whoever performs it reports exactly what came of it and tries nothing again.
Effects are performed in the order they are returned in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

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


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateThread:
    """Create an empty thread, marked with the nonce. Repeatable."""

    number: int
    nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRun:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveRun:
    """Look at the run. Repeatable.

    Attributes:
        urgent: Whether the run's end or its outputs hang on it, so that it goes before routine looks.
    """

    number: int
    thread_id: str
    run_id: str
    urgent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRuns:
    """List the thread's runs, newest first. Repeatable."""

    number: int
    thread_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchTranscript:
    """Fetch the run's messages and steps. Repeatable."""

    number: int
    thread_id: str
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitToolOutputs:
    """Submit a whole batch. Not repeatable: its outcome is looked up by retrieving the run."""

    number: int
    thread_id: str
    run_id: str
    outputs: tuple[ToolOutput, ...]
    stream: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRun:
    """Ask the server to cancel the run. Repeatable: a second cancel is refused or does nothing."""

    number: int
    thread_id: str
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseStream:
    """Close the stream that a request opened; nothing more is told of it."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdraw:
    """Take a request back that has not left yet; it then fails as one that was never sent.

    Of one that has left, nothing changes.
    """

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTools:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTools:
    """Stop every call that is under way; their outcomes no longer matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTimer:
    """Tell `TimerFired` after a while, in place of an earlier timer of the same name."""

    timer: Timer
    serial: int
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearTimer:
    """Forget a timer."""

    timer: Timer


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Keep this: a successor goes on from the last record that was kept."""

    record: RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Show this to whoever reads the run's events."""

    event: StreamedEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
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
