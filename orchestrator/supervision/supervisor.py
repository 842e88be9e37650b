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
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.errors import OrchestratorClosed, OrchestratorError, RunError, ThreadBusy
from orchestrator.runs.effects import Finish
from orchestrator.runs.inputs import CancelRequested, Input, Started
from orchestrator.runs.lifecycle import Lifecycle, Timing
from orchestrator.runs.machine import WaitsFor
from orchestrator.runs.request import require_patience
from orchestrator.runs.result import Notice
from orchestrator.runtime import LoopActor
from orchestrator.supervision.actor import ActorEnded, MetadataEchoed, RunActor, ThreadTaken
from orchestrator.supervision.admission import Admission
from orchestrator.supervision.escalation import ended_remotely, whereabouts
from orchestrator.supervision.log import RunLog
from orchestrator.supervision.state import Turn

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from orchestrator.journal import Journal
    from orchestrator.protocol.objects import Run
    from orchestrator.runs.record import RunRecord
    from orchestrator.runtime import LoopActorRef
    from orchestrator.supervision.in_flight import InFlight
    from orchestrator.supervision.state import RunState

__all__ = ["Abandon", "Admit", "FindOrphans", "Forward", "RestartPolicy", "Supervisor"]


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

    def __post_init__(self) -> None:
        for name in ("max_restarts", "within_s", "backoff_s", "backoff_cap_s"):
            require_patience(name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Take a run on.

    Attributes:
        record: The run's first record.
        state: The run as it is seen from outside.
        in_flight: What will be under way for it.
    """

    record: RunRecord
    state: RunState
    in_flight: InFlight


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
class FindOrphans:
    """Answered with those of the runs, a tuple, that are not over and that nobody here conducts.

    Attributes:
        runs: A thread's runs, as the server lists them.
    """

    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon:
    """Let go of every run that is still open, at once; each handle fails with its ids."""


@dataclass(slots=True, kw_only=True)
class _Open:
    """A run that is not over.

    Attributes:
        state: The run as it is seen from outside.
        in_flight: What is under way for it.
        log: Says what happens to it.
        actor: Its actor; `None` between two incarnations.
        coming: What will go on with it then: the restart after the backoff, or the end.
        deaths: When its actors died, within the window.
    """

    state: RunState
    in_flight: InFlight
    log: RunLog
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
        log_tool_data: Whether the logs show the arguments and outputs of tool calls.
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
        log_tool_data: bool,
        ended: Callable[[RunState], None],
    ) -> None:
        super().__init__()
        self._journal = journal
        self._admission = Admission(max_concurrent_runs)
        self._policy = restart
        self._timing = timing
        self._jitter = jitter
        self._log_tool_data = log_tool_data
        self._ended = ended
        self._open: dict[str, _Open] = {}
        self._turns: dict[str, Turn] = {}
        self._echoing: set[str] = set()

    def on_receive(self, message: object) -> object:
        """Handle one message; an unknown one is a defect and ends the supervisor."""
        match message:
            case Admit():
                self._admit(message)
            case Forward():
                self._forward(message)
            case FindOrphans(runs=runs):
                return tuple(run for run in runs if self._is_orphan(run))
            case ActorEnded() | MetadataEchoed() | ThreadTaken():
                self._hear(message)
            case _Restart(run=run):
                self._start_actor(run)
            case _Escalated(run=run, error=error):
                self._let_go(run, error)
            case Abandon():
                for run in tuple(self._open.values()):
                    self._let_go(run, self._abandoned(run, "the orchestrator was closed"))
            case _:
                raise TypeError(f"the supervisor does not know {type(message).__name__}")
        return None

    def _hear(self, news: ActorEnded | MetadataEchoed | ThreadTaken) -> None:
        match news:
            case ThreadTaken(key=key, thread_id=thread_id):
                self._admission.hold(key, thread_id)
            case MetadataEchoed(server=server):
                self._echoing.add(server)
            case ActorEnded(key=key, cause=cause):
                self._actor_ended(self._open[key], cause)

    def on_terminated(self, cause: BaseException | None) -> None:
        """Leave nothing behind: nobody would hear any more that a run's actor has ended."""
        why = "the orchestrator was closed" if cause is None else f"its supervisor died of {cause!r}"
        for run in tuple(self._open.values()):
            self._let_go(run, self._abandoned(run, why))
            if run.key in self._open:
                self._close(run)

    def _admit(self, admit: Admit) -> None:
        record = admit.record
        if admit.state.server in self._echoing:
            record = replace(record, metadata_echoed=True)
        self._journal.record(record)
        log = RunLog(admit.state, tool_data=self._log_tool_data)
        run = self._open[record.key] = _Open(state=admit.state, in_flight=admit.in_flight, log=log)
        holder = None if record.thread_id is None else self._admission.holder(record.thread_id)
        adopted = record.run_id is not None
        if holder is not None and record.request.on_busy_thread == "reject" and not adopted:
            self._let_go(run, self._busy(record, holder))
            return
        if holder is not None and record.request.on_busy_thread == "interrupt":
            self._interrupt(record.thread_id)
        self._start_actor(run)
        self._queue(run, record)
        self._start_admitted()

    def _interrupt(self, thread_id: str | None) -> None:
        """Have every run end that has the thread or waits for it."""
        if thread_id is not None:
            for key in (*self._admission.waiting(thread_id), *self._admission.holders(thread_id)):
                self._open[key].in_flight.report(CancelRequested())

    def _queue(self, run: _Open, record: RunRecord) -> None:
        """Have a run wait for its thread, if it must.

        One that is adopted exists, and has the thread on the server: were it to wait for a run that itself
        waits for this one's end, neither would go on. It waits only for one that conducts the same run.
        """
        thread_id, adopted = record.thread_id, record.run_id
        holders = () if thread_id is None else self._admission.holders(thread_id)
        if adopted and all(self._open[key].state.record.run_id != adopted for key in holders):
            self._admission.join(run.key, thread_id)
        elif self._admission.ask(run.key, thread_id, next_in_line=adopted is not None):
            assert thread_id is not None
            run.state.turn = self._turns.setdefault(thread_id, Turn(self._open[holders[0]].state))

    def _is_orphan(self, run: Run) -> bool:
        records = (known.state.record for known in self._open.values())
        return not run.is_terminal and not any(
            run.id in record.run_ids or record.is_marked(run) for record in records
        )

    def _busy(self, record: RunRecord, holder: str) -> ThreadBusy:
        run_id = self._open[holder].state.record.run_id
        return ThreadBusy(
            f"thread {record.thread_id} is held by run {run_id or holder!r} of this orchestrator, and "
            f"on_busy_thread is 'reject': wait for that run, or use 'enqueue' or 'interrupt'",
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
            log=run.log,
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
        run.log.restarted(cause, restarts=deaths, pause_s=pause)
        run.state.recovers = WaitsFor.BACKOFF, f"its actor died, restart in {pause:g} s"
        run.state.publish(
            Notice(event="run.restarted", run_id=run.state.record.run_id, detail=type(cause).__name__)
        )
        run.coming = self.loop_thread.loop.call_later(pause, self._tell_self, _Restart(run))

    def _tell_self(self, message: object) -> None:
        if not self.actor_stopped.is_set():
            self.actor_ref.tell(message)

    def _escalate(self, run: _Open, cause: BaseException) -> None:
        run.log.escalated(cause, deaths=len(run.deaths))
        run.state.recovers = WaitsFor.SERVER, "its actor died too often, the run is being cancelled"
        run.in_flight.stop_tools()
        coroutine = self._cancel_and_fail(run, run.state.record, cause)
        run.coming = self.loop_thread.create_task(coroutine, name=f"{run.key}:escalate")

    async def _cancel_and_fail(self, run: _Open, record: RunRecord, cause: BaseException) -> None:
        what = f"its actor died {len(run.deaths)} times in {self._policy.within_s:g} s"
        run_id, became = await ended_remotely(run.in_flight, record, self._timing.retry, self._jitter)
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
            f"(phase {record.phase}, status {record.status}); {whereabouts(record)}"
        )

    def _let_go(self, run: _Open, error: OrchestratorError) -> None:
        """End a run from outside its machine."""
        if self._open.get(run.key) is not run:
            return
        if not run.state.finished:
            run.log.failed(error)
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
            self._open[heir].state.turn = None
        self._pass_turn(run.state.record.thread_id)
        self._ended(run.state)
        self._start_admitted()

    def _pass_turn(self, thread_id: str | None) -> None:
        """Let those who wait for a thread see who has it now."""
        if thread_id is None or thread_id not in self._turns:
            return
        holder = self._admission.holder(thread_id)
        if holder is None:
            del self._turns[thread_id]
        else:
            self._turns[thread_id].holder = self._open[holder].state
