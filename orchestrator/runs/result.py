"""What comes of a run: its result, the calls it made, and the notices published on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from orchestrator.errors import RunFailed
from orchestrator.protocol.events import StreamEvent

if TYPE_CHECKING:
    from orchestrator.protocol.objects import LastError, Message, RunStep, Usage

__all__ = ["Notice", "RunResult", "StreamedEvent", "ToolCallResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallResult:
    """One tool call and what was answered.

    Attributes:
        round: Which batch it belongs to, from 1, counted through all the runs of a handle. Ids are unique
            within a round only.
        call_id: The server's id.
        name: The tool's name, as the model gave it.
        arguments: The model's arguments, a JSON document as a string; it may be invalid.
        output: What was submitted to the model.
        error: Why the call failed, or `None`; the model was told, and the run went on, unless the tool's
            failures are to end it.
        attempts: How often the function was executed; 0 when it never was, as for a call that was denied.
        duration_s: Seconds from the dispatch to the outcome.
        run_id: The run that asked for it.
    """

    round: int
    call_id: str
    name: str
    arguments: str = field(repr=False)
    output: str = field(repr=False)
    error: str | None = None
    attempts: int = 1
    duration_s: float = 0.0
    run_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A run that reached a terminal status.

    Attributes:
        status: `completed`, `failed`, `cancelled`, `expired` or `incomplete`.
        messages: The messages this run wrote, oldest first.
        steps: The run's steps, oldest first.
        tool_calls: Every tool call, in the order they were asked for, earlier runs of the handle included.
        usage: Tokens spent, earlier runs included, or `None` when the server does not say.
        error: The server's `last_error`, or the reason of an incomplete run, or `None`.
        thread_id: The run's thread; `None` when the run was cancelled before anything was sent.
        run_id: The run; `None` when it was cancelled before it was created.
    """

    status: str
    thread_id: str | None
    run_id: str | None
    messages: tuple[Message, ...] = ()
    steps: tuple[RunStep, ...] = ()
    tool_calls: tuple[ToolCallResult, ...] = ()
    usage: Usage | None = None
    error: LastError | None = None

    @property
    def text(self) -> str:
        """The text of the last message that has any."""
        return next((message.text for message in reversed(self.messages) if message.text), "")

    def raise_for_status(self) -> RunResult:
        """Return this result if the run completed.

        Raises:
            RunFailed: It ended in any other way; the error names the ids, the status and the reason.
        """
        if self.status == "completed":
            return self
        reason = f": {self.error.code or 'error'}: {self.error.message}" if self.error is not None else ""
        who = f"run {self.run_id} on thread {self.thread_id}"
        if self.run_id is None:
            who = "the run, which had not been created on the server,"
        raise RunFailed(
            f"{who} ended as {self.status}{reason}",
            thread_id=self.thread_id,
            run_id=self.run_id,
            status=self.status,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something the orchestrator itself has to say in a run's events.

    Attributes:
        event: What it is about:
            `tool.started`;
            `tool.approval_asked`: the call waits for `RunHandle.approve()` or `deny()`;
            `tool.approved`;
            `tool.progress`: what the tool told `ToolContext.progress()`;
            `tool.finished`;
            `run.stalled`: no progress, the run is looked at;
            `run.gap`: the stream was lost, what it would have shown is fetched later, deltas are gone; or
            this reader fell behind, and deltas were merged into the objects they build;
            `run.duplicate`: a create whose outcome was unknown made a second run, which is cancelled, or
            whether it did is not known;
            `run.tools_differ`: functions of the assistant have no handler here, or take other arguments;
            `run.blocked`: another run holds the thread, its end is waited for;
            `run.rerun`: the run failed or expired, another one follows it;
            `run.restarted`: the run's actor failed, a new one took over.
        run_id: The run, or `None` before it has an id.
        call_id: The tool call concerned, or `None`.
        name: The tool's name, or `None`.
        detail: A sentence for people, or `None`.
        fraction: How much of a tool call is done, from 0.0 to 1.0, or `None`.
    """

    event: Literal[
        "tool.started",
        "tool.approval_asked",
        "tool.approved",
        "tool.progress",
        "tool.finished",
        "run.stalled",
        "run.gap",
        "run.duplicate",
        "run.tools_differ",
        "run.blocked",
        "run.rerun",
        "run.restarted",
    ]
    run_id: str | None
    call_id: str | None = None
    name: str | None = None
    detail: str | None = None
    fraction: float | None = None


StreamedEvent: TypeAlias = StreamEvent | Notice
"""What `RunHandle.events()` yields: the protocol's events, and the orchestrator's notices."""
