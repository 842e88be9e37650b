"""The lifecycle's bookkeeping: its record, its effects, its timers and the requests under way.

Owns the mechanics that every phase needs and no rule of the protocol. Knows nothing of what the inputs mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from orchestrator.client.retry import RetryPolicy, Verdict, delay_s, judge
from orchestrator.protocol.events import RunEvent
from orchestrator.protocol.snapshots import Snapshots
from orchestrator.runs.effects import (
    CancelRun,
    ClearTimer,
    Effect,
    Finish,
    ListRuns,
    Publish,
    Record,
    RequestEffect,
    RetrieveRun,
    SetTimer,
    StopTools,
)
from orchestrator.runs.inputs import Input, RunObserved, Timer
from orchestrator.runs.record import Phase, RunRecord
from orchestrator.runs.result import Notice

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.errors import APIError
    from orchestrator.protocol.objects import Run, ToolCall

__all__ = ["Machine", "Timing", "WaitsFor", "run_event"]


_ANSWERS: Final = {
    Phase.CREATING: "the created run",
    Phase.ACTING: "what a lost stream would have shown",
    Phase.SUBMITTING: "the answer to its tool outputs",
    Phase.CANCELLING: "the end of the cancelled run",
    Phase.COLLECTING: "its messages and steps",
}


class WaitsFor(StrEnum):
    """What keeps a run from going on, in one word."""

    ADMISSION = "admission"
    """Its turn among the runs of its orchestrator."""
    PROCESS = "process"
    """The process that conducts it."""
    THREAD = "thread"
    """The end of another run on its thread."""
    LIMITER = "limiter"
    """Its turn among the requests to its server."""
    TOOL = "tool"
    """Its tools."""
    APPROVAL = "approval"
    """Somebody's approval: nothing else of its batch is under way."""
    SERVER = "server"
    """The server's answer, or the model's work there."""
    BACKOFF = "backoff"
    """A pause after a failure."""
    NOTHING = "nothing"
    """It is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How patient a run is; every duration in seconds.

    Attributes:
        retry: Attempts and backoff of single requests, and the pause that settles an ambiguous create or
            submission.
        stall_s: Without progress for this long, a notice is published and the run is retrieved; what else is
            done is `RunRequest.on_stall`'s.
        cancel_timeout_s: From the first cancel request to `CancelUnconfirmed`. Also the most that a run
            takes to end once its deadline has passed, whatever happens to its actors meanwhile, and the time
            for which messages are asked for again that a server fails to show.
        unknown_status_s: How long a status that nobody knows is watched.
        poll_min_s: The first pause between two looks, when the server gives no hint.
        poll_max_s: The longest pause without a hint; the pause grows by a twentieth of the run's age. A hint
            is obeyed from a tenth of `poll_min_s` up to `stall_s`.
        expiry_margin_s: Kept back from the run's remaining life for the submission itself: a tool that has
            not answered by then is answered for, with an error, so that the batch goes out whole.
        fill_s: How long a submission waits for what a lost stream would have shown, so that the events that
            follow come after it.
    """

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    stall_s: float = 60.0
    cancel_timeout_s: float = 60.0
    unknown_status_s: float = 120.0
    poll_min_s: float = 0.5
    poll_max_s: float = 5.0
    expiry_margin_s: float = 5.0
    fill_s: float = 5.0


class Machine:
    """What every phase of a lifecycle stands on; see `orchestrator.runs.lifecycle.Lifecycle`."""

    def __init__(
        self,
        record: RunRecord,
        *,
        timing: Timing,
        jitter: Callable[[], float],
        unix_time: Callable[[], float],
    ) -> None:
        self.record = record
        self._timing = timing
        self._jitter = jitter
        self._unix_time = unix_time
        self._now = 0.0
        self._effects: list[Effect] = []
        self._unrecorded = False
        self._resumed = False
        self._number = record.number
        self._timers: dict[Timer, int] = {}
        self._serial = 0
        self._requests: dict[int, RequestEffect] = {}
        self._retry: Callable[[], None] | None = None
        self._failures = 0
        self._listings = 0
        self._sent = 0
        self._settling = False
        self._rejection: APIError | None = None
        self._refusal: APIError | None = None
        self._detaching = False
        self._poll_after_s: float | None = None
        self._verdict: Run | None = None
        self._snapshots = Snapshots()
        self._gapless = record.request.watch == "stream" and record.run_id is None
        self._filling: int | None = None
        self._reported_at = float("-inf")
        self._tokens = 0
        self.began_at = 0.0
        self.progressed_at = 0.0

    @property
    def phase(self) -> Phase:
        """Where the run stands."""
        return self.record.phase

    @property
    def open_calls(self) -> tuple[ToolCall, ...]:
        """The calls of the current batch that have no outcome yet."""
        if self.record.phase is not Phase.ACTING:
            return ()
        done = self.record.results_of(self.record.round)
        return tuple(call for call in self.record.calls if call.id not in done)

    @property
    def attempts(self) -> int:
        """How often the request that the run waits for was sent, the one under way included."""
        if self.record.phase in (Phase.ACTING, Phase.FINISHED):
            return 0
        return self._failures + bool(self._requests)

    @property
    def waiting(self) -> tuple[WaitsFor, str]:
        """What the run waits for, and that in a few words for people."""
        if self.record.phase is Phase.FINISHED:
            return WaitsFor.NOTHING, "it is over"
        if self.record.phase is Phase.ADMITTED:
            return WaitsFor.ADMISSION, "a place among the runs at work"
        pauses = Timer.RETRY in self._timers or (Timer.POLL in self._timers and not self._requests)
        if self._failures and pauses:
            return WaitsFor.BACKOFF, f"the next attempt, after {self._failures} that failed"
        if Timer.SETTLE in self._timers:
            return WaitsFor.BACKOFF, "a second look for the created run"
        if Timer.RERUN in self._timers:
            return WaitsFor.BACKOFF, "the run that follows the one that failed or expired"
        if self.record.blocked_by is not None:
            return (
                WaitsFor.THREAD,
                f"thread {self.record.thread_id}, which run {self.record.blocked_by or 'of unknown id'} has",
            )
        if self.open_calls:
            return self._waiting_for_calls()
        return WaitsFor.SERVER, _ANSWERS.get(self.record.phase, "the run's next step")

    def _waiting_for_calls(self) -> tuple[WaitsFor, str]:
        unasked = [call for call in self.open_calls if call.id not in self.record.awaiting]
        if unasked:
            return WaitsFor.TOOL, ", ".join(call.function.name for call in unasked)
        asked = ", ".join(f"{call.function.name} ({call.id})" for call in self.open_calls)
        return WaitsFor.APPROVAL, f"somebody's approval of {asked}"

    def _update(self, **changes: Any) -> None:
        """Change the record; what changes nothing is not worth a `Record`."""
        if any(getattr(self.record, name) != value for name, value in changes.items()):
            self.record = replace(self.record, number=self._number, **changes)
            self._unrecorded = True

    def _enter(self, phase: Phase) -> None:
        """Go to a phase in which no tool runs; the record goes first, lest a successor start them again."""
        acting = self.record.phase is Phase.ACTING
        self._update(phase=phase)
        if acting:
            self._do(StopTools())
            self._stop_filling()

    def _stop_filling(self) -> None:
        """Wait no longer for what a lost stream would have shown."""
        self._requests.pop(self._filling or 0, None)
        self._filling = None
        self._clear(Timer.FILL, Timer.RETRY)

    def _flush(self) -> None:
        if self._unrecorded:
            self._unrecorded = False
            self._effects.append(Record(record=self.record))

    def _do(self, effect: Effect) -> None:
        self._flush()
        self._effects.append(effect)

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _send(self, effect: RequestEffect) -> None:
        self._requests[effect.number] = effect
        self._do(effect)

    def _set(self, timer: Timer, delay: float) -> None:
        self._serial += 1
        self._timers[timer] = self._serial
        self._effects.append(SetTimer(timer=timer, serial=self._serial, delay_s=max(0.0, delay)))

    def _clear(self, *timers: Timer) -> None:
        for timer in timers:
            if self._timers.pop(timer, None) is not None:
                self._effects.append(ClearTimer(timer=timer))

    def _notice(self, event: Any, **fields: Any) -> None:
        notice = Notice(event=event, run_id=self.record.run_id, **fields)
        self._effects.append(Publish(events=(notice,)))

    def _ignore(self, _: Input) -> None:
        """Legal and without meaning here."""

    def _answered(self, number: int, kind: type[RequestEffect]) -> bool:
        """Take a request of this kind off those under way; false when there is none of that number."""
        if not isinstance(self._requests.get(number), kind):
            return False
        del self._requests[number]
        return True

    def _looked(self, number: int) -> bool:
        """Whether this answers a look that no submission has overtaken."""
        return self._answered(number, RetrieveRun) and number > self.record.floor

    def _is_current(self, seen: RunObserved) -> bool:
        """Whether this shows the run as it is, not as it was before the last submission."""
        return seen.number == self.record.watched or self._looked(seen.number)

    def _show(self, seen: RunObserved) -> None:
        """Publish a run's status once, in the event it came in or in one like it. A verdict comes last."""
        changed = seen.run.status != self.record.status
        if changed or seen.event is not None:
            self.progressed_at = self._now
        if changed:
            self._update(status=seen.run.status)
        if changed or seen.event is not None:
            self._effects.append(Publish(events=(seen.event or run_event(seen.run),)))

    def _retrieve(self) -> None:
        """Look at the run, unless a look is under way that is as urgent."""
        record = self.record
        urgent = record.phase not in (Phase.WATCHING, Phase.ACTING)
        looks = (sent for sent in self._requests.values() if isinstance(sent, RetrieveRun))
        if any(look.number > record.floor and look.urgent >= urgent for look in looks):
            return
        assert record.thread_id is not None
        assert record.run_id is not None
        self._send(
            RetrieveRun(number=self._next(), thread_id=record.thread_id, run_id=record.run_id, urgent=urgent)
        )

    def _list_runs(self) -> None:
        assert self.record.thread_id is not None
        self._send(ListRuns(number=self._next(), thread_id=self.record.thread_id))

    def _cancel_run(self, run_id: str | None) -> None:
        assert self.record.thread_id is not None
        assert run_id is not None
        self._send(CancelRun(number=self._next(), thread_id=self.record.thread_id, run_id=run_id))

    def _pause(self) -> float:
        """Seconds to the next look: the server's hint, else growing with the run's age; never in step."""
        timing = self._timing
        if self._poll_after_s is None:
            pause = min(timing.poll_max_s, timing.poll_min_s + (self._now - self.began_at) / 20)
        else:
            pause = min(max(timing.poll_min_s / 10, self._poll_after_s), timing.stall_s)
        return pause * (1 + self._jitter() / 10)

    def _backoff(self, error: APIError) -> float:
        return delay_s(
            self._timing.retry,
            failures=max(1, self._failures),
            error=error,
            jitter=self._jitter(),
            unix_now=self._unix_time(),
        )

    def _capped_backoff(self, error: APIError) -> float:
        """The pause before what is repeated whatever the server asks for: a bound of its own ends it."""
        return min(self._backoff(error), self._timing.retry.retry_after_cap_s)

    def _bound_ending(self) -> None:
        """Wait for an end no longer than this, and after a restart not longer than without one."""
        patience = self._timing.cancel_timeout_s
        if Timer.CANCEL not in self._timers:
            self._set(Timer.CANCEL, min(patience, self.record.deadline_at + patience - self._now))

    def _again(self, send: Callable[[], None], error: APIError, *, repeatable: bool) -> bool:
        """Call `send` after a backoff, if the policy allows."""
        self._failures += 1
        pause = self._backoff(error)
        policy = self._timing.retry
        allowed = judge(error, repeatable=repeatable) is Verdict.AGAIN and policy.when(error)
        if not allowed or self._failures >= policy.attempts or pause == float("inf"):
            return False
        self._retry = send
        self._set(Timer.RETRY, pause)
        return True

    def _look_again(self, effect: RequestEffect, error: APIError) -> bool:
        """Repeat a look after a backoff for as long as the run's own bounds allow, if it may help."""
        if judge(error, repeatable=True) is not Verdict.AGAIN:
            return False
        self._failures += 1
        self._retry = self._repeat(effect)
        self._set(Timer.RETRY, self._capped_backoff(error))
        return True

    def _repeat(self, effect: RequestEffect) -> Callable[[], None]:
        """What sends the same request under a new number."""
        return lambda: self._send(replace(effect, number=self._next()))

    def _finish(self, finish: Finish) -> None:
        self._clear(*tuple(self._timers))
        self.record = replace(self.record, phase=Phase.FINISHED)
        self._effects.append(finish)


def run_event(run: Run) -> RunEvent:
    """The event that would have shown this run."""
    return RunEvent(event=f"thread.run.{run.status}", data=run, run_id=run.id)
