"""The life of one run, as a machine without I/O: inputs in, effects out.

It owns every decision about a run: what is sent when, what an answer means, when tools start, when a batch
is whole, when a failure is tried again, when the run is over. It refuses to know how requests are made, which
thread it runs on, and what time it is: `receive(input, now)` is told, clocks and jitter are injected.

The rules:

1.  Every incarnation of a run's actor, the first included, begins with `Resumed` and goes on from the record.
2.  What matters is put into a `Record` before the effect it is about: the nonce and the request's number
    before a create or a submit is sent, the batch before its tools start, an outcome before it is submitted.
3.  A create or a submit is decided by the first run object it shows. Anything else before that (an end of
    stream, a timeout, a 5xx) leaves it open: the runs of the thread are listed for the nonce, or the run is
    retrieved, and only then is anything sent again.
4.  A batch is submitted once every one of its calls has an outcome, in one request. A call whose outcome is
    recorded is never started again.
5.  A round ends when its submission is accepted. An observation that was asked for before is ignored.
6.  Only a terminal run object is a verdict. One that a stream shows while calls are open, or after some of
    the stream was lost, is checked by retrieving the run, because servers are known to send a spurious one.
7.  Cancel waits for the id of a create whose outcome is open, then is posted until the run has ended or
    `cancel_timeout_s` is over. A run that completed first is a completed run.
8.  A run that cannot go on is cancelled on the server, or its ids are in the error. So is one that shows no
    progress, or goes past its budgets, where the user asked for that.
9.  A create that is refused because another run holds the thread has made nothing: that run is waited for,
    reported, or ended, as the user asked, and then the same create is sent.
10. A run that failed or expired may be followed by another (`orchestrator.runs.rerun`); everything of the
    handle but the run goes on: deadline, results, rounds and request numbers.
11. An input that the table does not list for the phase raises `IllegalInput` and changes nothing. Answers to
    requests that no longer matter are listed, and ignored by their number.

The table below is the machine's map: for each phase, which inputs it takes, what handles them, and where
they may lead. `receive` enforces both columns; the README's diagram is generated from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from orchestrator.runs.creating import Creating
from orchestrator.runs.effects import CreateRun, Effect, StopTools, SubmitToolOutputs
from orchestrator.runs.inputs import (
    CancelRequested,
    DetachRequested,
    EventsObserved,
    Input,
    RequestFailed,
    Resumed,
    RunObserved,
    RunsListed,
    Started,
    StreamEnded,
    ThreadCreated,
    Timer,
    TimerFired,
    ToolFinished,
    ToolNoticed,
    TranscriptFetched,
)
from orchestrator.runs.machine import Timing
from orchestrator.runs.record import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TABLE", "IllegalInput", "Lifecycle", "Rule", "Timing"]


class Rule(NamedTuple):
    """What one phase does with one kind of input.

    Attributes:
        handler: The name of the method that handles it.
        to: The phases it may lead to; the phase itself is always among them.
    """

    handler: str
    to: frozenset[Phase]


def _rules(phase: Phase, rules: Mapping[type, tuple[Any, ...]]) -> dict[type, Rule]:
    return {kind: Rule(handler, frozenset({phase, *to})) for kind, (handler, *to) in rules.items()}


_CR, _WA, _AC, _SU = Phase.CREATING, Phase.WATCHING, Phase.ACTING, Phase.SUBMITTING
_CA, _CO, _FI = Phase.CANCELLING, Phase.COLLECTING, Phase.FINISHED
_IGNORED = ("_ignore",)

_MAP: Final[dict[Phase, dict[type, tuple[Any, ...]]]] = {
    Phase.ADMITTED: {
        Resumed: ("_resume",),
        Started: ("_start", _CR, _WA),
        CancelRequested: ("_cancel_unsent", _CA, _FI),
        DetachRequested: ("_detach", _FI),
        TimerFired: ("_fire", _FI),
    },
    Phase.CREATING: {
        Resumed: ("_resume",),
        ThreadCreated: ("_take_thread",),
        RunObserved: ("_observe_creating", _WA, _AC, _CA, _CO, _FI),
        EventsObserved: ("_observe_events",),
        RunsListed: ("_search_nonce", _WA, _AC, _CA, _CO, _FI),
        StreamEnded: ("_end_stream_creating",),
        RequestFailed: ("_fail_creating", _FI),
        CancelRequested: ("_cancel_creating", _FI),
        DetachRequested: ("_detach", _FI),
        TimerFired: ("_fire", _FI),
        ToolFinished: _IGNORED,
        ToolNoticed: _IGNORED,
        TranscriptFetched: _IGNORED,
    },
    Phase.WATCHING: {
        Resumed: ("_resume",),
        RunObserved: ("_observe", _AC, _CA, _CO, _FI),
        EventsObserved: ("_observe_events_watching", _CA),
        StreamEnded: ("_end_stream",),
        RequestFailed: ("_fail_watching", _CA, _FI),
        ToolFinished: _IGNORED,
        ToolNoticed: _IGNORED,
        CancelRequested: ("_cancel", _CA),
        DetachRequested: ("_detach", _FI),
        TimerFired: ("_fire", _CA, _FI),
        ThreadCreated: _IGNORED,
        RunsListed: _IGNORED,
        TranscriptFetched: _IGNORED,
    },
    Phase.ACTING: {
        Resumed: ("_resume", _SU, _CA),
        ToolFinished: ("_finish_tool", _SU, _CA),
        ToolNoticed: ("_take_notice",),
        RunObserved: ("_observe_acting", _CO, _FI),
        EventsObserved: ("_observe_events",),
        TranscriptFetched: ("_take_fill", _SU, _CA),
        StreamEnded: ("_end_stream",),
        RequestFailed: ("_fail_acting", _SU, _CA, _FI),
        CancelRequested: ("_cancel", _CA),
        DetachRequested: ("_detach", _FI),
        TimerFired: ("_fire", _SU, _CA, _FI),
        ThreadCreated: _IGNORED,
        RunsListed: _IGNORED,
    },
    Phase.SUBMITTING: {
        Resumed: ("_resume",),
        RunObserved: ("_observe_submitted", _WA, _AC, _CA, _CO, _FI),
        EventsObserved: ("_observe_events",),
        StreamEnded: ("_end_stream_submitting",),
        RequestFailed: ("_fail_submitting", _CA, _FI),
        ToolFinished: _IGNORED,
        ToolNoticed: _IGNORED,
        CancelRequested: ("_cancel", _CA),
        DetachRequested: ("_detach", _FI),
        TimerFired: ("_fire", _CA, _FI),
        ThreadCreated: _IGNORED,
        RunsListed: _IGNORED,
        TranscriptFetched: _IGNORED,
    },
    Phase.CANCELLING: {
        Resumed: ("_resume",),
        RunObserved: ("_observe_cancelling", _CO, _FI),
        EventsObserved: ("_observe_events",),
        StreamEnded: ("_end_stream",),
        RequestFailed: ("_fail_cancelling", _FI),
        ToolFinished: _IGNORED,
        ToolNoticed: _IGNORED,
        CancelRequested: _IGNORED,
        DetachRequested: ("_detach", _FI),
        TimerFired: ("_fire", _FI),
        ThreadCreated: _IGNORED,
        RunsListed: _IGNORED,
        TranscriptFetched: _IGNORED,
    },
    Phase.COLLECTING: {
        Resumed: ("_resume",),
        RunObserved: ("_observe_collecting", _FI),
        RunsListed: ("_cancel_strays", _FI),
        TranscriptFetched: ("_take_transcript", _FI),
        RequestFailed: ("_fail_collecting", _FI),
        ThreadCreated: _IGNORED,
        EventsObserved: _IGNORED,
        StreamEnded: _IGNORED,
        ToolFinished: _IGNORED,
        ToolNoticed: _IGNORED,
        CancelRequested: ("_cancel_collecting", _FI),
        DetachRequested: ("_detach", _FI),
        TimerFired: ("_fire", _CR, _FI),
    },
    Phase.FINISHED: dict.fromkeys(
        (
            ThreadCreated,
            RunObserved,
            EventsObserved,
            RunsListed,
            TranscriptFetched,
            StreamEnded,
            RequestFailed,
            ToolFinished,
            ToolNoticed,
            Started,
            CancelRequested,
            DetachRequested,
            TimerFired,
        ),
        _IGNORED,
    ),
}

TABLE: Final = {phase: _rules(phase, rules) for phase, rules in _MAP.items()}
"""For each phase, what is done with each kind of input."""


_DUE: Final = {
    Timer.DEADLINE: "_pass_deadline",
    Timer.RETRY: "_send_again",
    Timer.SETTLE: "_list_runs",
    Timer.POLL: "_look",
    Timer.STALL: "_check_progress",
    Timer.UNKNOWN: "_give_up_unknown",
    Timer.CANCEL: "_stop_waiting",
    Timer.FILL: "_cut_filling",
    Timer.RERUN: "_begin_rerun",
}


class IllegalInput(RuntimeError):
    """The table does not list this input for this phase; nothing was changed."""


class Lifecycle(Creating):
    """One run's machine. Not thread-safe: it belongs to the actor that feeds it.

    Args:
        record: Where to begin; the record of a run that never began, or the last one a predecessor gave out.
        timing: How patient to be.
        jitter: Draws a number in [0, 1).
        unix_time: Seconds since the epoch; read only to understand a `Retry-After` that is a date.

    Attributes:
        record: The state that a successor would go on from.
        began_at: When this incarnation began, in seconds of the injected clock.
        progressed_at: When the run was last seen to move, likewise.
    """

    def receive(self, input: Input, now: float) -> list[Effect]:  # noqa: A002 - the machine's own word
        """Take one input and return what is to be done about it, in order.

        Args:
            input: What happened.
            now: Seconds of a monotonic clock, the one `RunRecord.deadline_at` is reckoned by.

        Raises:
            IllegalInput: The phase does not take this input; nothing was changed.
        """
        before = self.record.phase
        rule = TABLE[before].get(type(input))
        if rule is None or isinstance(input, Resumed) is self._resumed:
            raise IllegalInput(
                f"{type(input).__name__} is not an input of phase {before} (run {self.record.key})"
            )
        self._now = now
        getattr(self, rule.handler)(input)
        if self.record.phase not in rule.to:
            raise AssertionError(f"{type(input).__name__} led from {before} to {self.record.phase}")
        if self.record.phase is not Phase.FINISHED:
            self._flush()
        effects, self._effects = self._effects, []
        return effects

    def _resume(self, resumed: Resumed) -> None:
        self._resumed = True
        self._number = max(self.record.number, *resumed.in_flight, 0)
        self.began_at = self.progressed_at = self._now
        self._set(Timer.DEADLINE, self.record.deadline_at - self._now)
        if self.record.phase is not Phase.ADMITTED:
            self._gapless = False
            begins = self.record.phase in (Phase.CREATING, Phase.ACTING) and self.record.pending is None
            # What ends an unwanted run comes next, a word or the deadline's timer, and finds nothing begun.
            if not (begins and (resumed.unwanted or self._is_overdue)):
                self._resume_phase(resumed)

    def _resume_phase(self, resumed: Resumed) -> None:
        waiting = self.record.pending in resumed.in_flight
        if waiting:
            self._expect_pending()
        match self.record.phase:
            case Phase.CREATING if self.record.pending is None:
                self._begin_creating()
            case Phase.CREATING if not waiting:
                self._reconcile_create()
            case Phase.WATCHING if self.record.watched not in resumed.in_flight:
                self._update(watched=None)
                self._retrieve()
            case Phase.WATCHING:
                self._set(Timer.STALL, self._timing.stall_s)
            case Phase.ACTING:
                self._resume_acting(resumed.open_calls)
            case Phase.SUBMITTING if not waiting:
                self._retrieve()
            case Phase.CANCELLING:
                self._stop_left(resumed.open_calls)
                self._post_cancel()
            case Phase.COLLECTING:
                self._stop_left(resumed.open_calls)
                self._retrieve()

    def _expect_pending(self) -> None:
        """Wait for a predecessor's request as if it were our own."""
        pending = self.record.pending
        assert pending is not None
        effect: CreateRun | SubmitToolOutputs
        creating = self.record.phase is Phase.CREATING
        effect = self._creation(pending) if creating else self._submission(pending)
        self._requests[pending] = effect

    def _resume_acting(self, under_way: frozenset[str]) -> None:
        missing = tuple(call for call in self.open_calls if call.id not in under_way)
        if missing:
            self._start_tools(missing)
        self._submit_if_whole()

    def _stop_left(self, under_way: frozenset[str]) -> None:
        """The predecessor may have died between the record and the effect."""
        if under_way:
            self._do(StopTools())

    @property
    def _is_overdue(self) -> bool:
        return self._now >= self.record.deadline_at

    def _start(self, _: Started) -> None:
        if self._is_overdue:
            return  # the deadline's timer is due
        if self.record.run_id is not None:
            self._update(phase=Phase.WATCHING)
            self._retrieve()
            return
        self._update(phase=Phase.CREATING)
        self._begin_creating()

    def _fire(self, fired: TimerFired) -> None:
        if self._timers.get(fired.timer) != fired.serial:
            return
        del self._timers[fired.timer]
        getattr(self, _DUE[fired.timer])()

    def _look(self) -> None:
        if self.record.phase is Phase.CREATING:
            self._look_at_holder()
        else:
            self._retrieve()

    def _give_up_unknown(self) -> None:
        seconds = self._timing.unknown_status_s
        self._give_up(self._lost(f"unknown status {self.record.status!r} lasted {seconds:g} s"))

    def _stop_waiting(self) -> None:
        """The time that the run was given to end is over."""
        if self.record.phase is Phase.CREATING:
            self._finish_ambiguous()
        else:
            self._fail_unconfirmed()

    def _send_again(self) -> None:
        send, self._retry = self._retry, None
        assert send is not None
        send()
