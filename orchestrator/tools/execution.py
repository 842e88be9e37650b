"""One tool call under way: when it begins, who settles it, and what stops it.

Nothing of the user's runs on the thread that starts or cancels a call, not even validators: arguments are
parsed and results are encoded where the tool runs. This module knows neither how threads are shared out
(that is the executor's) nor what an outcome is used for.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.telemetry import get_logger
from orchestrator.tools.call import Call, Result, call_async, call_sync, failed
from orchestrator.tools.outcome import FailureKind, ToolFailure, ToolOutcome, error_output, shortened

if TYPE_CHECKING:
    import asyncio
    import contextvars
    from collections.abc import Callable

    from orchestrator.protocol.objects import FunctionCall
    from orchestrator.tools.context import ToolContext
    from orchestrator.tools.deadlines import Deadline, Deadlines
    from orchestrator.tools.registry import Tool
    from orchestrator.tools.threads import ThreadPool

__all__ = ["ToolExecution"]

_NAME_LENGTH = 200

_log = get_logger(__name__)


class ToolExecution:
    """One call under way; made by `ToolExecutor.start`. Its owner calls nothing but `cancel`.

    It is *settled* once, by whoever comes first: the tool itself, its deadline, or `cancel`. What the tool
    does after that is discarded. It is *running* while the tool has a thread or a task.

    Args:
        function: What the model asked for.
        context: The call, with its deadline so far; what a tool may see of it.
        contextvars_context: The variables that the tool sees; entered once.
        deadlines: Bounds the call, and calls back when no thread of a tool's is there to do it.
        max_output_bytes: The longest output, in bytes of UTF-8.
        on_done: Told the outcome, once.
        on_over: Told when the outcome is delivered and the tool runs no more; once or twice.
    """

    def __init__(
        self,
        function: FunctionCall,
        context: ToolContext,
        *,
        contextvars_context: contextvars.Context,
        deadlines: Deadlines,
        max_output_bytes: int,
        on_done: Callable[[ToolOutcome], None],
        on_over: Callable[[ToolExecution], None],
    ) -> None:
        self._function = function
        self._context = context
        self._contextvars = contextvars_context
        self._deadlines = deadlines
        self._max_output_bytes = max_output_bytes
        self._on_done = on_done
        self._on_over = on_over
        self._lock = threading.Lock()  # guards settled, running and the timer
        self._settled = self._running = self._delivered = False
        self._started = time.monotonic()
        self._began: float | None = None
        self._timer: Deadline | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
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
    def stuck(self) -> bool:
        """Whether a thread is held by a call that nobody waits for."""
        return self._running and self._settled and self._loop is None

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
        self._settle_later(Result(error_output(kind, message), ToolFailure(kind=kind, message=message)))

    def fail(self, error: Exception) -> None:
        """Settle with an error that kept the tool from being run; delivered from the deadlines' thread."""
        self._settle_later(failed(error, self._max_output_bytes))

    def run_in_pool(self, pool: ThreadPool, tool: Tool[..., Any]) -> None:
        """Queue a synchronous tool. Its own timeout counts from the moment a thread takes it up.

        Raises:
            RuntimeError: The system refuses to start the first thread.
        """
        self._set_timer(self._context.deadline)
        pool.submit(partial(self._run_on_thread, tool))

    def run_on_loop(self, loop: asyncio.AbstractEventLoop, tool: Tool[..., Any]) -> None:
        """Have a loop run an asynchronous tool. The loop may be busy, so its timeout counts from now.

        Raises:
            RuntimeError: The loop is closed.
        """
        self._loop = loop
        self._set_timer(self._context.deadline)
        loop.call_soon_threadsafe(self._launch, loop, tool)

    def _run_on_thread(self, tool: Tool[..., Any]) -> None:
        if self._begin(time.monotonic() + tool.timeout_s):
            self._end(self._contextvars.run(call_sync, self._call(tool)))

    def _launch(self, loop: asyncio.AbstractEventLoop, tool: Tool[..., Any]) -> None:
        if self._begin(self._context.deadline):
            name = f"orchestrator-tool-{tool.name}"
            self._task = loop.create_task(self._run_as_task(tool), name=name, context=self._contextvars)

    async def _run_as_task(self, tool: Tool[..., Any]) -> None:
        try:
            result = await call_async(self._call(tool))
        except KeyboardInterrupt as error:
            self._end(failed(error, self._max_output_bytes))
            raise
        self._end(result)

    def _call(self, tool: Tool[..., Any]) -> Call:
        return Call(
            tool=tool,
            arguments=self._function.arguments,
            context=self._context,
            max_output_bytes=self._max_output_bytes,
        )

    def _begin(self, deadline: float) -> bool:
        """Say that the tool runs from here on, unless nobody waits for it any more."""
        with self._lock:
            if self._settled:
                return False
            self._running = True
            self._began = time.monotonic()
        if deadline < self._context.deadline:
            self._context = replace(self._context, deadline=deadline)
            self._set_timer(deadline)
        self._log.debug("tool.started")
        return True

    def _end(self, result: Result) -> None:
        """Say that the tool has returned its thread, or is about to end its task."""
        self._task = None
        self._running = False
        if self._claim():
            self._deliver(result)
        else:
            self._log.debug("tool.returned_late", duration_s=self._duration_s())
            self._on_over(self)

    def _set_timer(self, deadline: float) -> None:
        with self._lock:
            if self._timer is not None:
                self._deadlines.cancel(self._timer)
            if not self._settled:
                self._timer = self._deadlines.at(deadline, self._expire)

    def _expire(self) -> None:
        if self._claim():
            self._interrupt()
            message = self._lateness()
            self._deliver(
                Result(error_output("timeout", message), ToolFailure(kind="timeout", message=message))
            )

    def _lateness(self) -> str:
        since = self._started if self._began is None else self._began
        within = f"within {round(max(0.0, self._context.deadline - since), 2):g} seconds"
        if self._began is not None:
            return f"no result {within}"
        if self._context.deadline <= since:
            return "not begun: no time was left for it"
        busy = "every thread was busy" if self._loop is None else "the event loop was busy"
        return f"not begun {within}: {busy}"

    def _settle_later(self, result: Result) -> None:
        if self._claim():
            self._interrupt()
            self._deadlines.soon(partial(self._deliver, result))

    def _claim(self) -> bool:
        """Settle the call; False when somebody else has."""
        with self._lock:
            if self._settled:
                return False
            self._settled = True
            if self._timer is not None:
                self._deadlines.cancel(self._timer)
            return True

    def _interrupt(self) -> None:
        self._context.stop.set()
        if self._loop is not None:
            with suppress(RuntimeError):  # a closed loop runs nothing any more
                self._loop.call_soon_threadsafe(self._cancel_task)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _deliver(self, result: Result) -> None:
        outcome = ToolOutcome(
            call_id=self._context.call_id,
            name=self.name,
            output=result.output,
            error=result.failure,
            duration_s=self._duration_s(),
        )
        try:
            self._report(outcome)
        finally:  # whatever the application's log handlers do, somebody waits for the outcome
            self._tell(outcome)

    def _tell(self, outcome: ToolOutcome) -> None:
        try:
            self._on_done(outcome)
        except Exception:  # noqa: BLE001 - a lost outcome must not take down a thread that serves all calls
            self._log.exception("tool.outcome_lost")
        self._delivered = True
        self._on_over(self)

    def _report(self, outcome: ToolOutcome) -> None:
        duration_s = round(outcome.duration_s, 6)
        if outcome.error is None:
            self._log.debug("tool.finished", duration_s=duration_s)
        elif outcome.error.kind == "cancelled":
            self._log.debug("tool.cancelled", duration_s=duration_s)
        else:
            kind, origin = outcome.error.kind, outcome.error.origin
            self._log.warning("tool.failed", kind=kind, exception=origin, duration_s=duration_s)

    def _duration_s(self) -> float:
        return 0.0 if self._began is None else time.monotonic() - self._began
