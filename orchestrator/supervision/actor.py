"""The actor that conducts one run: it feeds the lifecycle and performs the effects.

Every handler is short and never waits: requests and tools are under way elsewhere (`InFlight`) and tell it
what came of them, so a cancel is handled within one turn of the loop, whatever else is going on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
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
)
from orchestrator.runs.inputs import Timer, TimerFired
from orchestrator.runs.lifecycle import IllegalInput
from orchestrator.runtime import LoopActor
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from orchestrator.journal import Journal
    from orchestrator.runs.inputs import Input
    from orchestrator.runs.lifecycle import Lifecycle
    from orchestrator.supervision.in_flight import InFlight
    from orchestrator.supervision.state import RunState

__all__ = ["ActorEnded", "RunActor", "ThreadTaken"]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorEnded:
    """A run's actor has ended; told to the supervisor whatever the reason.

    Attributes:
        key: The run's key.
        cause: What it died of, or `None` when it had finished its run or was stopped.
    """

    key: str
    cause: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadTaken:
    """A run has made the thread it will be on.

    Attributes:
        key: The run's key.
        thread_id: The thread.
    """

    key: str
    thread_id: str


class RunActor(LoopActor):
    """Conducts one run from the record it is given. Its messages are the lifecycle's inputs.

    Args:
        resume: Makes a machine that goes on from the run's last record.
        in_flight: What is under way for the run.
        state: The run as it is seen from outside.
        journal: Keeps the records.
        watcher: Told `ThreadTaken`, where the run makes its thread, and `ActorEnded`, once.
    """

    def __init__(
        self,
        *,
        resume: Callable[[], Lifecycle],
        in_flight: InFlight,
        state: RunState,
        journal: Journal,
        watcher: Callable[[ActorEnded | ThreadTaken], None],
    ) -> None:
        super().__init__()
        self._resume = resume
        self._in_flight = in_flight
        self._state = state
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
        self._in_flight.take(message)
        threadless = self._lifecycle.record.thread_id is None
        try:
            effects = self._lifecycle.receive(message, time.monotonic())
        except IllegalInput as error:
            log.warning("run.illegal_input", run_key=self._state.key, reason=str(error))
            return
        for effect in effects:
            self._perform(effect)
        thread_id = self._lifecycle.record.thread_id
        if threadless and thread_id is not None:
            self._watcher(ThreadTaken(key=self._state.key, thread_id=thread_id))

    def on_terminated(self, cause: BaseException | None) -> None:
        """Leave what is under way to whoever comes next."""
        for handle in self._timers.values():
            handle.cancel()
        self._in_flight.detach()
        self._watcher(ActorEnded(key=self._state.key, cause=cause))

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
            case StartTools():
                record = self._lifecycle.record
                self._in_flight.start_tools(
                    effect, run_id=record.run_id or "", thread_id=record.thread_id or ""
                )
            case StopTools():
                self._in_flight.stop_tools()
            case SetTimer():
                self._set_timer(effect)
            case ClearTimer():
                self._clear_timer(effect.timer)
            case Record():
                self._journal.record(effect.record)
            case Publish():
                self._state.publish(effect.event)
            case Finish():
                self._finish(effect)
            case _:
                assert_never(effect)
        self._log(effect)

    def _set_timer(self, effect: SetTimer) -> None:
        self._clear_timer(effect.timer)
        fired = TimerFired(timer=effect.timer, serial=effect.serial)
        self._timers[effect.timer] = self.loop_thread.loop.call_later(effect.delay_s, self._fire, fired)

    def _clear_timer(self, timer: Timer) -> None:
        handle = self._timers.pop(timer, None)
        if handle is not None:
            handle.cancel()

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

    def _log(self, effect: Effect) -> None:
        record = self._lifecycle.record
        known = {"run_key": record.key, "thread_id": record.thread_id, "run_id": record.run_id}
        match effect:
            case StartTools():
                log.info("run.tool_called", round=effect.round, calls=len(effect.calls), **known)
            case SubmitToolOutputs():
                log.info("run.submitted", round=record.round, outputs=len(effect.outputs), **known)
            case CancelRun():
                log.info("run.cancel_posted", **known)
            case Finish(result=result) if result is not None:
                log.info("run.finished", status=result.status, tool_calls=len(result.tool_calls), **known)
            case Finish(error=error):
                log.warning("run.failed", error=type(error).__name__, reason=str(error), **known)
            case _:
                return
