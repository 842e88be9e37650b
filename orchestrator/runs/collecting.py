"""The verdict of a run, and what becomes of it.

Owns the phase `collecting`, the outcome, and the words of its errors. Whether another run follows is
`orchestrator.runs.rerun`'s to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from orchestrator.errors import DeadlineExceeded, NotFoundError, RunError, RunLost
from orchestrator.protocol.events import MessageEvent, RunStepEvent
from orchestrator.protocol.objects import LastError, Message, RunStep
from orchestrator.runs import rerun
from orchestrator.runs.effects import CancelRun, CloseStream, FetchTranscript, Finish, ListRuns, Publish
from orchestrator.runs.inputs import (
    CancelRequested,
    RequestFailed,
    RunObserved,
    RunsListed,
    Timer,
    TranscriptFetched,
)
from orchestrator.runs.machine import Machine, run_event
from orchestrator.runs.record import Ending, Phase
from orchestrator.runs.result import RunResult

if TYPE_CHECKING:
    from orchestrator.errors import APIError, OrchestratorError
    from orchestrator.protocol.objects import Run

__all__ = ["Collecting"]

_E = TypeVar("_E", bound=RunError)


class Collecting(Machine):
    """The last phase of a life; see `orchestrator.runs.lifecycle.Lifecycle`."""

    def _weigh(self, seen: RunObserved) -> None:
        """Take a verdict, or check it."""
        if self._is_believed(seen):
            self._conclude(seen)
        else:
            self._retrieve()

    def _is_believed(self, seen: RunObserved) -> bool:
        """Whether a terminal run is a verdict.

        Servers are known to send a spurious `run.completed` after `requires_action`: a stream is believed
        when all of it was seen and no call of it is open.
        """
        return seen.event is None or (self._gapless and not self.record.calls)

    def _conclude(self, seen: RunObserved) -> None:
        """Take a verdict; only one that a gapless stream shows needs no look at the transcript."""
        self._clear(Timer.POLL, Timer.STALL, Timer.UNKNOWN, Timer.RETRY)
        self._failures = 0
        self._requests.clear()
        self._verdict = seen.run
        self._gapless = self._gapless and seen.number == self.record.watched
        self._update(status=seen.run.status, pending=None)
        if self.record.ambiguous:
            self._enter(Phase.COLLECTING)
            self._list_runs()
        else:
            self._collect(seen.run)

    def _collect(self, run: Run) -> None:
        """Fetch what no stream showed, if anybody will see it."""
        if self._gapless or self._is_failure(run):
            self._finish_verdict(run)
            return
        self._enter(Phase.COLLECTING)
        assert self.record.thread_id is not None
        self._send(FetchTranscript(number=self._next(), thread_id=self.record.thread_id, run_id=run.id))

    def _is_failure(self, run: Run) -> bool:
        """Whether we ended this run, and it did not complete before."""
        return self.record.ending in (Ending.DEADLINE, Ending.FAILED) and run.status != "completed"

    def _cancel_strays(self, listed: RunsListed) -> None:
        """The last look at the thread after an ambiguous create: no second run of ours may go on."""
        if self._verdict is None or not self._answered(listed.number, ListRuns):
            return
        for run in listed.runs:
            if self.record.is_marked(run) and run.id != self._verdict.id and not run.is_terminal:
                self._notice("run.duplicate", detail=f"run {run.id} came of the same request: cancelling it")
                self._cancel_run(run.id)
        self._collect_after_strays(self._verdict)

    def _collect_after_strays(self, verdict: Run) -> None:
        if not self._requests:
            self._collect(verdict)

    def _observe_collecting(self, seen: RunObserved) -> None:
        if self._verdict is not None:
            if self._answered(seen.number, CancelRun):
                self._collect_after_strays(self._verdict)
        elif self._is_current(seen):
            if seen.run.is_terminal:
                self._conclude(seen)
            else:
                self._set(Timer.POLL, self._pause())

    def _take_transcript(self, fetched: TranscriptFetched) -> None:
        if self._verdict is not None and self._answered(fetched.number, FetchTranscript):
            self._show_missed(fetched)
            self._finish_verdict(self._verdict)

    def _show_missed(self, fetched: TranscriptFetched) -> None:
        """Publish what was not shown as it is now, in the order in which a stream would have ended it."""
        known = self._snapshots
        written = {message.id: message for message in fetched.messages}
        for step in fetched.steps:
            message = written.pop(_message_id(step), None)
            if message is not None:
                self._show_message(message)
            if known.steps.get(step.id) != step:
                name = f"thread.run.step.{step.status}"
                event = RunStepEvent(event=name, data=step, run_id=self.record.run_id)
                self._effects.append(Publish(events=(event,)))
        for message in written.values():
            self._show_message(message)
        # In the server's order, and nothing but what it has: a stream shows what a server that is killed at
        # that moment never stored, and may do anew.
        known.begin_with(
            {message.id: message for message in fetched.messages}, {step.id: step for step in fetched.steps}
        )

    def _show_message(self, message: Message) -> None:
        if self._snapshots.messages.get(message.id) != message:
            name = f"thread.message.{message.status or 'completed'}"
            event = MessageEvent(event=name, data=message, run_id=self.record.run_id)
            self._effects.append(Publish(events=(event,)))

    def _fail_collecting(self, failed: RequestFailed) -> None:
        effect = self._requests.pop(failed.number, None)
        if effect is None:
            return
        if self._verdict is not None and isinstance(effect, CancelRun):
            self._notice("run.duplicate", detail=f"run {effect.run_id} may go on: {failed.error}")
            self._collect_after_strays(self._verdict)
        elif isinstance(effect, FetchTranscript):
            self._fail_transcript(effect, failed.error)
        elif self._verdict is None:
            if not self._look_again(effect, failed.error):
                self._fail_lost(failed.error)
        elif not self._again(self._repeat(effect), failed.error, repeatable=True):
            self._cut_search(self._verdict, failed.error)

    def _fail_transcript(self, effect: FetchTranscript, error: APIError) -> None:
        """A completed run without its text is of little use: ask for as long as an end is waited for."""
        if self._look_again(effect, error):
            self._bound_ending()
        else:
            self._cut_collecting(str(error))

    def _cut_search(self, verdict: Run, error: APIError) -> None:
        self._failures = 0
        self._notice("run.duplicate", detail=f"whether the request made another run is not known: {error}")
        self._collect(verdict)

    def _fail_lost(self, error: APIError) -> None:
        """The server will not show the run any more, so that its end cannot be waited for."""
        if self.record.failure is not None:
            self._finish_error(self.record.failure)
        elif self.record.ending is Ending.DEADLINE:
            overdue = self._overdue(f"its end could not be seen: {error}")
            overdue.__cause__ = error
            self._finish_error(overdue)
        elif isinstance(error, NotFoundError):
            self._finish_error(self._lost("the server no longer knows it"))
        else:
            self._finish_error(error)

    def _cut_collecting(self, why: str) -> None:
        """Hand out the verdict without what could not be fetched."""
        assert self._verdict is not None
        self._notice("run.gap", detail=f"the run's messages could not be fetched: {why}")
        self._finish_verdict(self._verdict)

    def _finish_verdict(self, run: Run) -> None:
        self._effects.append(Publish(events=(run_event(run),)))
        if self._is_failure(run):
            became = self._overdue(f"it was cancelled and ended as {run.status}")
            self._finish_error(self.record.failure or became)
            return
        pause = rerun.pause_s(self.record, run, now=self._now, jitter=self._jitter())
        if pause is None or self._detaching:
            self._finish_result(run)
        else:
            self._await_rerun(run, pause)

    def _await_rerun(self, run: Run, pause: float) -> None:
        self._clear(Timer.CANCEL, Timer.RETRY)
        self._enter(Phase.COLLECTING)
        if self.record.watched is not None:
            self._do(CloseStream(number=self.record.watched))
            self._update(watched=None)
        reason = run.last_error.code if run.last_error is not None else "its time was over"
        self._notice(
            "run.rerun",
            detail=f"it {run.status} ({reason}): run {self.record.attempt + 1} of at most "
            f"{self.record.request.rerun.attempts} follows in {pause:.1f} s",
        )
        self._set(Timer.RERUN, pause)

    def _cancel_collecting(self, _: CancelRequested) -> None:
        """The run is over; what can still be prevented is that another follows."""
        self._update(ending=self.record.ending or Ending.CANCELLED)
        self._finish_without_rerun()

    def _finish_without_rerun(self) -> None:
        if Timer.RERUN in self._timers:
            assert self._verdict is not None
            self._finish_result(self._verdict)

    def _finish_result(self, run: Run) -> None:
        self._finish(
            Finish(
                result=RunResult(
                    status=run.status,
                    thread_id=self.record.thread_id,
                    run_id=run.id,
                    messages=tuple(self._snapshots.messages.values()),
                    steps=tuple(self._snapshots.steps.values()),
                    tool_calls=self.record.results,
                    usage=rerun.spent(self.record, run.usage),
                    error=run.last_error or _incomplete(run),
                )
            )
        )

    def _finish_error(self, error: OrchestratorError) -> None:
        if isinstance(error, RunError):
            error.status = self.record.status  # what became of the run since the error was made
        self._finish(Finish(error=error))

    def _overdue(self, what_became: str) -> DeadlineExceeded:
        return self._run_error(
            DeadlineExceeded, f"exceeded its deadline of {self.record.request.deadline_s:g} s: {what_became}"
        )

    def _lost(self, why: str) -> RunLost:
        return self._run_error(RunLost, f"is lost: {why}")

    def _run_error(self, kind: type[_E], what: str) -> _E:
        record = self.record
        who = f"run {record.run_id} on thread {record.thread_id}" if record.run_id else f"run {record.key!r}"
        if record.earlier:
            who += f" (after {', '.join(record.earlier)})"
        return kind(f"{who} {what}", thread_id=record.thread_id, run_id=record.run_id, status=record.status)


def _message_id(step: RunStep) -> str:
    """The id of the message that a step wrote, if it wrote one."""
    creation = step.step_details.message_creation if step.step_details is not None else None
    return str((creation or {}).get("message_id", ""))


def _incomplete(run: Run) -> LastError | None:
    if run.incomplete_details is None or run.incomplete_details.reason is None:
        return None
    reason = run.incomplete_details.reason
    return LastError(code=reason, message=f"the run is incomplete: it reached {reason}")
