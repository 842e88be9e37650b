"""A run that exists: watching it, acting on what it asks for, submitting what came of it.

Owns the phases `watching`, `acting` and `submitting`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.client.retry import Verdict, judge
from orchestrator.errors import AmbiguousOutcome, NotFoundError, OrchestratorError
from orchestrator.protocol.objects import ACTIVE_STATUSES, ToolOutput
from orchestrator.runs.closing import Closing
from orchestrator.runs.effects import CloseStream, Publish, StartTools, SubmitToolOutputs
from orchestrator.runs.inputs import (
    EventObserved,
    RequestFailed,
    RunObserved,
    StreamEnded,
    Timer,
    ToolFinished,
)
from orchestrator.runs.record import Phase
from orchestrator.runs.result import ToolCallResult

if TYPE_CHECKING:
    from orchestrator.errors import APIError
    from orchestrator.protocol.objects import Run

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
        if seen.run.required_calls:
            self._act(seen)
        else:
            self._watch(seen.run)

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

    def _observe_event(self, seen: EventObserved) -> None:
        current = seen.number in (self.record.watched, self.record.pending)
        if current:
            self.progressed_at = self._now
            self._snapshots.add(seen.event)
            self._effects.append(Publish(event=seen.event))

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
        idle = self._now - self.progressed_at
        if idle >= self._timing.stall_s:
            self.progressed_at = self._now
            self._notice("run.stalled", detail=f"no progress for {idle:.0f} s in status {self.record.status}")
            self._retrieve()
            idle = 0.0
        self._set(Timer.STALL, self._timing.stall_s - idle)

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
        self._update(phase=Phase.ACTING, round=self.record.round + 1, calls=calls)
        bound = None
        if seen.expires_in_s is not None:
            bound = max(0.0, seen.expires_in_s - self._timing.expiry_margin_s)
        self._do(StartTools(round=self.record.round, calls=calls, bound_s=bound))
        for call in calls:
            self._notice("tool.started", call_id=call.id, name=call.function.name)

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
            duration_s=finished.duration_s,
        )
        self._update(results=self._results_with(result))
        self._notice("tool.finished", call_id=call.id, name=call.function.name, detail=finished.error)
        self._submit_if_whole()

    def _results_with(self, result: ToolCallResult) -> tuple[ToolCallResult, ...]:
        """All results and this one, in the order the calls were asked for."""
        earlier = (known for known in self.record.results if known.round != result.round)
        known = self.record.results_of(result.round) | {result.call_id: result}
        return (*earlier, *(known[call.id] for call in self.record.calls if call.id in known))

    def _observe_acting(self, seen: RunObserved) -> None:
        if self._is_current(seen) and seen.run.is_terminal:
            self._weigh(seen)

    def _submit_if_whole(self) -> None:
        if self.open_calls:
            return
        self._failures = self._sent = 0
        if self.record.watched is not None:
            self._do(CloseStream(number=self.record.watched))
        self._submit()

    def _submit(self) -> None:
        number = self._next()
        self._sent += 1
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

        Whole calls are compared, since a next round may use the same ids again.
        """
        asked = {call.id: call for call in seen.run.required_calls}
        if asked != {call.id: call for call in self.record.calls}:
            self._accept(watched=None)
            self._follow(seen)
        elif self._rejection is not None:
            self._give_up(self._rejection)
        elif self._sent >= self._timing.retry.attempts:
            self._give_up(
                AmbiguousOutcome(
                    f"run {self.record.run_id} on thread {self.record.thread_id} still asks for its outputs "
                    f"after {self._sent} submissions without an answer; it was given up and cancelled: see "
                    f"how the server fares, and start the run again",
                    operation="submit_tool_outputs",
                    thread_id=self.record.thread_id,
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
