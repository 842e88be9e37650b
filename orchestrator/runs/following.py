"""A run that exists: watching it, acting on what it asks for, submitting what came of it.

Owns the phases `watching`, `acting` and `submitting`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.client.retry import Verdict, judge
from orchestrator.errors import (
    AmbiguousOutcome,
    BudgetExceeded,
    NotFoundError,
    OrchestratorError,
    RunStalled,
    ToolFailed,
)
from orchestrator.protocol.events import RunStepEvent
from orchestrator.protocol.objects import ACTIVE_STATUSES, ToolOutput
from orchestrator.runs.closing import Closing
from orchestrator.runs.effects import CloseStream, FetchTranscript, Publish, StartTools, SubmitToolOutputs
from orchestrator.runs.inputs import (
    EventsObserved,
    RequestFailed,
    RunObserved,
    StreamEnded,
    Timer,
    ToolFinished,
    ToolNoticed,
    TranscriptFetched,
)
from orchestrator.runs.record import Phase
from orchestrator.runs.result import ToolCallResult

if TYPE_CHECKING:
    from orchestrator.errors import APIError
    from orchestrator.protocol.objects import Run, ToolCall

__all__ = ["Following"]


class Following(Closing):
    """The middle of a life; see `orchestrator.runs.lifecycle.Lifecycle`."""

    def _observe(self, seen: RunObserved) -> None:
        if self._is_current(seen):
            self._follow(seen)

    def _follow(self, seen: RunObserved) -> None:
        """Act on what a current observation shows."""
        self._failures = 0
        self._poll_after_s = seen.poll_after_s
        if seen.run.is_terminal:
            self._weigh(seen)
            return
        self._show(seen)
        self._reckon_expiry(seen)
        limit = self._limit_reached(seen.run)
        if limit is not None:
            # Nobody follows this round, so that what its stream says next is not believed.
            self._gapless = self._gapless and not seen.run.required_calls
            self._give_up(limit)
        elif seen.run.required_calls:
            self._act(seen)
        else:
            self._watch(seen.run)

    def _reckon_expiry(self, seen: RunObserved) -> None:
        """Learn how long the run may last, as a remaining time: no two machines' clocks are compared."""
        run = seen.run
        if seen.expires_in_s is not None:
            self._update(expires_at=self._now + seen.expires_in_s)
        elif self.record.expires_at is None and run.expires_at is not None and run.created_at:
            # Without the server's time, its life counts from the newest moment that the run itself names.
            lasts_s = run.expires_at - max(run.created_at, run.started_at or 0)
            self._update(expires_at=self._now + lasts_s)

    def _limit_reached(self, run: Run) -> RunStalled | BudgetExceeded | None:
        request = self.record.request
        if run.usage is not None:
            self._tokens = max(self._tokens, run.usage.total_tokens)
        if run.required_calls and self.record.round == request.max_tool_rounds:
            return self._run_error(
                BudgetExceeded,
                f"asks for another batch of tool calls after max_tool_rounds={request.max_tool_rounds}: "
                f"it was cancelled",
            )
        if request.on_stall == "cancel" and self._reported_at > self.progressed_at:
            idle = self._now - self.progressed_at
            return self._run_error(
                RunStalled, f"showed no progress for {idle:.0f} s in status {run.status}: it was cancelled"
            )
        return self._tokens_exceeded()

    def _tokens_exceeded(self) -> BudgetExceeded | None:
        """Reckon the tokens from the steps too: servers tell a run's own usage late."""
        most = self.record.request.max_total_tokens
        if most is None:
            return None
        steps = self._snapshots.steps.values()
        in_steps = sum(step.usage.total_tokens for step in steps if step.usage is not None)
        before = 0 if self.record.spent is None else self.record.spent.total_tokens
        total = before + max(self._tokens, in_steps)
        if total <= most:
            return None
        return self._run_error(
            BudgetExceeded, f"took {total} tokens, more than max_total_tokens={most}: it was cancelled"
        )

    def _watch(self, run: Run) -> None:
        self._update(phase=Phase.WATCHING)
        if run.status in ACTIVE_STATUSES:
            self._clear(Timer.UNKNOWN)
        elif Timer.UNKNOWN not in self._timers:
            self._set(Timer.UNKNOWN, self._timing.unknown_status_s)
        if self.record.watched is None:
            self._set(Timer.POLL, self._pause())
        if Timer.STALL not in self._timers:
            self._set(Timer.STALL, self._timing.stall_s)

    def _observe_events(self, seen: EventsObserved) -> None:
        if seen.number not in (self.record.watched, self.record.pending):
            return
        self.progressed_at = self._now
        for event in seen.events:
            self._snapshots.add(event)
        self._effects.append(Publish(events=seen.events))

    def _observe_events_watching(self, seen: EventsObserved) -> None:
        self._observe_events(seen)
        # Steps tell tokens; a delta does not, and most events are deltas.
        is_told = self.record.request.max_total_tokens is not None and any(
            isinstance(event, RunStepEvent) for event in seen.events
        )
        exceeded = self._tokens_exceeded() if is_told else None
        if exceeded is not None:
            self._give_up(exceeded)

    def _end_stream(self, ended: StreamEnded) -> None:
        if ended.number != self.record.watched:
            return
        self._update(watched=None)
        if self.record.phase is Phase.ACTING:
            return
        self._gapless = False
        self._notice(
            "run.gap", detail="the stream was lost before the run ended; polling until the next submission"
        )
        self._retrieve()

    def _fail_acting(self, failed: RequestFailed) -> None:
        if failed.number == self._filling:
            self._fail_fill(failed.error)
        else:
            self._fail_watching(failed)

    def _fail_watching(self, failed: RequestFailed) -> None:
        if self._looked(failed.number):
            self._fail_look(failed.error)

    def _fail_look(self, error: APIError) -> None:
        """A look is repeated for as long as the deadline allows: the run goes on without us."""
        self._failures += 1
        if judge(error, repeatable=True) is Verdict.AGAIN:
            self._set(Timer.POLL, self._capped_backoff(error))
        elif isinstance(error, NotFoundError):
            self._fail_lost(error)
        else:
            self._give_up(error)

    def _check_progress(self) -> None:
        patience = self._timing.stall_s
        left = patience - (self._now - max(self.progressed_at, self._reported_at))
        # A timer may be due a rounding error too early, and one for that error would be due at once again.
        if left <= patience / 1000:
            self._reported_at = self._now
            since = self._now - self.progressed_at
            self._notice(
                "run.stalled", detail=f"no progress for {since:.0f} s in status {self.record.status}"
            )
            self._retrieve()
            left = patience
        self._set(Timer.STALL, left)

    def _act(self, seen: RunObserved) -> None:
        run = seen.run
        calls = tuple({call.id: call for call in run.required_calls}.values())
        foreign = [call.id for call in calls if call.type != "function"]
        self._clear(Timer.POLL, Timer.STALL, Timer.UNKNOWN)
        if foreign:
            self._update(phase=Phase.WATCHING, calls=calls)
            self._give_up(
                OrchestratorError(
                    f"run {run.id} on thread {self.record.thread_id} asks for calls that are not functions: "
                    f"{', '.join(foreign)}; only tools of type 'function' can be answered"
                )
            )
            return
        # The stream is closed when the batch is submitted; what it had still to show then is fetched.
        self._gapless = self._gapless and seen.number == self.record.watched
        self._update(
            phase=Phase.ACTING,
            round=self.record.round + 1,
            calls=calls,
            awaiting=frozenset(),
            doubtful=frozenset(),
            interruptions=0,
            redacted=False,
            digest=None,
        )
        self._start_tools(calls)
        for call in calls:
            self._notice("tool.started", call_id=call.id, name=call.function.name)
        if self.record.request.watch == "stream" and not self._gapless:
            self._fill()

    def _start_tools(self, calls: tuple[ToolCall, ...]) -> None:
        bound = None
        if self.record.expires_at is not None:
            bound = max(0.0, self.record.expires_at - self._now - self._timing.expiry_margin_s)
        self._do(
            StartTools(round=self.record.round, calls=calls, bound_s=bound, doubtful=self.record.doubtful)
        )

    def _fill(self) -> None:
        """Fetch what a lost stream would have shown, now that the server waits: the next one begins here."""
        self._set(Timer.FILL, self._timing.fill_s)
        self._send_fill()

    def _send_fill(self) -> None:
        assert self.record.thread_id is not None
        assert self.record.run_id is not None
        self._filling = self._next()
        self._send(
            FetchTranscript(number=self._filling, thread_id=self.record.thread_id, run_id=self.record.run_id)
        )

    def _take_fill(self, fetched: TranscriptFetched) -> None:
        if fetched.number == self._filling:
            self._show_missed(fetched)
            self._gapless = True
            self._stop_filling()
            self._submit_if_whole()

    def _fail_fill(self, error: APIError) -> None:
        self._failures += 1
        self._requests.pop(self._filling or 0, None)
        if judge(error, repeatable=True) is Verdict.AGAIN:
            self._retry = self._send_fill
            self._set(Timer.RETRY, self._capped_backoff(error))
        else:
            self._cut_filling()

    def _cut_filling(self) -> None:
        """A batch that is whole waits no longer; what is missing is fetched when the run has ended."""
        self._notice("run.gap", detail="what the lost stream would have shown could not be fetched yet")
        self._stop_filling()
        self._submit_if_whole()

    def _finish_tool(self, finished: ToolFinished) -> None:
        call = next((call for call in self.open_calls if call.id == finished.call_id), None)
        if call is None or finished.round != self.record.round:
            return
        self.progressed_at = self._now
        result = ToolCallResult(
            round=finished.round,
            call_id=call.id,
            name=call.function.name,
            arguments=call.function.arguments,
            output=finished.output,
            error=finished.error,
            attempts=finished.attempts,
            duration_s=finished.duration_s,
            run_id=self.record.run_id,
        )
        self._update(results=self._results_with(result), awaiting=self.record.awaiting - {call.id})
        self._notice("tool.finished", call_id=call.id, name=call.function.name, detail=finished.error)
        if finished.fatal is not None:
            self._give_up(self._tool_failed(call, finished.fatal))
        else:
            self._submit_if_whole()

    def _tool_failed(self, call: ToolCall, cause: BaseException) -> ToolFailed:
        """Not with the text of the cause, which may quote arguments: errors are logged."""
        what = f"was given up because tool {call.function.name!r} failed (call {call.id}, on_error='fail')"
        error = self._run_error(ToolFailed, f"{what}: {type(cause).__name__}; see __cause__")
        error.__cause__ = cause
        return error

    def _take_notice(self, noticed: ToolNoticed) -> None:
        call = next((call for call in self.open_calls if call.id == noticed.call_id), None)
        if call is None or noticed.round != self.record.round:
            return
        self.progressed_at = self._now
        if noticed.notice == "tool.approval_asked":
            self._update(awaiting=self.record.awaiting | {call.id})
        elif noticed.notice == "tool.approved":
            self._update(awaiting=self.record.awaiting - {call.id})
        self._notice(
            noticed.notice,
            call_id=call.id,
            name=call.function.name,
            detail=noticed.detail,
            fraction=noticed.fraction,
        )

    def _results_with(self, result: ToolCallResult) -> tuple[ToolCallResult, ...]:
        """All results and this one, in the order the calls were asked for."""
        earlier = (known for known in self.record.results if known.round != result.round)
        known = self.record.results_of(result.round) | {result.call_id: result}
        return (*earlier, *(known[call.id] for call in self.record.calls if call.id in known))

    def _observe_acting(self, seen: RunObserved) -> None:
        if self._is_current(seen) and seen.run.is_terminal:
            self._weigh(seen)

    def _submit_if_whole(self) -> None:
        if self.open_calls or self._filling is not None:
            return
        most = self.record.request.max_failed_tool_rounds
        if most is not None and self.record.failed_rounds >= most:
            self._give_up(
                self._run_error(
                    BudgetExceeded,
                    f"had {most} batches in a row in which every tool call failed, which is "
                    f"max_failed_tool_rounds: it was cancelled",
                )
            )
            return
        self._failures = self._sent = 0
        if self.record.watched is not None:
            self._do(CloseStream(number=self.record.watched))
        self._submit()

    def _submit(self) -> None:
        number = self._next()
        self._sent += 1
        self._settling = False
        self._rejection = None
        self._clear(Timer.POLL)
        self._update(phase=Phase.SUBMITTING, pending=number, watched=None, floor=number)
        self._send(self._submission(number))

    def _submission(self, number: int) -> SubmitToolOutputs:
        assert self.record.thread_id is not None
        assert self.record.run_id is not None
        results = self.record.results_of(self.record.round)
        outputs = (
            ToolOutput(tool_call_id=call.id, output=results[call.id].output) for call in self.record.calls
        )
        return SubmitToolOutputs(
            number=number,
            thread_id=self.record.thread_id,
            run_id=self.record.run_id,
            outputs=tuple(outputs),
            stream=self.record.request.watch == "stream",
        )

    def _observe_submitted(self, seen: RunObserved) -> None:
        if seen.number == self.record.pending:
            self._requests.pop(seen.number, None)
            self._accept(watched=seen.number if seen.event is not None else None)
            self._follow(seen)
        elif self._looked(seen.number):
            self._settle_submit(seen)

    def _settle_submit(self, seen: RunObserved) -> None:
        """The run was retrieved because the submission's outcome is open: it tells what became of it.

        Whole calls are compared, since a next round may use the same ids again. A run that still asks may
        have its submission yet to come: it is looked at twice before it gets another one.
        """
        if not self.record.is_asked_by(seen.run):
            self._accept(watched=None)
            self._follow(seen)
        elif self._rejection is not None:
            self._give_up(self._rejection)
        elif not self._settling:
            self._settling = True
            self._retry = self._retrieve
            self._set(Timer.RETRY, self._timing.retry.settle_s)
        elif self._sent >= self._timing.retry.attempts:
            self._give_up(
                AmbiguousOutcome(
                    f"run {self.record.run_id} on thread {self.record.thread_id} still asks for its outputs "
                    f"after {self._sent} submissions without an answer; it was given up and cancelled: see "
                    f"how the server fares, and start the run again",
                    operation="submit_tool_outputs",
                    thread_id=self.record.thread_id,
                    run_id=self.record.run_id,
                )
            )
        else:
            self._submit()

    def _end_stream_submitting(self, ended: StreamEnded) -> None:
        if ended.number == self.record.pending and self._answered(ended.number, SubmitToolOutputs):
            self._retrieve()

    def _fail_submitting(self, failed: RequestFailed) -> None:
        if self._looked(failed.number):
            self._fail_look(failed.error)
        elif failed.number == self.record.pending and self._answered(failed.number, SubmitToolOutputs):
            self._fail_submit(failed.error)

    def _fail_submit(self, error: APIError) -> None:
        match judge(error, repeatable=False):
            case Verdict.AGAIN:
                if not self._again(self._submit, error, repeatable=False):
                    self._give_up(error)
            case Verdict.FINAL:
                self._rejection = error
                self._retrieve()
            case Verdict.AMBIGUOUS:
                self._retrieve()
