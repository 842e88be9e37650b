"""The supervisor: it admits runs, watches their actors, starts them again, and gives up in the end.

Owns the table of open runs and the rules of restarting; knows nothing of the protocol (that is the
lifecycle's) and of users (that is the façade's). An actor itself: everything below happens on the actors'
loop, one message at a time. Should it end, whatever the reason, every run that is open is let go of.

Restarts are OTP's `transient` children: only an actor that died is started again, on the last record and
after a backoff, and at most `max_restarts` times within `within_s`; then the run is cancelled on the server
and fails with an error that names it.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from orchestrator.client.retry import NONCE_KEY
from orchestrator.errors import OrchestratorClosed, OrchestratorError, RunError, ThreadBusy
from orchestrator.runs.effects import CancelRun, Finish, ListRuns
from orchestrator.runs.inputs import Input, RequestFailed, RunObserved, RunsListed, Started
from orchestrator.runs.lifecycle import Lifecycle, Timing
from orchestrator.runs.result import Notice
from orchestrator.runtime import LoopActor
from orchestrator.supervision.actor import ActorEnded, RunActor, ThreadTaken
from orchestrator.supervision.admission import Admission
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from orchestrator.journal import Journal
    from orchestrator.runs.record import RunRecord
    from orchestrator.runtime import LoopActorRef
    from orchestrator.supervision.in_flight import InFlight
    from orchestrator.supervision.state import RunState

__all__ = ["Abandon", "Admit", "Forward", "OnBusyThread", "RestartPolicy", "Supervisor"]

log = get_logger(__name__)

OnBusyThread: TypeAlias = Literal["enqueue", "reject"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How often a run's actor is started again after it died.

    Attributes:
        max_restarts: The most restarts within the window.
        within_s: The window, in seconds.
        backoff_s: Seconds before the first restart; it doubles with each further one in the window.
        backoff_cap_s: The longest pause, in seconds.
    """

    max_restarts: int = 5
    within_s: float = 60.0
    backoff_s: float = 0.1
    backoff_cap_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Take a run on.

    Attributes:
        record: The run's first record.
        state: The run as it is seen from outside.
        in_flight: What will be under way for it.
        on_busy_thread: Whether it waits for its thread, or fails when another run of ours has it.
    """

    record: RunRecord
    state: RunState
    in_flight: InFlight
    on_busy_thread: OnBusyThread


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Tell a run something, whoever conducts it; a run that is over is not told.

    Attributes:
        state: The run; its key may be another run's by now.
        input: What it is told.
    """

    state: RunState
    input: Input


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon:
    """Let go of every run that is still open, at once; each handle fails with its ids."""


@dataclass(slots=True, kw_only=True)
class _Open:
    """A run that is not over.

    Attributes:
        state: The run as it is seen from outside.
        in_flight: What is under way for it.
        actor: Its actor; `None` between two incarnations.
        coming: What will go on with it then: the restart after the backoff, or the end.
        deaths: When its actors died, within the window.
    """

    state: RunState
    in_flight: InFlight
    actor: LoopActorRef[RunActor] | None = None
    coming: asyncio.TimerHandle | asyncio.Task[None] | None = None
    deaths: deque[float] = field(default_factory=deque)

    @property
    def key(self) -> str:
        return self.state.key


@dataclass(frozen=True, slots=True)
class _Restart:
    run: _Open


@dataclass(frozen=True, slots=True)
class _Escalated:
    run: _Open
    error: OrchestratorError


class Supervisor(LoopActor):
    """Watches the runs of one orchestrator.

    Args:
        journal: Keeps the records.
        max_concurrent_runs: The most runs that have been admitted and are not over.
        restart: How often an actor is started again.
        timing: How patient the runs are.
        jitter: Draws a number in [0, 1).
        ended: Told every run that is over and gone, on the actors' loop; it hands the outcome over.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        max_concurrent_runs: int,
        restart: RestartPolicy,
        timing: Timing,
        jitter: Callable[[], float],
        ended: Callable[[RunState], None],
    ) -> None:
        super().__init__()
        self._journal = journal
        self._admission = Admission(max_concurrent_runs)
        self._policy = restart
        self._timing = timing
        self._jitter = jitter
        self._ended = ended
        self._open: dict[str, _Open] = {}

    def on_receive(self, message: object) -> None:
        """Handle one message; an unknown one is a defect and ends the supervisor."""
        match message:
            case Admit():
                self._admit(message)
            case Forward():
                self._forward(message)
            case ThreadTaken(key=key, thread_id=thread_id):
                self._admission.hold(key, thread_id)
            case ActorEnded(key=key, cause=cause):
                self._actor_ended(self._open[key], cause)
            case _Restart(run=run):
                self._start_actor(run)
            case _Escalated(run=run, error=error):
                self._let_go(run, error)
            case Abandon():
                for run in tuple(self._open.values()):
                    self._let_go(run, self._abandoned(run, "the orchestrator was closed"))
            case _:
                raise TypeError(f"the supervisor does not know {type(message).__name__}")

    def on_terminated(self, cause: BaseException | None) -> None:
        """Leave nothing behind: nobody would hear any more that a run's actor has ended."""
        why = "the orchestrator was closed" if cause is None else f"its supervisor died of {cause!r}"
        for run in tuple(self._open.values()):
            self._let_go(run, self._abandoned(run, why))
            if run.key in self._open:
                self._close(run)

    def _admit(self, admit: Admit) -> None:
        record = admit.record
        holder = None if record.thread_id is None else self._admission.holder(record.thread_id)
        self._journal.record(record)
        run = self._open[record.key] = _Open(state=admit.state, in_flight=admit.in_flight)
        if holder is not None and admit.on_busy_thread == "reject":
            self._let_go(run, self._busy(record, holder))
            return
        self._start_actor(run)
        run.state.parked = holder is not None
        self._admission.ask(record.key, record.thread_id)
        self._start_admitted()

    def _busy(self, record: RunRecord, holder: str) -> ThreadBusy:
        run_id = self._open[holder].state.record.run_id
        return ThreadBusy(
            f"thread {record.thread_id} is held by run {run_id or holder!r} of this orchestrator, and "
            f"on_busy_thread is 'reject': wait for that run, or use 'enqueue'",
            thread_id=record.thread_id or "",
            run_id=run_id,
        )

    def _start_admitted(self) -> None:
        for key in self._admission.admitted():
            self._open[key].in_flight.report(Started())

    def _start_actor(self, run: _Open) -> None:
        if self._open.get(run.key) is not run:
            return
        run.coming = None
        run.actor = RunActor.start(
            resume=partial(self._resume, run.key),
            in_flight=run.in_flight,
            state=run.state,
            journal=self._journal,
            watcher=self._tell_self,
        )

    def _resume(self, key: str) -> Lifecycle:
        record = self._journal.last(key)
        return Lifecycle(record, timing=self._timing, jitter=self._jitter, unix_time=time.time)

    def _forward(self, forward: Forward) -> None:
        run = self._open.get(forward.state.key)
        if run is not None and run.state is forward.state:
            run.in_flight.report(forward.input)

    def _actor_ended(self, run: _Open, cause: BaseException | None) -> None:
        run.actor = None
        if run.state.finished:
            self._close(run)
        elif cause is None:
            # Pykka's `ActorRegistry.stop_all()`, called by somebody else in this process, reaches our actors.
            self._let_go(run, self._abandoned(run, "its actor was stopped"))
        else:
            self._recover(run, cause)

    def _recover(self, run: _Open, cause: BaseException) -> None:
        now = time.monotonic()
        run.deaths.append(now)
        while run.deaths[0] < now - self._policy.within_s:
            run.deaths.popleft()
        if len(run.deaths) > self._policy.max_restarts:
            self._escalate(run, cause)
            return
        run.state.restarts += 1
        self._restart_later(run, cause)

    def _restart_later(self, run: _Open, cause: BaseException) -> None:
        deaths = len(run.deaths)
        pause = min(self._policy.backoff_cap_s, self._policy.backoff_s * 2.0 ** (deaths - 1))
        known = {"run_key": run.key, "run_id": run.state.record.run_id}
        log.warning("run.restarted", cause=repr(cause), restarts=deaths, pause_s=pause, **known)
        run.state.publish(
            Notice(event="run.restarted", run_id=run.state.record.run_id, detail=type(cause).__name__)
        )
        run.coming = self.loop_thread.loop.call_later(pause, self._tell_self, _Restart(run))

    def _tell_self(self, message: object) -> None:
        if not self.actor_stopped.is_set():
            self.actor_ref.tell(message)

    def _escalate(self, run: _Open, cause: BaseException) -> None:
        run.in_flight.stop_tools()
        coroutine = self._cancel_and_fail(run, run.state.record, cause)
        run.coming = self.loop_thread.create_task(coroutine, name=f"{run.key}:escalate")

    async def _cancel_and_fail(self, run: _Open, record: RunRecord, cause: BaseException) -> None:
        what = f"its actor died {len(run.deaths)} times in {self._policy.within_s:g} s"
        run_id, became = await _ended_remotely(run.in_flight, record)
        error = RunError(
            f"run {run_id or run.key!r} on thread {record.thread_id} was given up: {what}, at last of "
            f"{type(cause).__name__}: {cause}; {became}",
            thread_id=record.thread_id,
            run_id=run_id,
            status=record.status,
        )
        error.__cause__ = cause
        self._tell_self(_Escalated(run, error))

    def _abandoned(self, run: _Open, why: str) -> OrchestratorClosed:
        record = run.state.record
        return OrchestratorClosed(
            f"{why} before run {record.run_id or run.key!r} on thread {record.thread_id} had ended "
            f"(phase {record.phase}, status {record.status}); {_whereabouts(record)}"
        )

    def _let_go(self, run: _Open, error: OrchestratorError) -> None:
        """End a run from outside its machine."""
        if self._open.get(run.key) is not run:
            return
        if not run.state.finished:
            known = {"run_key": run.key, "run_id": run.state.record.run_id}
            log.warning("run.failed", error=type(error).__name__, reason=str(error), **known)
            run.state.finish(Finish(error=error))
        run.in_flight.close()
        if run.coming is not None:
            run.coming.cancel()
        if run.actor is None:
            self._close(run)
        else:
            run.actor.stop(block=False)

    def _close(self, run: _Open) -> None:
        """Nothing of the run is left: forget it, and only then tell who waits for it."""
        del self._open[run.key]
        self._journal.forget(run.key)
        heir = self._admission.leave(run.key)
        if heir is not None:
            self._open[heir].state.parked = False
        self._ended(run.state)
        self._start_admitted()


async def _ended_remotely(in_flight: InFlight, record: RunRecord) -> tuple[str | None, str]:
    """Cancel what a run that is given up left on the server; its id, if any, and what became of it."""
    if record.thread_id is None or (record.run_id is None and record.pending is None):
        return None, "nothing was created on the server"
    run_id = record.run_id or in_flight.run_seen(record.pending)
    if run_id is None:
        listing = await _told(in_flight, ListRuns(number=0, thread_id=record.thread_id))
        listed = listing.runs if isinstance(listing, RunsListed) else ()
        marked = (run.id for run in listed if (run.metadata or {}).get(NONCE_KEY) == record.nonce)
        run_id = next(marked, None)
    if run_id is None:
        return None, _whereabouts(record)
    match await _told(in_flight, CancelRun(number=0, thread_id=record.thread_id, run_id=run_id)):
        case RunObserved():
            return run_id, "the run was cancelled on the server"
        case RequestFailed(error=error):
            return run_id, f"the run could not be cancelled on the server ({error}): look at it there"
        case _:
            return run_id, "whether the run was cancelled on the server is not known: look at it there"


async def _told(in_flight: InFlight, effect: ListRuns | CancelRun) -> Input | None:
    """Make one attempt at a request, outside of the run's machine."""
    told: list[Input] = []
    try:
        await in_flight.backend.perform(effect, told.append)
    except Exception:
        log.exception(
            "run.request_broken", request=type(effect).__name__, run_id=getattr(effect, "run_id", None)
        )
    return told[0] if told else None


def _whereabouts(record: RunRecord) -> str:
    """Where to look for a run that nobody conducts any more."""
    if record.run_id is not None:
        return "it may go on there: look at it, cancel it, or take it up again with adopt(thread_id, run_id)"
    if record.pending is not None:
        return f"it may have been created: look on its thread for metadata {NONCE_KEY}={record.nonce}"
    return "it was not created"
