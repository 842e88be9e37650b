"""A run as it is seen from outside: its outcome, its events, a snapshot. Safe to read from any thread.

The run's actor and the supervisor write it, handles and consumers read it. It decides nothing.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pykka

from orchestrator.errors import OrchestratorClosed
from orchestrator.protocol.events import MessageEvent, RunEvent, RunStepEvent
from orchestrator.runs.machine import WaitsFor
from orchestrator.runs.record import Phase
from orchestrator.runtime import on_loop_thread
from orchestrator.supervision.events import EventLog
from orchestrator.supervision.eventual import Eventual, uncancellable
from orchestrator.supervision.outcomes import tell_outcome
from orchestrator.supervision.remedies import explain
from orchestrator.telemetry import get_logger
from orchestrator.tools.approval import Approvals

if TYPE_CHECKING:
    from orchestrator.runs.effects import Finish
    from orchestrator.runs.lifecycle import Lifecycle
    from orchestrator.runs.record import RunRecord
    from orchestrator.runs.result import RunResult, StreamedEvent
    from orchestrator.supervision.gate import Holder
    from orchestrator.supervision.in_flight import InFlight
    from orchestrator.tools.approval import ApprovalRequest
    from orchestrator.tools.threads import ThreadPool

__all__ = ["RunSnapshot", "RunState", "Turn"]


log = get_logger(__name__)

T = TypeVar("T")

_HELD_BY: Final[dict[Holder, str]] = {
    "limiter": "the limiter, which paces the requests to the server",
    "server": "the server, which did not answer of late and is given a pause",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSnapshot:
    """A run at one moment.

    Attributes:
        key: The run's key in this process.
        phase: Where the run stands for the orchestrator.
        status: The server's status, as it was last seen; `None` before the first look.
        thread_id: The thread, or `None` while it is not known.
        run_id: The run, or `None` while it is not known.
        run_ids: The ids of all the runs that the handle stood for, oldest first.
        age_s: Seconds since `start()`, up to the run's end.
        idle_s: Seconds since the run was last seen to move.
        round: How many batches of tool calls there were.
        tool_calls: How many tool calls have their outcome.
        open_calls: Ids of the calls that are under way.
        approvals: Those of them that wait for `RunHandle.approve()` or `deny()`, with their arguments.
        restarts: How often the run's actor was started again.
        attempts: How often the request that it waits for was sent, the one under way included.
        last_request_id: The server's id of the last request that it answered, or `None`.
        waits_for: What it waits for, in one word.
        waits_detail: The same in a few words, for people.
    """

    key: str
    phase: Phase
    status: str | None
    thread_id: str | None
    run_id: str | None
    run_ids: tuple[str, ...]
    age_s: float
    idle_s: float
    round: int
    tool_calls: int
    open_calls: tuple[str, ...]
    approvals: tuple[ApprovalRequest, ...]
    restarts: int
    attempts: int
    last_request_id: str | None
    waits_for: WaitsFor
    waits_detail: str


_WHOLE: Final = (RunEvent, RunStepEvent, MessageEvent)
"""What shows an object as it is."""


class Turn:
    """Who has a thread, as those see it who wait for that: one object for all of them."""

    __slots__ = ("holder",)

    def __init__(self, holder: RunState) -> None:
        self.holder = holder


class RunState:
    """One run's outcome and events.

    An outcome is first noted, by whoever ends the run, and then handed over, once nothing of the run is left:
    who learns of it may use the run's key and its place at once.

    Args:
        record: The run's first record.
        server: The base URL of its requests, for messages.
        resolver: Where `future` is resolved, so that a user's callback runs neither on the actors' loop nor
            between a run's end and those who wait for `outcome`.

    Attributes:
        key: The run's key.
        server: The base URL of its requests.
        outcome: The outcome, for our own use: its callbacks run on the actors' loop and must be quick.
        events: What the run published.
        approvals: The calls that wait for somebody's approval.
        restarts: How often the run's actor was started again.
        turn: Whose run it waits for, where another one has its thread; else `None`.
        behind: The key of the run that has its thread in another process, where one has; else `None`.
        elsewhere: Who conducts the run, where that is another process; else `None`.
        recovers: What it waits for between two incarnations of its actor; else `None`.
        last_request_id: The server's id of the last request of the run's that was answered. Set on the
            actors' loop.
    """

    def __init__(self, record: RunRecord, *, server: str, resolver: ThreadPool) -> None:
        self.key = record.key
        self.server = server
        self._lock = threading.Lock()
        self.outcome: Eventual[RunResult] = Eventual(self._lock)
        self.events = EventLog()
        self.approvals = Approvals()
        self.restarts = 0
        self.turn: Turn | None = None
        self.behind: str | None = None
        self.elsewhere: str | None = None
        self.recovers: tuple[WaitsFor, str] | None = None
        self.last_request_id: str | None = None
        self._started_at = self._moved_at = time.monotonic()
        self._ended_at: float | None = None
        self._resolver = resolver
        self._record = record
        self._lifecycle: Lifecycle | None = None
        self._in_flight: InFlight | None = None
        self._finish: Finish | None = None
        self._opened: Eventual[None] = Eventual(self._lock)
        self._future: Future[RunResult] | None = None
        self._recorded: Future[None] | None = None
        self._watchers: set[str] = set()
        self._shown: dict[str, RunEvent | RunStepEvent | MessageEvent] = {}
        self._subscribers: list[pykka.ActorRef[Any]] = []

    @property
    def record(self) -> RunRecord:
        """The run's record, as its actor has it now."""
        lifecycle = self._lifecycle
        return self._record if lifecycle is None else lifecycle.record

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The ids of all the runs that the handle stood for, oldest first."""
        return self.record.run_ids

    @property
    def finished(self) -> bool:
        """Whether the outcome is noted; it may not be handed over yet."""
        return self._finish is not None

    @property
    def noted(self) -> Finish:
        """The outcome that was noted."""
        assert self._finish is not None
        return self._finish

    @property
    def future(self) -> Future[RunResult]:
        """The outcome, for users: what they add to it runs on a thread of its own.

        It cannot be cancelled; `RunHandle.cancel()` cancels the run.
        """
        if self._future is None:
            mirror = self._mirror(self.outcome.future)
            with self._lock:
                self._future = self._future or mirror
        return self._future

    @property
    def recorded(self) -> Future[None]:
        """Resolved once the journal has the run, or fails with what keeps it from that; else as `future`."""
        if self._recorded is None:
            mirror = self._mirror(self._opened.future)
            with self._lock:
                self._recorded = self._recorded or mirror
        return self._recorded

    def _mirror(self, original: Future[T]) -> Future[T]:
        mirror: Future[T] = uncancellable()

        def resolve(_: Future[T]) -> None:
            # Called at once where the outcome is known already: nobody can have added a callback yet.
            if on_loop_thread():
                self._resolver.submit(lambda: _copy(original, mirror))
            else:
                _copy(original, mirror)

        original.add_done_callback(resolve)
        return mirror

    def conduct(self, record: RunRecord) -> None:
        """The run is conducted here from now on, and this is what it goes on from. On the actors' loop."""
        self._record = record
        self.elsewhere = None
        self._tell_opened()

    def follow_elsewhere(self, record: RunRecord, owner: str) -> None:
        """Another process conducts the run. On the actors' loop; what was noted of its end does not stand."""
        self._record = record
        self._lifecycle = self._in_flight = self._finish = self._ended_at = None
        self.turn = self.behind = self.recovers = None
        self.elsewhere = owner
        self._tell_opened()

    def finish_as_kept(self, record: RunRecord, finish: Finish) -> None:
        """Note the outcome that the journal has of the run. On the actors' loop."""
        self._lifecycle = None
        self._record = record
        self._note(finish)
        self._tell_opened()

    def _tell_opened(self) -> None:
        if not self._opened.done():
            self._opened.settle(None)

    def conducted_by(self, lifecycle: Lifecycle) -> None:
        """From now on this machine says where the run stands."""
        self._lifecycle = lifecycle
        self.recovers = None

    def watch(self, ref: pykka.ActorRef[Any]) -> None:
        """Tell an actor the outcome, once: when it is handed over, or now where it was. From any thread."""
        with self._lock:
            if ref.actor_urn in self._watchers:
                return
            self._watchers.add(ref.actor_urn)
        self.outcome.future.add_done_callback(partial(tell_outcome, ref, self.key))

    def served_by(self, in_flight: InFlight) -> None:
        """This makes the run's requests, and knows what holds them back."""
        self._in_flight = in_flight

    def tell_events_to(self, ref: pykka.ActorRef[Any]) -> None:
        """Tell an actor every event from now on; one that is dead is forgotten."""
        self._subscribers.append(ref)

    def publish(self, *events: StreamedEvent) -> None:
        """Add events, except those that show an object as it was shown last. On the actors' loop.

        A new incarnation of the run's actor does not know what its predecessor has shown.
        """
        new = [event for event in events if self._is_new(event)]
        self.events.add(*new)
        if self._subscribers:
            self._tell_subscribers(new)

    def _tell_subscribers(self, new: list[StreamedEvent]) -> None:
        for ref in tuple(self._subscribers):
            try:
                for event in new:
                    ref.tell(event)
            except pykka.ActorDeadError:
                self._subscribers.remove(ref)
            except Exception:  # a reference of the user's own kind must not harm the run
                self._subscribers.remove(ref)
                log.exception("run.consumer_failed", run_key=self.key)

    def _is_new(self, event: StreamedEvent) -> bool:
        if not isinstance(event, _WHOLE):
            return True
        shown, self._shown[event.data.id] = self._shown.get(event.data.id), event
        return shown != event

    def finish(self, finish: Finish) -> None:
        """Note the outcome. On the actors' loop; the first one stands."""
        if self._finish is not None:
            return
        self._note(finish)
        if self._lifecycle is not None:
            self._record = self._lifecycle.record
            self._moved_at = self._lifecycle.progressed_at
            # A handle that is kept must not keep the machine.
            self._lifecycle = None
        if finish.error is not None:
            explain(finish.error, self._record, self.server)

    def _note(self, finish: Finish) -> None:
        self._finish = finish
        self._in_flight = None
        self.turn = self.behind = self.elsewhere = self.recovers = None
        self._ended_at = time.monotonic()

    def hand_over(self) -> None:
        """Tell everybody the outcome that was noted, once. On the actors' loop."""
        finish = self.noted
        if not self._opened.done():
            self._opened.settle(None, finish.error or OrchestratorClosed("the run was never recorded"))
        self.outcome.settle(finish.result, finish.error)
        # In this order, so that a reader who has seen the last event finds the run done.
        self.events.close()

    def snapshot(self) -> RunSnapshot:
        """The run at this moment; from any thread."""
        lifecycle = self._lifecycle
        record = self._record if lifecycle is None else lifecycle.record
        now = self._ended_at or time.monotonic()
        moved_at = self._moved_at if lifecycle is None else max(self._moved_at, lifecycle.progressed_at)
        waits_for, detail = self._waiting(lifecycle)
        return RunSnapshot(
            key=self.key,
            phase=record.phase if self._finish is None else Phase.FINISHED,
            status=record.status,
            thread_id=record.thread_id,
            run_id=record.run_id,
            run_ids=self.run_ids,
            age_s=now - self._started_at,
            idle_s=max(0.0, now - moved_at),
            round=record.round,
            tool_calls=len(record.results),
            open_calls=() if lifecycle is None else tuple(call.id for call in lifecycle.open_calls),
            approvals=self.approvals.pending,
            restarts=self.restarts,
            attempts=0 if lifecycle is None else lifecycle.attempts,
            last_request_id=self.last_request_id,
            waits_for=waits_for,
            waits_detail=detail,
        )

    def _waiting(self, lifecycle: Lifecycle | None) -> tuple[WaitsFor, str]:
        recovers, turn = self.recovers, self.turn
        if self._finish is not None:
            return WaitsFor.NOTHING, "it is over"
        if self.elsewhere is not None:
            return WaitsFor.PROCESS, f"the process that conducts it, {self.elsewhere}"
        if recovers is not None:
            return recovers
        if self.behind is not None:
            return WaitsFor.THREAD, f"thread {self._record.thread_id}, which run {self.behind!r} has"
        if turn is not None:
            holder = turn.holder.record.run_id or repr(turn.holder.key)
            return WaitsFor.THREAD, f"thread {self._record.thread_id}, which run {holder} has"
        gated = None if self._in_flight is None else self._in_flight.held_by
        if gated is not None:
            return WaitsFor(gated), _HELD_BY[gated]
        if lifecycle is None:
            return WaitsFor.ADMISSION, "its first turn"
        return lifecycle.waiting


def _copy(outcome: Future[T], future: Future[T]) -> None:
    error = outcome.exception()
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(outcome.result())
