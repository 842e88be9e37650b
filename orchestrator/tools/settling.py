"""Who settles a tool call, once, and how that is told.

Owns the call's deadline, its one outcome, and what is said of it on the way. It does not know how a call
runs.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Final

from orchestrator.telemetry import get_logger
from orchestrator.tools.call import Result, refused
from orchestrator.tools.outcome import ToolNotice, ToolOutcome, shortened
from orchestrator.tools.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.tools.context import ToolContext
    from orchestrator.tools.deadlines import Deadline, Deadlines
    from orchestrator.tools.declaration import OnError
    from orchestrator.tools.outcome import FailureKind

__all__ = ["Settling"]

_NAME_LENGTH: Final = 200

_log = get_logger(__name__)


class Settling(ABC):
    """The end of a call; see `orchestrator.tools.execution.ToolExecution`, which knows its stages.

    A call is *settled* once, by whoever comes first: the tool itself, its deadline, a denial, or `cancel`.
    What the tool does after that is discarded. It is *running* while code of the user's has a thread or a
    task.

    Args:
        context: The call, with its deadline so far.
        deadlines: Bounds the call, and calls back when no thread of a tool's is there to do it.
        on_notice: Told what the call has to say before it is over.
        on_done: Told the outcome, once.
    """

    def __init__(
        self,
        context: ToolContext,
        *,
        deadlines: Deadlines,
        on_notice: Callable[[ToolNotice], None],
        on_done: Callable[[ToolOutcome], None],
    ) -> None:
        self._context = context
        self._deadline = context.deadline
        self._deadlines = deadlines
        self._on_notice = on_notice
        self._on_done = on_done
        self._lock = threading.Lock()  # guards what is settled, running, or held
        self._settled = self._running = self._delivered = self._awaits_approval = False
        self._on_error: OnError = "report"
        self._started = time.monotonic()
        self._began: float | None = None
        self._attempts = 0
        self._timer: Deadline | None = None
        self._progress: Progress | None = None
        self._log = _log.bind(
            tool=shortened(context.tool, _NAME_LENGTH),
            call_id=context.call_id,
            run_id=context.run_id,
            thread_id=context.thread_id,
        )

    @property
    def name(self) -> str:
        """The tool's name, as the model wrote it."""
        return self._context.tool

    @property
    def running(self) -> bool:
        """Whether the tool has a thread or a task right now."""
        return self._running

    @property
    def over(self) -> bool:
        """Whether the outcome is delivered and the tool runs no more."""
        return self._delivered and not self._running

    def cancel(self) -> None:
        """Stop the call and settle it as `cancelled`, unless it is settled. Never waits; repeatable.

        From any thread. A waiting call never begins; an asynchronous tool's task is cancelled; a synchronous
        one sees `context.cancelled`. The outcome is delivered from another thread.
        """
        self.refuse("cancelled", "the call was cancelled")

    def refuse(self, kind: FailureKind, message: str) -> None:
        """Settle without a result of the tool's; delivered from the deadlines' thread."""
        self._settle_later(refused(kind, message))

    def _bound(self, deadline: float) -> None:
        """Have the call end by this time at the latest, if nothing ends it earlier."""
        with self._lock:
            if deadline == math.inf or (self._timer is not None and deadline >= self._deadline):
                return
            self._deadline = deadline
            if self._timer is not None:
                self._deadlines.cancel(self._timer)
            if not self._settled:
                self._timer = self._deadlines.at(deadline, self._expire)

    def _expire(self) -> None:
        if self._claim():
            kind: FailureKind = "denied" if self._awaits_approval else "timeout"
            message = self._lateness()
            self._interrupt()
            self._deliver(refused(kind, message))

    def _settle_later(self, result: Result) -> bool:
        if not self._claim():
            return False
        self._interrupt()
        self._deadlines.soon(partial(self._deliver, result))
        return True

    def _claim(self) -> bool:
        """Settle the call; False when somebody else has."""
        with self._lock:
            if self._settled:
                return False
            self._settled = True
            if self._timer is not None:
                self._deadlines.cancel(self._timer)
            return True

    def _report_progress(self, detail: str, fraction: float | None) -> None:
        with self._lock:
            if self._progress is None:
                self._progress = Progress(self._deadlines, self._say_progress)
        self._progress.report(detail, fraction)

    def _say_progress(self, detail: str, fraction: float | None) -> None:
        self._say(
            ToolNotice(call_id=self._context.call_id, kind="progress", detail=detail, fraction=fraction)
        )

    def _say(self, notice: ToolNotice) -> None:
        if not self._settled:
            self._on_notice(notice)

    def _deliver(self, result: Result) -> None:
        outcome = ToolOutcome(
            call_id=self._context.call_id,
            name=self.name,
            output=result.output,
            error=result.failure,
            fatal=self._fatal(result),
            attempts=self._attempts,
            duration_s=self._duration_s(),
        )
        try:
            self._report(outcome)
        finally:  # whatever the application's log handlers do, somebody waits for the outcome
            self._tell(outcome)

    def _fatal(self, result: Result) -> BaseException | None:
        """What ends the run, where the tool says that its failures do."""
        failure = result.failure
        if failure is None or self._on_error == "report":
            return None
        if failure.kind == "timeout":
            return TimeoutError(failure.message)
        return result.error if failure.kind == "raised" else None

    def _tell(self, outcome: ToolOutcome) -> None:
        try:
            self._on_done(outcome)
        except Exception:  # noqa: BLE001 - a lost outcome must not take down a thread that serves all calls
            self._log.exception("tool.outcome_lost")
        self._delivered = True
        self._check_over()

    def _report(self, outcome: ToolOutcome) -> None:
        duration_s = round(outcome.duration_s, 6)
        if outcome.error is None:
            self._log.debug("tool.finished", duration_s=duration_s)
        elif outcome.error.kind == "cancelled":
            self._log.debug("tool.cancelled", duration_s=duration_s)
        else:
            self._log.warning(
                "tool.failed",
                kind=outcome.error.kind,
                exception=outcome.error.origin,
                duration_s=duration_s,
                attempts=outcome.attempts,
                stuck_threads=self._stuck_threads(),
            )

    def _duration_s(self) -> float:
        return 0.0 if self._began is None else time.monotonic() - self._began

    @abstractmethod
    def _interrupt(self) -> None:
        """Stop what runs or waits for the call, which is settled."""

    @abstractmethod
    def _lateness(self) -> str:
        """Say what kept the call from having an outcome in time."""

    @abstractmethod
    def _stuck_threads(self) -> int:
        """How many threads are held by calls that nobody waits for."""

    @abstractmethod
    def _check_over(self) -> None:
        """Look whether that was the last of the call."""
