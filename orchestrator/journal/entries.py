"""What a journal tells people about its runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

__all__ = ["JournalCall", "JournalEvent", "JournalHistory", "JournalRun"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRun:
    """A run, as it stands in the journal. Times are UTC, by the database's clock.

    Attributes:
        key: The run's key.
        state: `waiting` where nobody has begun to conduct it, `open`, or `ended`.
        phase: Where it stands for whoever conducts it.
        status: The server's status, as it was last seen, or `None`.
        server: Where its requests go.
        assistant_id: The assistant.
        thread_id: The thread, or `None` while it is not known.
        run_id: The run, or `None` while it is not known.
        owner: Who conducts it or did last: host, process id and a random part; `None` when it was let go of.
        epoch: How often somebody has begun to conduct it.
        held: Whether the owner's lease is good.
        cancel_requested: Whether somebody has asked for its end through the journal.
        attempts: How many runs on the server it took so far.
        created_at: When the journal was given it.
        updated_at: When it changed last.
        ended_at: When it ended, or `None`.
        error: What it ended with, where it has no result.
    """

    key: str
    state: str
    phase: str
    status: str | None
    server: str
    assistant_id: str
    thread_id: str | None
    run_id: str | None
    owner: str | None
    epoch: int
    held: bool
    cancel_requested: bool
    attempts: int
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEvent:
    """One line of a run's time line.

    Attributes:
        seq: Its number, from 1, without gaps.
        at: When it was written.
        kind: What happened.
        detail: To what, or how, or `None`.
        epoch: Under which owner.
    """

    seq: int
    at: datetime
    kind: str
    detail: str | None
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalCall:
    """A tool call.

    Attributes:
        round: The batch it belongs to.
        call_id: The server's id.
        name: The tool.
        state: `started` or `finished`.
        attempts: How often the function was executed.
        error: Why it failed, or `None`.
        arguments: What it was given, as it was recorded.
        output: What was submitted to the model, as it was recorded; `None` while there is nothing.
    """

    round: int
    call_id: str
    name: str
    state: str
    attempts: int
    error: str | None = field(repr=False)
    arguments: str = field(repr=False)
    output: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalHistory:
    """Everything a journal can show of a run.

    Attributes:
        run: The run.
        events: Its time line, oldest first.
        calls: Its tool calls, in the order they were asked for.
    """

    run: JournalRun
    events: tuple[JournalEvent, ...]
    calls: tuple[JournalCall, ...]
