"""A run that does not exist yet, or whose existence is not known: its thread, its create, its reconciliation.

Owns the phase `creating`, and with it the promise that one start makes one run, and the wait for a thread
that somebody else's run holds: the server's word on that counts, whatever our own table says.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from orchestrator.client.retry import NONCE_KEY, Verdict, judge
from orchestrator.errors import AmbiguousOutcome, BadRequestError, NotFoundError, ThreadBusy
from orchestrator.protocol.objects import TERMINAL_STATUSES
from orchestrator.protocol.snapshots import Snapshots
from orchestrator.runs import rerun
from orchestrator.runs.effects import CancelRun, CreateRun, CreateThread, ListRuns, RetrieveRun
from orchestrator.runs.following import Following
from orchestrator.runs.inputs import (
    RequestFailed,
    RunObserved,
    RunsListed,
    StreamEnded,
    ThreadCreated,
    Timer,
)
from orchestrator.runs.record import Phase

if TYPE_CHECKING:
    from orchestrator.errors import APIError
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
        known = self.record.metadata_echoed
        self._update(thread_id=created.thread.id, metadata_echoed=echoed or known)
        self._create_run()

    def _create_run(self) -> None:
        number = self._next()
        self._sent += 1
        self._listings = 0
        self._refusal = None
        self._update(pending=number, blocked_by=None)
        self._send(self._creation(number))

    def _creation(self, number: int) -> CreateRun:
        assert self.record.thread_id is not None
        request = self.record.request
        return CreateRun(
            number=number,
            thread_id=self.record.thread_id,
            assistant_id=request.assistant_id,
            nonce=self.record.mark,
            messages=request.messages if self.record.attempt == 1 else (),
            options=rerun.options(self.record),
            metadata=request.metadata,
            stream=request.watch == "stream",
        )

    def _observe_creating(self, seen: RunObserved) -> None:
        if seen.number == self.record.pending:
            self._requests.pop(seen.number, None)
            self._take_run(seen.run, watched=seen.number if seen.event is not None else None)
            self._go_on(seen)
        elif self._answered(seen.number, RetrieveRun):
            self._weigh_holder(seen)
        elif self._answered(seen.number, CancelRun):
            self._failures = 0
            self._set(Timer.POLL, self._pause())

    def _take_run(self, run: Run, *, watched: int | None) -> None:
        """The create is decided: this is the run."""
        self._failures = 0
        self._clear(Timer.RETRY, Timer.SETTLE)
        self._gapless = self._gapless and watched is not None
        echoed = self.record.metadata_echoed or self.record.is_current(run)
        self._update(
            phase=Phase.WATCHING, run_id=run.id, pending=None, watched=watched, metadata_echoed=echoed
        )

    def _go_on(self, seen: RunObserved) -> None:
        """Follow a run that has just become known, unless somebody wanted it to end meanwhile."""
        if self._detaching or self._leaves_overdue_run:
            self._detach_now()
        elif self.record.ending is not None and not (seen.run.is_terminal and self._is_believed(seen)):
            if not seen.run.is_terminal:
                self._show(seen)
            # Nobody follows a round that it asks for, so that what its stream says next is not believed.
            self._gapless = self._gapless and not seen.run.required_calls
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
        elif isinstance(effect, CreateThread):
            if not self._again(self._repeat(effect), failed.error, repeatable=True):
                self._finish_error(failed.error)
        elif effect is not None and self.record.pending is None:
            self._fail_waiting(failed.error)
        elif effect is not None and not self._look_again(effect, failed.error):
            self._finish_ambiguous()

    def _fail_create(self, error: APIError) -> None:
        verdict = judge(error, repeatable=False)
        if verdict is Verdict.AMBIGUOUS:
            self._reconcile_create()
        elif verdict is Verdict.AGAIN and self._ends_here:
            self._finish_unsent()
        elif verdict is Verdict.AGAIN and self._again(self._create_run, error, repeatable=False):
            self._update(pending=None)
        elif _holder(error) is None:
            self._finish_error(error)
        elif self.record.ambiguous:
            # What holds the thread may be what an earlier create of ours has made.
            self._refusal = error
            self._reconcile_create()
        else:
            self._be_turned_away(error)

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
        if self.record.pending is None:
            self._search_holder(listed)
            return
        found = next((run for run in listed.runs if self.record.is_current(run)), None)
        if found is not None:
            self._take_run(found, watched=None)
            self._go_on(RunObserved(number=listed.number, run=found))
            return
        if any(run.metadata for run in listed.runs):
            self._update(metadata_echoed=True)
        if self._refusal is not None and self.record.metadata_echoed:
            self._be_turned_away(self._refusal)
        elif self._listings < 2:
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
                f"its runs could not settle it; look there for metadata {NONCE_KEY}={record.mark} "
                f"before you start it again",
                operation="create_run",
                thread_id=record.thread_id,
                nonce=record.mark,
            )
        )

    # The thread is held by a run that is not this one: nothing was created.

    def _be_turned_away(self, refusal: APIError) -> None:
        """The server refuses a second run on the thread: do as the user wants it done."""
        holder = _holder(refusal) or ""
        self._refusal = refusal
        self._failures = self._sent = 0
        self._poll_after_s = None
        self._update(pending=None, blocked_by=holder)
        if self._ends_here:
            self._finish_unsent()
        elif self.record.request.on_busy_thread == "reject":
            self._finish_busy("wait for it, cancel it")
        else:
            self._notice("run.blocked", detail=f"the thread is held by run {holder or 'of unknown id'}")
            self._look_at_holder()

    def _look_at_holder(self) -> None:
        assert self.record.thread_id is not None
        if self.record.blocked_by:
            self._send(
                RetrieveRun(
                    number=self._next(), thread_id=self.record.thread_id, run_id=self.record.blocked_by
                )
            )
        else:
            self._list_runs()

    def _search_holder(self, listed: RunsListed) -> None:
        """The server did not say which run it is: the newest that is not over."""
        active = next((run for run in listed.runs if run.status not in TERMINAL_STATUSES), None)
        if active is None:
            self._retry = self._create_run
            self._set(Timer.RETRY, self._pause())
        else:
            self._update(blocked_by=active.id)
            self._weigh_holder(RunObserved(number=listed.number, run=active))

    def _weigh_holder(self, seen: RunObserved) -> None:
        self._poll_after_s = seen.poll_after_s
        holder, request = seen.run, self.record.request
        if self.record.is_current(holder):
            # A create of ours that was given up took effect after all.
            self._update(blocked_by=None)
            self._take_run(holder, watched=None)
            self._go_on(seen)
            return
        # A run that an earlier request of this record has made is nobody else's, whatever the user wants.
        interrupts = request.on_busy_thread == "interrupt" and request.interrupt_foreign
        cancels = interrupts or self.record.is_marked(holder)
        if cancels and not holder.is_terminal and holder.status != "cancelling":
            # Failures are still counted: a server that will not cancel it yet is not asked without a pause.
            self._cancel_run(holder.id)
            return
        self._failures = 0
        if holder.is_terminal:
            self._create_run()
        elif request.on_busy_thread == "interrupt" and not interrupts and holder.status != "cancelling":
            self._finish_busy(
                "it is not this orchestrator's and was not interrupted: pass interrupt_foreign=True"
            )
        else:
            self._set(Timer.POLL, self._pause())

    def _fail_waiting(self, error: APIError) -> None:
        """A look at the run that holds the thread failed, or its cancel."""
        self._failures += 1
        if isinstance(error, NotFoundError):
            self._create_run()
        elif isinstance(error, BadRequestError):
            self._set(Timer.POLL, 0.0 if self._failures == 1 else self._pause())
        elif judge(error, repeatable=True) is Verdict.AGAIN:
            self._set(Timer.POLL, self._capped_backoff(error))
        else:
            self._finish_error(error)

    def _finish_busy(self, remedy: str) -> None:
        thread_id, run_id = self.record.thread_id, self.record.blocked_by or None
        assert thread_id is not None
        take_over = f", or take it over with adopt({thread_id!r}, {run_id!r})" if run_id else ""
        busy = ThreadBusy(
            f"thread {thread_id} is held by run {run_id or 'of unknown id'}: {remedy}{take_over}",
            thread_id=thread_id,
            run_id=run_id,
        )
        busy.__cause__ = self._refusal
        self._finish_error(busy)

    # Another run follows one that failed or expired.

    def _begin_rerun(self) -> None:
        record, ended = self.record, self._verdict
        assert ended is not None
        self._verdict = None
        self._requests.clear()
        self._snapshots = Snapshots()
        self._gapless = record.request.watch == "stream"
        self._failures = self._sent = self._tokens = 0
        self._poll_after_s = None
        self._update(
            phase=Phase.CREATING,
            attempt=record.attempt + 1,
            earlier=record.run_ids,
            carries=record.carries or ended.status == "expired",
            results=(*record.results, *rerun.abandoned(record)),
            spent=rerun.spent(record, ended.usage),
            run_id=None,
            status=None,
            expires_at=None,
            pending=None,
            watched=None,
            calls=(),
            floor=self._number,
        )
        self._begin_creating()


_ACTIVE_RUN = re.compile(r"already has an active run(?: (\S+?))?\.?$|while a run(?: (\S+))? is active")


def _holder(error: APIError) -> str | None:
    """The run that a refusal says is active on the thread, `""` if it names none; else `None`."""
    found = _ACTIVE_RUN.search(error.message) if isinstance(error, BadRequestError) else None
    return None if found is None else found[1] or found[2] or ""
