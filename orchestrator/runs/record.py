"""What of a run must survive the actor that conducts it.

A record is frozen: the lifecycle replaces it at each step that matters and hands it out in a `Record` effect
before the effect that the step is about. A successor that is given the last record goes on from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from enum import StrEnum
from itertools import groupby, takewhile
from operator import attrgetter

import msgspec

from orchestrator.client.retry import NONCE_KEY
from orchestrator.errors import OrchestratorError
from orchestrator.protocol.objects import Run, ToolCall, Usage
from orchestrator.runs.request import RunRequest
from orchestrator.runs.result import ToolCallResult

__all__ = ["Ending", "Phase", "RunRecord", "digest_of"]


class Phase(StrEnum):
    """Where a run stands, as the orchestrator sees it."""

    ADMITTED = "admitted"
    """Accepted by `start()`; nothing was sent yet."""
    CREATING = "creating"
    """The thread or the run is being created, or the outcome of that is being looked up."""
    WATCHING = "watching"
    """The run is streamed or polled."""
    ACTING = "acting"
    """Its tool calls are under way."""
    SUBMITTING = "submitting"
    """The whole batch is being submitted, or the outcome of that is being looked up."""
    CANCELLING = "cancelling"
    """Cancel was posted; the run is watched to its end."""
    COLLECTING = "collecting"
    """The verdict is known; messages and steps that no stream showed are fetched."""
    FINISHED = "finished"
    """The handle has its outcome."""


class Ending(StrEnum):
    """Why the orchestrator itself ends a run."""

    CANCELLED = "cancelled"
    """A user asked for it."""
    DEADLINE = "deadline"
    """The run's deadline passed."""
    FAILED = "failed"
    """The orchestrator cannot go on; `RunRecord.failure` says why."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one run.

    Attributes:
        key: The caller's or a generated key, unique in this process.
        nonce: Marks what belongs to this record on the server; see `mark`.
        request: What was asked for.
        deadline_at: The deadline, in seconds of the injected clock.
        phase: Where the run stands.
        thread_id: The thread, once it is known.
        run_id: The run, once it is known; known from the start when a run is adopted.
        attempt: The number of this run, from 1; those before it failed or expired.
        earlier: The ids of the runs before it.
        carries: The run is told the tool results so far, because one before it expired.
        blocked_by: The run of somebody else that holds the thread and is waited for; `""` where the server
            did not say which.
        expires_at: When the server will let the run expire, in seconds of the injected clock.
        status: The last status that was seen.
        number: The last request number that was issued when this was recorded.
        pending: The create or submit whose outcome is open.
        watched: The request whose stream is followed.
        floor: Observations of requests up to this number were overtaken by the last accepted submission.
        round: The number of the current batch of tool calls; 0 before the first.
        calls: The calls of the current batch, while it is acted on or submitted.
        awaiting: Ids of the calls of the current batch that wait for approval.
        doubtful: Ids of the calls of the current batch that a process which died may have made, and that are
            made again only if somebody approves.
        interruptions: How many processes have died while the current batch was acted on.
        results: The outcomes of all batches, in the order the calls were asked for within each.
        spent: The tokens of the runs before this one.
        ambiguous: A create was sent whose outcome no answer told.
        metadata_echoed: The server was seen to give metadata back, so that a nonce can be missed.
        ending: Why the orchestrator ends the run, or `None`.
        failure: What `Ending.FAILED` is raised as.
        redacted: A journal gave the calls of the current batch back without their arguments.
        digest: What stands for those calls as the server knows them, where they are redacted.
    """

    key: str
    nonce: str
    request: RunRequest
    deadline_at: float
    phase: Phase = Phase.ADMITTED
    thread_id: str | None = None
    run_id: str | None = None
    attempt: int = 1
    earlier: tuple[str, ...] = ()
    carries: bool = False
    blocked_by: str | None = None
    expires_at: float | None = None
    status: str | None = None
    number: int = 0
    pending: int | None = None
    watched: int | None = None
    floor: int = 0
    round: int = 0
    calls: tuple[ToolCall, ...] = ()
    awaiting: frozenset[str] = frozenset()
    doubtful: frozenset[str] = frozenset()
    interruptions: int = 0
    results: tuple[ToolCallResult, ...] = ()
    spent: Usage | None = None
    ambiguous: bool = False
    metadata_echoed: bool = False
    ending: Ending | None = None
    failure: OrchestratorError | None = None
    redacted: bool = False
    digest: str | None = None

    @property
    def mark(self) -> str:
        """What marks the create request of the current run, so that its outcome can be looked up."""
        return self.nonce if self.attempt == 1 else f"{self.nonce}.{self.attempt}"

    def is_current(self, run: Run) -> bool:
        """Whether the current run's create request made that run."""
        return (run.metadata or {}).get(NONCE_KEY) == self.mark

    def is_marked(self, run: Run) -> bool:
        """Whether any create request of this record made that run."""
        return (run.metadata or {}).get(NONCE_KEY, "").partition(".")[0] == self.nonce

    def is_asked_by(self, run: Run) -> bool:
        """Whether a run asks for exactly the calls of the current batch."""
        if self.digest is not None:
            return digest_of(run.required_calls) == self.digest
        return {call.id: call for call in run.required_calls} == {call.id: call for call in self.calls}

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The ids of all the runs so far, oldest first."""
        return self.earlier if self.run_id is None else (*self.earlier, self.run_id)

    @property
    def failed_rounds(self) -> int:
        """How many batches in a row, up to the newest outcome, have only outcomes that are failures."""
        rounds = [list(batch) for _, batch in groupby(self.results, key=attrgetter("round"))]
        failed = (all(result.error is not None for result in batch) for batch in reversed(rounds))
        return sum(1 for _ in takewhile(bool, failed))

    def results_of(self, round_number: int) -> dict[str, ToolCallResult]:
        """The outcomes of one batch, by call id."""
        return {result.call_id: result for result in self.results if result.round == round_number}


def digest_of(calls: Iterable[ToolCall]) -> str:
    """What stands for the calls of a batch, in whatever order, where they themselves may not be kept."""
    words = sorted([call.id, call.function.name, call.function.arguments] for call in calls)
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()
