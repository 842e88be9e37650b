"""The supervisor: it admits runs, watches their actors, starts them again, and gives up in the end.

Owns the table of open runs and the rules of restarting; knows nothing of the protocol (that is the
lifecycle's) and of users (that is the façade's). An actor itself: everything below happens on the actors'
loop, one message at a time. Should it end, whatever the reason, every run that is open is let go of.

Who conducts a run is the journal's word: a run is admitted once the journal has made it ours, followed from
afar while another process has it, and its outcome is told once the journal has kept it.

Restarts are OTP's `transient` children: only an actor that died is started again, on the last record and
after a backoff, and at most `max_restarts` times within `within_s`; then the run is cancelled on the server
and fails with an error that names it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from orchestrator.errors import JournalError, OrchestratorClosed, OrchestratorError, RunError, ThreadBusy
from orchestrator.journal import Conducted, Ended, Held, Refused
from orchestrator.runs.effects import Finish
from orchestrator.runs.inputs import CancelRequested, Started
from orchestrator.runs.lifecycle import Lifecycle, Timing
from orchestrator.runs.machine import WaitsFor
from orchestrator.runs.record import Phase
from orchestrator.runs.result import Notice
from orchestrator.runtime import LoopActor
from orchestrator.supervision.actor import RunActor
from orchestrator.supervision.admission import Admission
from orchestrator.supervision.escalation import ended_remotely, whereabouts
from orchestrator.supervision.log import RunLog
from orchestrator.supervision.messages import (
    Abandon,
    ActorEnded,
    Admit,
    CancelWanted,
    FindOrphans,
    Forward,
    Lost,
    MetadataEchoed,
    Opened,
    OutcomeKept,
    Sweep,
    ThreadTaken,
)
from orchestrator.supervision.news import JournalNews
from orchestrator.supervision.open_run import OpenRun
from orchestrator.supervision.state import Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.journal import Answer, Journal, StoredRun
    from orchestrator.protocol.objects import Run
    from orchestrator.runs.record import RunRecord
    from orchestrator.supervision.restarts import RestartPolicy
    from orchestrator.supervision.state import RunState

__all__ = ["Supervisor"]


@dataclass(frozen=True, slots=True)
class _Restart:
    run: OpenRun


@dataclass(frozen=True, slots=True)
class _Escalated:
    run: OpenRun
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
        take_up: Told a run of a process that has died, on the actors' loop; it does not wait.
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
        take_up: Callable[[StoredRun], None],
    ) -> None:
        super().__init__()
        self._journal = journal
        self._admission = Admission(max_concurrent_runs)
        self._policy = restart
        self._timing = timing
        self._jitter = jitter
        self._log_tool_data = log_tool_data
        self._ended = ended
        self._take_up = take_up
        self._open: dict[str, OpenRun] = {}
        self._turns: dict[str, Turn] = {}
        self._echoing: set[str] = set()

    def on_start(self) -> None:
        """Listen to the journal."""
        news = JournalNews(self._open, self.actor_ref.tell, self._take_up)
        self._journal.serve(news, self.loop_thread.loop)

    def on_receive(self, message: object) -> object:
        """Handle one message; an unknown one is a defect and ends the supervisor."""
        if isinstance(message, FindOrphans):
            return tuple(run for run in message.runs if self._is_orphan(run))
        match message:
            case Admit():
                self._admit(message)
            case Forward():
                self._forward(message)
            case ActorEnded() | MetadataEchoed() | ThreadTaken():
                self._hear(message)
            case Opened() | OutcomeKept() | Lost() | CancelWanted():
                self._hear_journal(message)
            case _Restart(run=run):
                self._start_actor(run)
            case _Escalated(run=run, error=error):
                self._let_go(run, error)
            case Sweep():
                self._journal.sweep()
            case Abandon():
                self._abandon_all("the orchestrator was closed")
            case _:
                raise TypeError(f"the supervisor does not know {type(message).__name__}")
        return None

    def _hear(self, news: ActorEnded | MetadataEchoed | ThreadTaken) -> None:
        match news:
            case ThreadTaken(key=key, thread_id=thread_id):
                self._admission.hold(key, thread_id)
            case MetadataEchoed(server=server):
                self._echoing.add(server)
            case ActorEnded(key=key, urn=urn, cause=cause):
                run = self._open.get(key)
                # An actor whose run was lost to another process ends when it comes to it.
                if run is not None and run.actor is not None and run.actor.actor_urn == urn:
                    self._actor_ended(run, cause)

    def _hear_journal(self, news: Opened | OutcomeKept | Lost | CancelWanted) -> None:
        run = self._open.get(news.key)
        if run is None:
            return  # it was let go of meanwhile
        match news:
            case Opened(answer=answer):
                self._opened(run, answer)
            case OutcomeKept():
                self._forget(run)
            case Lost(error=error):
                self._lose(run, error)
            case CancelWanted():
                run.report(CancelRequested())

    def on_terminated(self, cause: BaseException | None) -> None:
        """Leave nothing behind: nobody would hear any more that a run's actor has ended."""
        why = "the orchestrator was closed" if cause is None else f"its supervisor died of {cause!r}"
        self._abandon_all(why)
        for run in tuple(self._open.values()):
            self._close(run)
            if run.key in self._open:
                self._forget(run)

    def _admit(self, admit: Admit) -> None:
        record, state = admit.record, admit.state
        if state.server in self._echoing:
            record = replace(record, metadata_echoed=True)
        log = RunLog(state, tool_data=self._log_tool_data)
        run = OpenRun(state=state, serve=admit.serve, settle=admit.settle, log=log)
        self._open[record.key] = run
        if admit.claims:
            self._claim(run)
            return
        answer = self._journal.open(record, admit.address)
        if answer is not None:
            self._opened(run, answer)

    def _claim(self, run: OpenRun) -> None:
        answer = self._journal.claim(run.key)
        if answer is not None:
            self._opened(run, answer)

    def _opened(self, run: OpenRun, answer: Answer) -> None:
        match answer:
            case Conducted() if run.in_flight is None:
                self._conduct(run, answer)
            case Conducted(behind=behind):
                self._come_forward(run, behind)
            case Held(record=record, owner=owner) if run.in_flight is None:
                run.state.follow_elsewhere(record, owner)
                self._pass_on(run)
            case Held(owner=owner):
                self._lose(run, JournalError(f"run {run.key!r} is conducted by {owner}"))
            case Ended(record=record, finish=finish):
                run.state.finish_as_kept(record, finish)
                self._forget(run)
            case Refused(error=error):
                run.log.failed(error)
                run.state.finish(Finish(error=error))
                self._forget(run)

    def _conduct(self, run: OpenRun, answer: Conducted) -> None:
        """The run is ours: have it begin, or go on where another process left it."""
        record, ticket = answer.record, None
        if not answer.first:
            record = run.settle(record)
            ticket = self._journal.record(record)
            run.log.taken_over(record)
        run.state.conduct(record)
        in_flight = run.in_flight = run.serve(record)
        in_flight.barrier.recorded(ticket)
        run.state.served_by(in_flight)
        if run.wish is not None:
            in_flight.say(run.wish)
        if answer.cancel_requested:
            in_flight.say(CancelRequested())
        holder = None if record.thread_id is None else self._admission.holder(record.thread_id)
        new = record.run_id is None and record.phase is Phase.ADMITTED
        if new and record.request.on_busy_thread == "reject" and (holder or answer.behind):
            self._let_go(run, self._busy(record, holder, answer.behind))
            return
        if new and record.request.on_busy_thread == "interrupt":
            self._interrupt(record.thread_id, answer.behind)
        run.deferred = record.phase is not Phase.ADMITTED
        if not run.deferred:
            self._start_actor(run)
        run.state.behind = answer.behind
        if answer.behind is None:
            self._queue(run, record)
            self._start_admitted()

    def _come_forward(self, run: OpenRun, behind: str | None) -> None:
        """The run that had the thread in another process is over."""
        waited, run.state.behind = run.state.behind, behind
        if waited is not None and behind is None and not run.state.finished:
            self._queue(run, run.state.record)
            self._start_admitted()

    def _pass_on(self, run: OpenRun) -> None:
        """Another process conducts the run: what was asked of it is for the journal, or ends the watching."""
        wish, run.wish = run.wish, None
        if isinstance(wish, CancelRequested):
            self._journal.request_cancel(run.key)
        elif wish is not None:
            self._let_go(run, self._abandoned(run, "it was left to the process that conducts it"))

    def _lose(self, run: OpenRun, error: JournalError) -> None:
        """Stop acting on a run at once, and follow whoever conducts it now."""
        if run.in_flight is None:
            return
        run.log.lost(error)
        run.in_flight.close()
        run.in_flight = run.closing = None
        if run.coming is not None:
            run.coming.cancel()
            run.coming = None
        actor, run.actor = run.actor, None
        if actor is not None:
            actor.stop(block=False)
        self._leave_place(run)
        run.state.follow_elsewhere(run.state.record, "another process")
        self._claim(run)

    def _interrupt(self, thread_id: str | None, elsewhere: str | None) -> None:
        """Have every run end that has the thread or waits for it."""
        if elsewhere is not None:
            self._journal.request_cancel(elsewhere)
        if thread_id is not None:
            for key in (*self._admission.waiting(thread_id), *self._admission.holders(thread_id)):
                self._open[key].report(CancelRequested())

    def _queue(self, run: OpenRun, record: RunRecord) -> None:
        """Have a run wait for its thread, if it must.

        One that is adopted exists, and has the thread on the server: were it to wait for a run that itself
        waits for this one's end, neither would go on. It waits only for one that conducts the same run.
        """
        thread_id, adopted = record.thread_id, record.run_id
        holders = () if thread_id is None else self._admission.holders(thread_id)
        goes_on = record.phase is not Phase.ADMITTED
        if goes_on or (adopted and all(self._open[key].state.record.run_id != adopted for key in holders)):
            self._admission.join(run.key, thread_id)
        elif self._admission.ask(run.key, thread_id, next_in_line=adopted is not None):
            assert thread_id is not None
            run.state.turn = self._turns.setdefault(thread_id, Turn(self._open[holders[0]].state))

    def _is_orphan(self, run: Run) -> bool:
        records = (known.state.record for known in self._open.values())
        return not run.is_terminal and not any(
            run.id in record.run_ids or record.is_marked(run) for record in records
        )

    def _busy(self, record: RunRecord, holder: str | None, elsewhere: str | None) -> ThreadBusy:
        run_id = None if holder is None else self._open[holder].state.record.run_id
        whose = "another process" if holder is None else "this orchestrator"
        return ThreadBusy(
            f"thread {record.thread_id} is held by run {run_id or holder or elsewhere!r} of {whose}, and "
            f"on_busy_thread is 'reject': wait for that run, or use 'enqueue' or 'interrupt'",
            thread_id=record.thread_id or "",
            run_id=run_id,
        )

    def _start_admitted(self) -> None:
        for key in self._admission.admitted():
            run = self._open[key]
            if run.deferred:
                run.deferred = False
                self._start_actor(run)
            else:
                run.report(Started())

    def _start_actor(self, run: OpenRun) -> None:
        if self._open.get(run.key) is not run:
            return
        run.coming = None
        run.actor = RunActor.start(
            resume=partial(self._resume, run.key),
            in_flight=run.serving,
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
        if run is None or run.state is not forward.state:
            return
        run.report(forward.input)
        if run.state.elsewhere is not None:
            self._pass_on(run)

    def _actor_ended(self, run: OpenRun, cause: BaseException | None) -> None:
        run.actor = None
        if run.state.finished:
            self._close(run)
        elif cause is None:
            # Pykka's `ActorRegistry.stop_all()`, called by somebody else in this process, reaches our actors.
            self._let_go(run, self._abandoned(run, "its actor was stopped"))
        else:
            self._recover(run, cause)

    def _recover(self, run: OpenRun, cause: BaseException) -> None:
        pause = self._policy.pause_s(run.deaths, time.monotonic())
        if pause is None:
            self._escalate(run, cause)
            return
        run.state.restarts += 1
        self._restart_later(run, cause, pause)

    def _restart_later(self, run: OpenRun, cause: BaseException, pause: float) -> None:
        run.log.restarted(cause, restarts=len(run.deaths), pause_s=pause)
        run.state.recovers = WaitsFor.BACKOFF, f"its actor died, restart in {pause:g} s"
        run.state.publish(
            Notice(event="run.restarted", run_id=run.state.record.run_id, detail=type(cause).__name__)
        )
        run.coming = self.loop_thread.loop.call_later(pause, self._tell_self, _Restart(run))

    def _tell_self(self, message: object) -> None:
        if not self.actor_stopped.is_set():
            self.actor_ref.tell(message)

    def _escalate(self, run: OpenRun, cause: BaseException) -> None:
        run.log.escalated(cause, deaths=len(run.deaths))
        run.state.recovers = WaitsFor.SERVER, "its actor died too often, the run is being cancelled"
        run.serving.stop_tools()
        coroutine = self._cancel_and_fail(run, run.state.record, cause)
        run.coming = self.loop_thread.create_task(coroutine, name=f"{run.key}:escalate")

    async def _cancel_and_fail(self, run: OpenRun, record: RunRecord, cause: BaseException) -> None:
        what = f"its actor died {len(run.deaths)} times in {self._policy.within_s:g} s"
        run_id, became = await ended_remotely(run.serving, record, self._timing.retry, self._jitter)
        error = RunError(
            f"run {run_id or run.key!r} on thread {record.thread_id} was given up: {what}, at last of "
            f"{type(cause).__name__}: {cause}; {became}",
            thread_id=record.thread_id,
            run_id=run_id,
            status=record.status,
        )
        error.__cause__ = cause
        self._tell_self(_Escalated(run, error))

    def _abandoned(self, run: OpenRun, why: str) -> OrchestratorClosed:
        record = run.state.record
        return OrchestratorClosed(
            f"{why} before run {record.run_id or run.key!r} on thread {record.thread_id} had ended "
            f"(phase {record.phase}, status {record.status}); {whereabouts(record)}"
        )

    def _abandon_all(self, why: str) -> None:
        for run in tuple(self._open.values()):
            self._abandon(run, why)

    def _abandon(self, run: OpenRun, why: str) -> None:
        if run.closing is not None:
            self._forget(run)  # nobody waits for the journal any longer
        else:
            self._let_go(run, self._abandoned(run, why))

    def _let_go(self, run: OpenRun, error: OrchestratorError) -> None:
        """End a run from outside its machine."""
        if self._open.get(run.key) is not run:
            return
        if not run.state.finished:
            run.log.failed(error)
            run.state.finish(Finish(error=error))
        if run.in_flight is not None:
            run.in_flight.close()
        if run.coming is not None:
            run.coming.cancel()
        if run.actor is None:
            self._close(run)
        else:
            run.actor.stop(block=False)

    def _close(self, run: OpenRun) -> None:
        """Nothing of the run is left here: have the journal keep its outcome, if it is one."""
        finish = run.state.noted
        if run.in_flight is not None and not isinstance(finish.error, OrchestratorClosed):
            run.closing = self._journal.finish(run.state.record, finish)
        if run.closing is None:
            self._forget(run)

    def _forget(self, run: OpenRun) -> None:
        """Forget a run, and only then tell who waits for it."""
        del self._open[run.key]
        self._journal.let_go(run.key)
        self._leave_place(run)
        self._ended(run.state)
        self._start_admitted()

    def _leave_place(self, run: OpenRun) -> None:
        heir = self._admission.leave(run.key)
        if heir is not None:
            self._open[heir].state.turn = None
        self._pass_turn(run.state.record.thread_id)

    def _pass_turn(self, thread_id: str | None) -> None:
        """Let those who wait for a thread see who has it now."""
        if thread_id is None or thread_id not in self._turns:
            return
        holder = self._admission.holder(thread_id)
        if holder is None:
            del self._turns[thread_id]
        else:
            self._turns[thread_id].holder = self._open[holder].state
