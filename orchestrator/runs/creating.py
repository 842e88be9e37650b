"""A run that does not exist yet, or whose existence is not known: its thread, its create, its reconciliation.

Owns the phase `creating`, and with it the promise that one start makes one run.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from orchestrator.client.retry import NONCE_KEY, Verdict, judge
from orchestrator.errors import AmbiguousOutcome, APIStatusError, BadRequestError, ThreadBusy
from orchestrator.runs.effects import CreateRun, CreateThread, ListRuns
from orchestrator.runs.following import Following
from orchestrator.runs.inputs import (
    RequestFailed,
    RunObserved,
    RunsListed,
    StreamEnded,
    ThreadCreated,
    Timer,
)
from orchestrator.runs.record import Phase, RunRecord

if TYPE_CHECKING:
    from orchestrator.errors import APIError, OrchestratorError
    from orchestrator.protocol.objects import Run

__all__ = ["Creating"]


class Creating(Following):
    """The beginning of a life; see `orchestrator.runs.lifecycle.Lifecycle`."""

    def _begin_creating(self) -> None:
        if self.record.thread_id is None:
            self._send(CreateThread(number=self._next(), nonce=self.record.nonce))
        else:
            self._create_run()

    def _take_thread(self, created: ThreadCreated) -> None:
        if not self._answered(created.number, CreateThread):
            return
        self._failures = 0
        echoed = (created.thread.metadata or {}).get(NONCE_KEY) == self.record.nonce
        self._update(thread_id=created.thread.id, metadata_echoed=echoed)
        self._create_run()

    def _create_run(self) -> None:
        number = self._next()
        self._sent += 1
        self._listings = 0
        self._update(pending=number)
        self._send(self._creation(number))

    def _creation(self, number: int) -> CreateRun:
        assert self.record.thread_id is not None
        request = self.record.request
        return CreateRun(
            number=number,
            thread_id=self.record.thread_id,
            assistant_id=request.assistant_id,
            nonce=self.record.nonce,
            messages=request.messages,
            options=request.options,
            metadata=request.metadata,
            stream=request.watch == "stream",
        )

    def _observe_created(self, seen: RunObserved) -> None:
        if seen.number == self.record.pending:
            self._requests.pop(seen.number, None)
            self._take_run(seen.run, watched=seen.number if seen.event is not None else None)
            self._go_on(seen)

    def _take_run(self, run: Run, *, watched: int | None) -> None:
        """The create is decided: this is the run."""
        self._failures = 0
        self._clear(Timer.RETRY, Timer.SETTLE)
        self._gapless = self._gapless and watched is not None
        self._update(phase=Phase.WATCHING, run_id=run.id, pending=None, watched=watched)

    def _go_on(self, seen: RunObserved) -> None:
        """Follow a run that has just become known, unless somebody wanted it to end meanwhile."""
        if self._detaching or self._leaves_overdue_run:
            self._detach_now()
        elif self.record.ending is not None and not (seen.run.is_terminal and self._is_believed(seen)):
            if not seen.run.is_terminal:
                self._show(seen)
            self._post_cancel()
        else:
            self._follow(seen)

    def _end_stream_creating(self, ended: StreamEnded) -> None:
        if ended.number == self.record.pending and self._answered(ended.number, CreateRun):
            self._reconcile_create()

    def _fail_creating(self, failed: RequestFailed) -> None:
        effect = self._requests.pop(failed.number, None)
        if isinstance(effect, CreateRun):
            self._fail_create(failed.error)
        elif effect is None or self._again(self._repeat(effect), failed.error, repeatable=True):
            return
        elif isinstance(effect, CreateThread):
            self._finish_error(failed.error)
        else:
            self._finish_ambiguous()

    def _fail_create(self, error: APIError) -> None:
        verdict = judge(error, repeatable=False)
        if verdict is Verdict.AMBIGUOUS or (self.record.ambiguous and _busy(error)):
            self._reconcile_create()
        elif verdict is Verdict.AGAIN and self._ends_here:
            self._finish_unsent()
        elif verdict is Verdict.AGAIN and self._again(self._create_run, error, repeatable=False):
            self._update(pending=None)
        else:
            self._finish_error(_explained(error, self.record))

    @property
    def _ends_here(self) -> bool:
        """Whether nobody wants the run any more, should it turn out not to exist."""
        return self.record.ending is not None or self._detaching

    def _reconcile_create(self) -> None:
        self._failures = 0
        self._listings = 0
        self._update(ambiguous=True)
        self._list_runs()

    def _search_nonce(self, listed: RunsListed) -> None:
        if not self._answered(listed.number, ListRuns):
            return
        self._failures = 0
        self._listings += 1
        found = next((run for run in listed.runs if self._is_ours(run)), None)
        if found is not None:
            self._take_run(found, watched=None)
            self._go_on(RunObserved(number=listed.number, run=found))
            return
        if any(run.metadata for run in listed.runs):
            self._update(metadata_echoed=True)
        if self._listings < 2:
            self._set(Timer.SETTLE, self._timing.retry.settle_s)
        else:
            self._settle_create()

    def _settle_create(self) -> None:
        """Two looks did not find the run: where metadata comes back, that means that there is none."""
        if not self.record.metadata_echoed:
            self._finish_ambiguous()
        elif self._ends_here:
            self._finish_unsent()
        elif self._sent >= self._timing.retry.attempts:
            self._finish_ambiguous()
        else:
            self._create_run()

    def _finish_ambiguous(self) -> None:
        record = self.record
        self._finish_error(
            AmbiguousOutcome(
                f"whether the run was created on thread {record.thread_id} is not known: no answer came, and "
                f"its runs could not settle it; look there for metadata {NONCE_KEY}={record.nonce} "
                f"before you start it again",
                operation="create_run",
                thread_id=record.thread_id,
                nonce=record.nonce,
            )
        )


_ACTIVE_RUN = re.compile(r"already has an active run (\S+?)\.?$|while a run (\S+) is active")


def _busy(error: APIError) -> bool:
    return isinstance(error, BadRequestError) and _ACTIVE_RUN.search(error.message) is not None


def _explained(error: APIError, record: RunRecord) -> OrchestratorError:
    """Turn the server's refusal of a second run into `ThreadBusy`; leave every other error as it is."""
    found = _ACTIVE_RUN.search(error.message) if isinstance(error, APIStatusError) else None
    if found is None or record.thread_id is None:
        return error
    run_id = found[1] or found[2]
    busy = ThreadBusy(
        f"thread {record.thread_id} is held by run {run_id}: wait for it, cancel it, or "
        f"take it over with adopt({record.thread_id!r}, {run_id!r})",
        thread_id=record.thread_id,
        run_id=run_id,
    )
    busy.__cause__ = error
    return busy
