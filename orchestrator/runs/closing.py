"""How a run is brought to its end: cancel, deadline and detach.

Owns the phase `cancelling`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.client.retry import Verdict, judge
from orchestrator.errors import BadRequestError, CancelUnconfirmed, OrchestratorClosed, RunError
from orchestrator.protocol.objects import ACTIVE_STATUSES
from orchestrator.runs.collecting import Collecting
from orchestrator.runs.effects import CancelRun, Finish, RetrieveRun, Withdraw
from orchestrator.runs.inputs import (
    CancelRequested,
    DetachRequested,
    Input,
    RequestFailed,
    RunObserved,
    Timer,
)
from orchestrator.runs.record import Ending, Phase
from orchestrator.runs.result import RunResult

if TYPE_CHECKING:
    from orchestrator.errors import APIError, OrchestratorError
    from orchestrator.protocol.objects import Run

__all__ = ["Closing"]


class Closing(Collecting):
    """The end of a life; see `orchestrator.runs.lifecycle.Lifecycle`."""

    def _cancel(self, _: Input) -> None:
        self._update(ending=self.record.ending or Ending.CANCELLED)
        self._post_cancel()

    def _cancel_unsent(self, _: CancelRequested) -> None:
        self._update(ending=Ending.CANCELLED)
        if self.record.run_id is None:
            self._finish_unsent()
        else:
            self._post_cancel()

    def _cancel_creating(self, _: CancelRequested) -> None:
        self._update(ending=self.record.ending or Ending.CANCELLED)
        self._leave_creating()

    def _leave_creating(self) -> None:
        """End a run that may not exist: what has left is waited for, because only its outcome tells."""
        if self.record.pending is None:
            self._finish_unsent()
        else:
            self._bound_ending()
            self._do(Withdraw(number=self.record.pending))

    def _give_up(self, error: OrchestratorError) -> None:
        """Go no further with a run that exists: cancel it, then fail."""
        self._update(ending=Ending.FAILED, failure=error)
        self._post_cancel()

    def _post_cancel(self) -> None:
        self._clear(Timer.RETRY, Timer.STALL, Timer.UNKNOWN)
        self._failures = 0
        self._poll_after_s = None
        if self.record.pending is not None:
            self._do(Withdraw(number=self.record.pending))
        self._enter(Phase.CANCELLING)
        self._bound_ending()
        self._send_cancel()

    def _send_cancel(self) -> None:
        self._clear(Timer.RETRY)
        self._cancel_run(self.record.run_id)
        self._set(Timer.POLL, self._pause())

    def _observe_cancelling(self, seen: RunObserved) -> None:
        if seen.number == self.record.pending:
            self._end_round(watched=seen.number if seen.event is not None else None)
        asked = self._requests.pop(seen.number, None)
        if asked is None and seen.number != self.record.watched:
            return
        if seen.run.is_terminal:
            self._weigh(seen)
            return
        self._show(seen)
        if seen.run.required_calls:
            # Nobody follows this round, so that what its stream says next is not believed.
            self._gapless = False
        if isinstance(asked, RetrieveRun):
            self._converge(seen.run)

    def _converge(self, run: Run) -> None:
        """A look at a run that ought to be cancelling: ask again if it is not."""
        under_way = any(isinstance(effect, CancelRun) for effect in self._requests.values())
        if run.status == "cancelling" or run.status not in ACTIVE_STATUSES or under_way:
            self._set(Timer.POLL, self._pause())
        else:
            self._send_cancel()

    def _fail_cancelling(self, failed: RequestFailed) -> None:
        effect = self._requests.pop(failed.number, None)
        error = failed.error
        if isinstance(effect, CancelRun) and isinstance(error, BadRequestError):
            self._lose_race()
        elif isinstance(effect, CancelRun | RetrieveRun):
            self._fail_converging(effect, error)

    def _lose_race(self) -> None:
        """The server will not cancel the run as it stands: look at once the first time, then as usual."""
        self._failures += 1
        self._set(Timer.POLL, 0.0 if self._failures == 1 else self._pause())

    def _fail_converging(self, effect: CancelRun | RetrieveRun, error: APIError) -> None:
        self._failures += 1
        if judge(error, repeatable=True) is Verdict.AGAIN:
            pause = self._capped_backoff(error)
            if isinstance(effect, CancelRun):
                self._retry = self._send_cancel
                self._set(Timer.RETRY, pause)
            else:
                self._set(Timer.POLL, pause)
        else:
            self._fail_lost(error)

    def _end_round(self, *, watched: int | None) -> None:
        self._gapless = self._gapless and watched is not None
        self._update(pending=None, calls=(), watched=watched)

    def _accept(self, *, watched: int | None) -> None:
        """The round is over; whatever was asked before this moment shows the past."""
        self._failures = 0
        self._clear(Timer.RETRY, Timer.POLL)
        self._end_round(watched=watched)
        self._update(phase=Phase.WATCHING, floor=self._number)

    def _detach(self, _: Input) -> None:
        self._detaching = True
        if self.record.phase is Phase.CREATING and self.record.pending is not None:
            self._leave_creating()
        else:
            self._detach_now()

    def _detach_now(self) -> None:
        record = self.record
        if Timer.RERUN in self._timers:
            self._finish_without_rerun()
        elif self._verdict is not None:
            self._cut_collecting("the orchestrator was closed")
        elif record.ending is Ending.DEADLINE:
            left = "it was left running, as on_deadline='detach' asks"
            closed = "the orchestrator was closed before its end was seen"
            self._finish_error(self._overdue(left if self._leaves_overdue_run else closed))
        elif record.failure is not None:
            self._finish_error(record.failure)
        elif record.run_id is None:
            where = f" on thread {record.thread_id}" if record.thread_id else ""
            self._finish_error(
                OrchestratorClosed(
                    f"the orchestrator was closed before the run was created (key {record.key!r}{where}): "
                    f"start it again"
                )
            )
        else:
            self._finish_error(
                OrchestratorClosed(
                    f"run {record.run_id} on thread {record.thread_id} was left to the server, by detach(), "
                    f"drain() or close(); take it up again with adopt(thread_id, run_id)"
                )
            )

    def _pass_deadline(self) -> None:
        match self.record.phase:
            case Phase.CANCELLING:
                return
            case Phase.COLLECTING if Timer.RERUN in self._timers:
                self._finish_without_rerun()
            case Phase.COLLECTING:
                self._bound_ending()
            case phase:
                self._update(ending=self.record.ending or Ending.DEADLINE)
                self._end_overdue(phase)

    def _end_overdue(self, phase: Phase) -> None:
        if phase is Phase.ADMITTED:
            self._finish_error(self._overdue("it was still waiting for admission and nothing was sent"))
        elif phase is Phase.CREATING:
            self._leave_creating()
        elif self._leaves_overdue_run:
            self._detach(DetachRequested())
        else:
            self._post_cancel()

    @property
    def _leaves_overdue_run(self) -> bool:
        return self.record.ending is Ending.DEADLINE and self.record.request.on_deadline == "detach"

    def _fail_unconfirmed(self) -> None:
        """The time that a run is given to end is over."""
        if self._verdict is not None:
            self._cut_collecting("there was no time left")
        elif self.record.failure is not None:
            self._finish_error(self.record.failure)
        elif self.record.phase is Phase.COLLECTING:
            self._finish_error(self._overdue("it had ended, but could not be read again"))
        else:
            self._finish_error(self._unconfirmed())

    def _finish_unsent(self) -> None:
        """End a run that was never created."""
        record = self.record
        if record.ending is Ending.DEADLINE:
            why = f", because run {record.blocked_by} held its thread" if record.blocked_by else ""
            self._finish_error(self._overdue(f"it had not been created{why}"))
        elif record.ending is Ending.CANCELLED:
            result = RunResult(
                status="cancelled",
                thread_id=record.thread_id,
                run_id=None,
                tool_calls=record.results,
                usage=record.spent,
            )
            self._finish(Finish(result=result))
        else:
            self._detach_now()

    def _unconfirmed(self) -> RunError:
        if self.record.ending is Ending.DEADLINE:
            return self._overdue(f"cancel was not confirmed within {self._timing.cancel_timeout_s:g} s")
        return self._run_error(
            CancelUnconfirmed,
            f"was cancelled and did not end within {self._timing.cancel_timeout_s:g} s; its last status was "
            f"{self.record.status}: look at it again before you use its thread",
        )
