"""The actor that conducts one run: it feeds the lifecycle and performs the effects.

Every handler is short and never waits: requests and tools are under way elsewhere (`InFlight`) and tell it
what came of them, so a cancel is handled within one turn of the loop, whatever else is going on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

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
    RequestEffect,
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

    from orchestrator.journal import Journal
    from orchestrator.runs.inputs import Input
    from orchestrator.runs.lifecycle import Lifecycle
    from orchestrator.runs.record import RunRecord
    from orchestrator.supervision.in_flight import InFlight
    from orchestrator.supervision.log import RunLog
    from orchestrator.supervision.state import RunState

__all__ = ["RunActor"]


class RunActor(LoopActor):
    """Conducts one run from the record it is given. Its messages are tuples of the lifecycle's inputs.

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
        self._in_flight.attach(self._tell, self._lifecycle.record)

    def _tell(self, *inputs: Input) -> None:
        self._actor_ref.tell(inputs)

    def on_receive(self, message: tuple[Input, ...]) -> None:
        """Feed each input to the lifecycle and perform what it wants done."""
        for input_ in message:
            if self._in_flight.closed:
                return  # the run is over, or another process's
            self._in_flight.take(input_)
            self._feed(input_)

    def _feed(self, input_: Input) -> None:
        before = self._lifecycle.record
        try:
            effects = self._lifecycle.receive(input_, time.monotonic())
        except IllegalInput as error:
            self._log.illegal_input(error)
            return
        record = self._lifecycle.record
        if record is not before:
            self._log.moved(before, record)
        for effect in effects:
            self._perform(effect)
        if record is not before:
            self._tell_news(before, record)

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
        self._performed_by[type(effect)](self, effect)
        self._log.performed(effect)

    def _send(self, effect: RequestEffect) -> None:
        self._in_flight.send(effect)

    def _close_stream(self, effect: CloseStream) -> None:
        self._in_flight.close_stream(effect.number)

    def _withdraw(self, effect: Withdraw) -> None:
        self._in_flight.withdraw(effect.number)

    def _start_tools(self, effect: StartTools) -> None:
        record = self._lifecycle.record
        self._in_flight.start_tools(effect, run_id=record.run_id or "", thread_id=record.thread_id or "")

    def _stop_tools(self, _: StopTools) -> None:
        self._in_flight.stop_tools()

    def _record(self, effect: Record) -> None:
        self._in_flight.barrier.recorded(self._journal.record(effect.record))

    def _publish(self, effect: Publish) -> None:
        self._state.publish(*effect.events)

    def _set_timer(self, effect: SetTimer | ClearTimer) -> None:
        earlier = self._timers.pop(effect.timer, None)
        if earlier is not None:
            earlier.cancel()
        if isinstance(effect, SetTimer):
            fired = TimerFired(timer=effect.timer, serial=effect.serial)
            loop_thread = self.loop_thread
            self._timers[effect.timer] = loop_thread.loop.call_later(
                effect.delay_s, self._fire, fired, context=loop_thread.context
            )

    def _fire(self, fired: TimerFired) -> None:
        self._timers.pop(fired.timer, None)
        try:
            self._tell(fired)
        except pykka.ActorDeadError:
            return

    def _finish(self, finish: Finish) -> None:
        self._in_flight.close()
        self._state.finish(finish)
        self.stop()

    # A run has hundreds of them, and asking one class after the other takes long.
    _performed_by: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        CreateThread: _send,
        CreateRun: _send,
        RetrieveRun: _send,
        ListRuns: _send,
        FetchTranscript: _send,
        SubmitToolOutputs: _send,
        CancelRun: _send,
        CloseStream: _close_stream,
        Withdraw: _withdraw,
        StartTools: _start_tools,
        StopTools: _stop_tools,
        SetTimer: _set_timer,
        ClearTimer: _set_timer,
        Record: _record,
        Publish: _publish,
        Finish: _finish,
    }
