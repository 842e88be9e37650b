"""What the logs say of a run: stable event names, and the ids that every one of them carries.

Owns the names, their levels and what may be shown; the ids are bound once, when they become known. It decides
nothing, and shows what a tool was called with and what it answered only where that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.runs.effects import CancelRun, Effect, Finish, Publish, StartTools, SubmitToolOutputs
from orchestrator.runs.record import Phase
from orchestrator.runs.result import Notice
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from orchestrator.errors import OrchestratorError
    from orchestrator.runs.record import RunRecord
    from orchestrator.runs.result import ToolCallResult
    from orchestrator.supervision.state import RunState
    from orchestrator.telemetry import Logger

__all__ = ["RunLog"]

log = get_logger(__name__)

_WARNED_OF = ("run.stalled", "run.duplicate")
"""The notices that somebody should look at. A gap is none: a stream that a cancel cuts short shows one."""

_TOLD_OF = ("run.gap", "run.blocked", "run.rerun")
"""The others that are worth a line."""


class RunLog:
    """One run's lines, whoever conducts it. On the actors' loop.

    Args:
        state: The run as it is seen from outside, where its ids are known.
        tool_data: Whether arguments and outputs of tool calls are shown.
    """

    def __init__(self, state: RunState, *, tool_data: bool) -> None:
        self._state = state
        self._tool_data = tool_data
        self._ids: tuple[str | int | None, ...] = ()
        self._bound = log

    def moved(self, before: RunRecord, after: RunRecord) -> None:
        """Say what the run's records show, before what comes of it is done."""
        if before.phase is Phase.ADMITTED and after.phase in (Phase.CREATING, Phase.WATCHING):
            self._log.info("run.started")
        if after.run_id is not None and after.run_id != before.run_id:
            self._log.info("run.created")
        if after.results != before.results:
            known = {(result.round, result.call_id) for result in before.results}
            for result in after.results:
                if (result.round, result.call_id) not in known:
                    self._tool_answered(result)

    def performed(self, effect: Effect) -> None:
        """Say what was done, where it is worth a line."""
        tell = self._told_by.get(type(effect))
        if tell is not None:
            tell(self, effect)

    def _submitted(self, effect: SubmitToolOutputs) -> None:
        self._log.info("run.submitted", round=self._state.record.round, outputs=len(effect.outputs))

    def _cancelled(self, _: CancelRun) -> None:
        self._log.info("run.cancelled")

    def _published(self, effect: Publish) -> None:
        for event in effect.events:
            if isinstance(event, Notice):
                if event.event in _WARNED_OF:
                    self._log.warning(event.event, detail=event.detail)
                elif event.event in _TOLD_OF:
                    self._log.info(event.event, detail=event.detail)

    def _finished(self, effect: Finish) -> None:
        if effect.result is not None:
            result = effect.result
            self._log.info("run.completed", status=result.status, tool_calls=len(result.tool_calls))
        elif effect.error is not None:
            self.failed(effect.error)

    def failed(self, error: OrchestratorError) -> None:
        """Say that the run ends with an error."""
        self._log.warning("run.failed", error=type(error).__name__, reason=str(error))

    def illegal_input(self, error: Exception) -> None:
        """Say that the run was told what its phase does not take."""
        self._log.warning("run.illegal_input", reason=str(error))

    def taken_over(self, record: RunRecord) -> None:
        """Say that the run goes on here, which another process began."""
        self._log.info("run.taken_over", phase=str(record.phase), round=record.round)

    def lost(self, error: OrchestratorError) -> None:
        """Say that the run is another process's to conduct from now on."""
        self._log.warning("run.lost", reason=str(error))

    def restarted(self, cause: BaseException, *, restarts: int, pause_s: float) -> None:
        """Say that the run's actor died and another one follows."""
        self._log.warning("run.restarted", cause=repr(cause), restarts=restarts, pause_s=pause_s)

    def escalated(self, cause: BaseException, *, deaths: int) -> None:
        """Say that the run's actors died too often, and that the run is given up."""
        self._log.warning("run.escalated", cause=repr(cause), deaths=deaths)

    def _tools_called(self, effect: StartTools) -> None:
        for call in effect.calls:
            shown = {"tool_arguments": call.function.arguments} if self._tool_data else {}
            self._log.info(
                "run.tool_called", tool=call.function.name, call_id=call.id, round=effect.round, **shown
            )

    def _tool_answered(self, result: ToolCallResult) -> None:
        shown = {"tool_output": result.output} if self._tool_data else {}
        self._log.info(
            "run.tool_answered",
            tool=result.name,
            call_id=result.call_id,
            round=result.round,
            duration_s=round(result.duration_s, 3),
            # The kind alone: what follows it may quote arguments.
            error=None if result.error is None else result.error.partition(":")[0],
            **shown,
        )

    @property
    def _log(self) -> Logger:
        record = self._state.record
        ids = (record.thread_id, record.run_id, self._state.last_request_id, record.attempt)
        if ids != self._ids:
            self._ids = ids
            self._bound = log.bind(
                run_key=record.key,
                thread_id=record.thread_id,
                run_id=record.run_id,
                request_id=self._state.last_request_id,
                attempt=record.attempt,
            )
        return self._bound

    _told_by: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        StartTools: _tools_called,
        SubmitToolOutputs: _submitted,
        CancelRun: _cancelled,
        Publish: _published,
        Finish: _finished,
    }
