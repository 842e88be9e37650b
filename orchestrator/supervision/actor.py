"""The actor that conducts one run: it feeds the lifecycle and performs the effects.

Every handler is short and never waits: requests and tools are under way elsewhere (`InFlight`) and tell it
what came of them, so a cancel is handled within one turn of the loop, whatever else is going on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, assert_never

import pykka

from orchestrator.runs.effects import (
    CancelRun,
    ClearTimer,
    CloseStream,
    CreateRun,
    CreateThread,
    Effect,
    FetchTranscript,
    Finish,
    ListRuns,
    Publish,
    Record,
    RetrieveRun,
    SetTimer,
    StartTools,
    StopTools,
    SubmitToolOutputs,
    Withdraw,
)
from orchestrator.runs.inputs import Timer, TimerFired
from orchestrator.runs.lifecycle import IllegalInput
from orchestrator.runtime import LoopActor
from orchestrator.supervision.messages import ActorEnded, MetadataEchoed, ThreadTaken

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from orchestrator.journal import Journal
    from orchestrator.runs.inputs import Input
    from orchestrator.runs.lifecycle import Lifecycle
    from orchestrator.runs.record import RunRecord
    from orchestrator.supervision.in_flight import InFlight
    from orchestrator.supervision.log import RunLog
    from orchestrator.supervision.state import RunState

__all__ = ["RunActor"]


class RunActor(LoopActor):
    """Conducts one run from the record it is given. Its messages are the lifecycle's inputs.

    Args:
        resume: Makes a machine that goes on from the run's last record.
        in_flight: What is under way for the run.
        state: The run as it is seen from outside.
        log: Says what happens to it.
        journal: Keeps the records.
        watcher: Told `ThreadTaken`, where the run makes its thread, `MetadataEchoed`, where it learns that,
            and `ActorEnded`, once.
    """

    def __init__(
        self,
        *,
        resume: Callable[[], Lifecycle],
        in_flight: InFlight,
        state: RunState,
        log: RunLog,
        journal: Journal,
        watcher: Callable[[ActorEnded | MetadataEchoed | ThreadTaken], None],
    ) -> None:
        super().__init__()
        self._resume = resume
        self._in_flight = in_flight
        self._state = state
        self._log = log
        self._journal = journal
        self._watcher = watcher
        self._timers: dict[Timer, asyncio.TimerHandle] = {}

    def on_start(self) -> None:
        """Take the run over."""
        self._lifecycle = self._resume()
        self._state.conducted_by(self._lifecycle)
        self._in_flight.attach(self.actor_ref.tell, self._lifecycle.record)

    def on_receive(self, message: Input) -> None:
        """Feed one input to the lifecycle and perform what it wants done."""
        if self._in_flight.closed:
            return  # the run is over, or another process's
        self._in_flight.take(message)
        before = self._lifecycle.record
        try:
            effects = self._lifecycle.receive(message, time.monotonic())
        except IllegalInput as error:
            self._log.illegal_input(error)
            return
        self._log.moved(before, self._lifecycle.record)
        for effect in effects:
            self._perform(effect)
        self._tell_news(before, self._lifecycle.record)

    def _tell_news(self, before: RunRecord, record: RunRecord) -> None:
        """Tell the supervisor what is of use to other runs."""
        if before.thread_id is None and record.thread_id is not None:
            self._watcher(ThreadTaken(key=self._state.key, thread_id=record.thread_id))
        if record.metadata_echoed and not before.metadata_echoed:
            self._watcher(MetadataEchoed(server=self._state.server))

    def on_terminated(self, cause: BaseException | None) -> None:
        """Leave what is under way to whoever comes next."""
        for handle in self._timers.values():
            handle.cancel()
        self._in_flight.detach()
        self._watcher(ActorEnded(key=self._state.key, urn=self.actor_urn, cause=cause))

    def _perform(self, effect: Effect) -> None:
        match effect:
            case (
                CreateThread()
                | CreateRun()
                | RetrieveRun()
                | ListRuns()
                | FetchTranscript()
                | SubmitToolOutputs()
                | CancelRun()
            ):
                self._in_flight.send(effect)
            case CloseStream():
                self._in_flight.close_stream(effect.number)
            case Withdraw():
                self._in_flight.withdraw(effect.number)
            case StartTools():
                record = self._lifecycle.record
                self._in_flight.start_tools(
                    effect, run_id=record.run_id or "", thread_id=record.thread_id or ""
                )
            case StopTools():
                self._in_flight.stop_tools()
            case SetTimer() | ClearTimer():
                self._set_timer(effect)
            case Record():
                self._in_flight.barrier.recorded(self._journal.record(effect.record))
            case Publish():
                self._state.publish(effect.event)
            case Finish():
                self._finish(effect)
            case _:
                assert_never(effect)
        self._log.performed(effect)

    def _set_timer(self, effect: SetTimer | ClearTimer) -> None:
        earlier = self._timers.pop(effect.timer, None)
        if earlier is not None:
            earlier.cancel()
        if isinstance(effect, SetTimer):
            fired = TimerFired(timer=effect.timer, serial=effect.serial)
            self._timers[effect.timer] = self.loop_thread.loop.call_later(effect.delay_s, self._fire, fired)

    def _fire(self, fired: TimerFired) -> None:
        self._timers.pop(fired.timer, None)
        try:
            self.actor_ref.tell(fired)
        except pykka.ActorDeadError:
            return

    def _finish(self, finish: Finish) -> None:
        self._in_flight.close()
        self._state.finish(finish)
        self.stop()
