"""The threads and the loop that serve all tool calls of one orchestrator.

Synchronous tools share a bounded pool; asynchronous ones run on the loop they are given, or on one of their
own; one thread keeps the time. All start with their first use. It does not know how a call ends, nor how
often it is tried.
"""

from __future__ import annotations

import contextvars
import math
import threading
import time
from typing import TYPE_CHECKING

from orchestrator.errors import OrchestratorClosed
from orchestrator.telemetry import get_logger
from orchestrator.tools.approval import Approvals
from orchestrator.tools.context import ToolContext
from orchestrator.tools.deadlines import Deadlines
from orchestrator.tools.execution import ToolExecution
from orchestrator.tools.limits import ConcurrencyLimits
from orchestrator.tools.outcome import unknown_tool
from orchestrator.tools.threads import ThreadPool, ToolLoop
from orchestrator.tools.workplace import Workplace

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from orchestrator.protocol.objects import ToolCall
    from orchestrator.tools.approval import ApprovalHook
    from orchestrator.tools.middleware import Middleware
    from orchestrator.tools.outcome import ToolNotice, ToolOutcome
    from orchestrator.tools.registry import ToolRegistry

__all__ = ["ToolExecutor"]

_JOIN_S = 0.2

_log = get_logger(__name__)


def _unheard(notice: ToolNotice) -> None:
    """Where nobody asks, notices are not kept."""


class ToolExecutor:
    """Runs tool calls; owned by one orchestrator.

    A timeout never waits for a thread or a loop to be free: one daemon thread keeps all deadlines (see
    `orchestrator.tools.deadlines`). Threads are daemons, so that a tool which never returns cannot keep the
    process alive.

    Args:
        threads: The most threads for synchronous tools; see `ThreadPool` for those that get stuck.
        loop: The loop for asynchronous tools; `None` for a thread with a loop of its own.
        middleware: What stands around every call, the outermost first.
        approve: Decides of calls that need approval, before anybody is asked.
        max_output_bytes: The longest output sent to a model, in bytes of UTF-8; a longer one is cut.

    Attributes:
        loop: As given; a change counts for the calls that start afterwards.
    """

    def __init__(
        self,
        *,
        threads: int = 32,
        loop: asyncio.AbstractEventLoop | None = None,
        middleware: Sequence[Middleware] = (),
        approve: ApprovalHook | None = None,
        max_output_bytes: int = 512 * 1024,
    ) -> None:
        self.loop = loop
        self._pool = ThreadPool(threads, "orchestrator-tool")
        self._loop_thread = ToolLoop("orchestrator-tool-loop")
        self._deadlines = Deadlines("orchestrator-tool-deadlines")
        self._workplace = Workplace(
            pool=self._pool,
            loop=lambda: self.loop or self._loop_thread.loop(),
            deadlines=self._deadlines,
            limits=ConcurrencyLimits(),
            middleware=middleware,
            approve=approve,
            max_output_bytes=max_output_bytes,
        )
        self._changed = threading.Condition()
        self._live: set[ToolExecution] = set()
        self._closed = False

    @property
    def stuck_threads(self) -> int:
        """How many threads are held by synchronous tools that timed out or were cancelled."""
        return self._pool.stuck

    def start(
        self,
        tool_call: ToolCall,
        registry: ToolRegistry,
        *,
        run_id: str,
        thread_id: str,
        on_done: Callable[[ToolOutcome], None],
        on_notice: Callable[[ToolNotice], None] = _unheard,
        approvals: Approvals | None = None,
        ask: bool = False,
        state: object = None,
        timeout_s: float | None = None,
        contextvars_context: contextvars.Context | None = None,
    ) -> ToolExecution:
        """Start a call. Never waits, and raises nothing for what the model or the tool did.

        Args:
            tool_call: What the model asks for.
            registry: Where to look up the tool.
            run_id: The run that asks.
            thread_id: The run's thread.
            on_done: Told the outcome exactly once, a cancelled one included, from any thread but never from
                within `start` or `cancel`. It must be quick.
            on_notice: Told what the call has to say before that, likewise.
            approvals: Where it is asked for approval; without, nobody can approve it.
            ask: Whether it needs approval, whatever the tool says: it may have been made before.
            state: The user's object for `ToolContext.state`.
            timeout_s: Seconds from now after which the outcome is a timeout, beside the tool's own timeout.
                A synchronous tool's own one counts from when a thread takes it up.
            contextvars_context: The variables that the tool sees, copied; by default those of this thread.

        Raises:
            OrchestratorClosed: The executor is closed.
            RuntimeError: The system refuses the thread that keeps the deadlines. Nothing was started.
        """
        self._deadlines.start()
        execution = ToolExecution(
            tool_call.function,
            ToolContext(
                run_id=run_id,
                thread_id=thread_id,
                call_id=tool_call.id,
                tool=tool_call.function.name,
                deadline=math.inf if timeout_s is None else time.monotonic() + timeout_s,
                state=state,
            ),
            contextvars_context=_own_copy(contextvars_context),
            workplace=self._workplace,
            approvals=Approvals() if approvals is None else approvals,
            on_notice=on_notice,
            on_done=on_done,
            on_over=self._forget,
        )
        with self._changed:
            if self._closed:
                raise OrchestratorClosed("the tool executor is closed; make a new orchestrator")
            self._live.add(execution)
        tool = registry.get(tool_call.function.name)
        if tool is None:
            execution.refuse("unknown_tool", unknown_tool(tool_call.function.name, registry.names))
        else:
            execution.begin(tool, ask=ask)
        return execution

    def close(self, timeout_s: float = 5.0) -> list[str]:
        """Cancel every call, wait for the tools to return, and end the threads. Repeatable.

        Blocks up to `timeout_s`, and a fraction of a second more to end idle threads.

        Args:
            timeout_s: Seconds to wait for tools that still run.

        Returns:
            The names of the tools that still run; their threads end when they return.

        Raises:
            RuntimeError: Called on the thread of a running event loop: asynchronous tools may need it.
        """
        _refuse_on_loop_thread()
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._closed = True
            live = tuple(self._live)
        for execution in live:
            execution.cancel()
        with self._changed:
            self._changed.wait_for(lambda: not self._live, timeout_s)
            left = sorted(execution.name for execution in self._live if execution.running)
        for part in (self._pool, self._loop_thread, self._deadlines):
            part.close(max(_JOIN_S, deadline - time.monotonic()))
        if left:
            _log.warning("tool.left_running", tools=left)
        return left

    def _forget(self, execution: ToolExecution) -> None:
        with self._changed:
            if execution.over:
                self._live.discard(execution)
                self._changed.notify_all()


def _own_copy(context: contextvars.Context | None) -> contextvars.Context:
    # `is None`, because an empty context is false; a copy, because a context can be entered once at a time.
    return contextvars.copy_context() if context is None else context.copy()


def _refuse_on_loop_thread() -> None:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("close() blocks; on an event loop: await asyncio.to_thread(executor.close)")
