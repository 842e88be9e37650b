"""One tool call under way: when it begins, who settles it, and what stops it.

Nothing of the user's runs on the thread that starts, decides or cancels a call, not even validators:
arguments are parsed, and results encoded, where the tool runs. This module knows neither how threads are
shared out (that is the executor's) nor what an outcome is used for.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from orchestrator.errors import Retry
from orchestrator.telemetry import get_logger
from orchestrator.tools.approval import ApprovalRequest, Decision, decision_of
from orchestrator.tools.call import Result, call_async, call_sync, failed, is_for_program, refused
from orchestrator.tools.middleware import Bridge, Invocation, Layer, layered
from orchestrator.tools.outcome import ToolNotice, ToolOutcome
from orchestrator.tools.settling import Settling
from orchestrator.tools.signature import is_async

if TYPE_CHECKING:
    import asyncio
    import contextvars
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from orchestrator.protocol.objects import FunctionCall
    from orchestrator.tools.approval import ApprovalHook, Approvals
    from orchestrator.tools.context import ToolContext
    from orchestrator.tools.declaration import Tool
    from orchestrator.tools.threads import Job
    from orchestrator.tools.workplace import Workplace

__all__ = ["ToolExecution"]

_RETRIES_AFTER_RETRY: Final = 3
_PAUSE_S: Final = 0.1
_PAUSE_CAP_S: Final = 5.0

_log = get_logger(__name__)


class ToolExecution(Settling):
    """One call under way; made by `ToolExecutor.start`. Its owner calls nothing but `cancel`.

    A call goes through stages, each on a thread or on the loop: its arguments are parsed, approval is asked
    for where it is needed, a place among the calls of its tool is waited for, and the function is executed,
    again where it raises and may be run again.

    Args:
        function: What the model asked for.
        context: The call, with its deadline so far; what a tool may see of it.
        contextvars_context: The variables that the tool sees; entered by one stage at a time.
        workplace: Where it runs.
        approvals: Where it is asked for approval.
        on_notice: Told what the call has to say before it is over.
        on_done: Told the outcome, once.
        on_over: Told when the outcome is delivered and the tool runs no more; once or twice.
    """

    def __init__(
        self,
        function: FunctionCall,
        context: ToolContext,
        *,
        contextvars_context: contextvars.Context,
        workplace: Workplace,
        approvals: Approvals,
        on_notice: Callable[[ToolNotice], None],
        on_done: Callable[[ToolOutcome], None],
        on_over: Callable[[ToolExecution], None],
    ) -> None:
        super().__init__(context, deadlines=workplace.deadlines, on_notice=on_notice, on_done=on_done)
        self._function = function
        self._contextvars = contextvars_context
        self._workplace = workplace
        self._approvals = approvals
        self._on_over = on_over
        self._executing = self._has_place = self._is_doubtful = False
        self._plan: _Plan | None = None
        self._arguments: Mapping[str, object] = {}
        self._job: Job | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self, tool: Tool[..., Any], *, ask: bool = False) -> None:
        """Take up the first stage. The timeout of what runs on a loop, which may be busy, counts from now."""
        self._on_error = tool.options.on_error
        middleware, bridge = self._workplace.middleware, None
        if middleware or tool.options.executor is not None:
            bridge = Bridge(self._workplace.pool, self._workplace.loop)
        self._plan = _Plan(tool, layered(tool, middleware, bridge), bridge)
        self._is_doubtful = ask
        is_async = self._plan.layer.is_async
        deadline = self._deadline
        if is_async and not (ask or tool.options.approval) and tool.options.max_concurrency is None:
            deadline = min(deadline, self._started + tool.options.timeout_s)
        self._bound(deadline)
        self._hand_over(self._prepare, is_async=is_async)

    def _hand_over(self, stage: Callable[[], None], *, is_async: bool) -> None:
        """Have a stage run where functions of its kind do; what keeps it from that settles the call."""
        try:
            if is_async:
                self._loop = loop = self._workplace.loop()
                loop.call_soon_threadsafe(stage)
            else:
                self._job = self._workplace.pool.submit(stage)
        except (RuntimeError, OSError) as error:  # the loop is closed, or the system refuses a thread
            self._settle_later(failed(error, self._workplace.max_output_bytes))
            return
        if self._settled and self._job is not None:
            self._job.abandon()  # whoever settled it may have come too early to see the job

    def _enter(self) -> bool:
        """Say that code of the user's runs from here on, unless nobody waits for it any more."""
        with self._lock:
            self._running = self._is_wanted
            return self._running

    @property
    def _is_wanted(self) -> bool:
        """Whether anybody waits for the call; past its deadline the timer is about to settle it."""
        return not self._settled and time.monotonic() < self._deadline

    def _prepare(self) -> None:
        if not self._enter():
            return
        assert self._plan is not None
        try:
            asks = self._contextvars.run(self._parse, self._plan.tool)
        except BaseException as error:  # validators and predicates are the user's
            self._end(failed(error, self._workplace.max_output_bytes))
            if is_for_program(error):
                raise
            return
        if asks or self._is_doubtful:
            self._ask()
        else:
            self._proceed(here=True)

    def _parse(self, tool: Tool[..., Any]) -> bool:
        """Parse the arguments; say whether the call needs approval."""
        from orchestrator.tools.arguments import parsed

        self._arguments = parsed(tool.described, self._function.arguments)
        approval = tool.options.approval
        return approval if isinstance(approval, bool) else bool(approval(self._arguments))

    def _ask(self) -> None:
        """Ask the hook, where there is one, else whoever reads the run's events."""
        context = self._context
        request = ApprovalRequest(
            run_id=context.run_id,
            thread_id=context.thread_id,
            call_id=context.call_id,
            tool=context.tool,
            arguments=self._arguments,
            state=context.state,
            doubtful=self._is_doubtful,
        )
        hook = self._workplace.approve
        if hook is None:
            self._await_decision(request)
        else:
            self._leave()  # before: what is handed over and then stopped is never taken up
            self._hand_over(partial(self._consult, hook, request), is_async=is_async(hook))

    def _consult(self, hook: ApprovalHook, request: ApprovalRequest) -> None:
        if not self._enter():
            return
        if is_async(hook):
            self._create_task(self._consult_async(hook, request))
            return
        try:
            decision = decision_of(self._contextvars.run(hook, request))
        except BaseException as error:  # noqa: BLE001 - the hook is the user's; what it does not allow is not done
            self._end(failed(error, self._workplace.max_output_bytes))
        else:
            self._take(decision, request)

    async def _consult_async(self, hook: ApprovalHook, request: ApprovalRequest) -> None:
        try:
            decision = decision_of(await cast("Awaitable[object]", hook(request)))
        except BaseException as error:  # likewise
            self._end(failed(error, self._workplace.max_output_bytes))
            if is_for_program(error):
                raise
        else:
            self._task = None
            # Not within this task: its context is entered as long as this step lasts, and what is decided may
            # be executed in that context, on another thread, before then.
            assert self._loop is not None
            self._loop.call_soon(self._take, decision, request)

    def _take(self, decision: Decision | None, request: ApprovalRequest) -> None:
        if decision is None:
            self._await_decision(request)
        elif not self._decide(decision):
            self._leave()

    def _await_decision(self, request: ApprovalRequest) -> None:
        with self._lock:
            self._running = False
            waits = self._awaits_approval = not self._settled
            if waits:
                self._approvals.ask(request, self._decide)
        if waits:
            self._say(ToolNotice(call_id=self._context.call_id, kind="approval_asked"))
        else:
            self._check_over()

    def _decide(self, decision: Decision) -> bool:
        """Go on as somebody decided; false when the call is settled by now. From any thread."""
        if not decision.approved:
            self._running = False
            reason = f"the call was denied: {decision.reason}" if decision.reason else "the call was denied"
            return self._settle_later(refused("denied", reason))
        with self._lock:
            if self._settled:
                return False
            self._running = False
            asked, self._awaits_approval = self._awaits_approval, False
        if asked:
            self._say(ToolNotice(call_id=self._context.call_id, kind="approved"))
        self._proceed(here=False)
        return True

    def _proceed(self, *, here: bool) -> None:
        """Execute the function as soon as its tool has a place for it; on this thread, if it may be here."""
        assert self._plan is not None
        if self._workplace.limits.enter(self._plan.tool, self._placed):
            self._placed(here=here)
            return
        self._leave()
        if self._settled:  # in a pause, when it waited for no place yet
            self._workplace.limits.withdraw(self._plan.tool, self._placed)

    def _placed(self, *, here: bool = False) -> None:
        assert self._plan is not None
        with self._lock:
            self._has_place = not self._settled
        if not self._has_place:
            self._workplace.limits.leave(self._plan.tool)
            self._leave()
        elif here:
            self._execute()
        else:
            if self._plan.layer.is_async:
                self._bound(time.monotonic() + self._plan.tool.options.timeout_s)
            self._hand_over(self._execute, is_async=self._plan.layer.is_async)

    def _execute(self) -> None:
        assert self._plan is not None
        tool, layer, _ = self._plan
        with self._lock:
            self._running = self._executing = self._is_wanted
        if not self._executing:
            self._check_over()  # whoever settles it gives the place back
            return
        self._attempts += 1
        self._began = self._began or time.monotonic()
        # The timeout counts from the first execution, however many follow.
        self._bound(self._began + tool.options.timeout_s)
        context = replace(
            self._context, attempt=self._attempts, deadline=self._deadline, report=self._report_progress
        )
        invocation = Invocation(tool=tool, arguments=self._arguments, context=context)
        self._log.debug("tool.started", attempt=self._attempts)
        if layer.is_async:
            self._create_task(self._execute_async(layer, invocation))
        else:
            # Not kept here: an error's traceback holds this frame, which would hold the error.
            self._end(self._contextvars.run(call_sync, layer, invocation, self._workplace.max_output_bytes))

    def _leave(self) -> None:
        """Say that nothing of the user's runs for now."""
        self._running = False
        self._check_over()

    async def _execute_async(self, layer: Layer, invocation: Invocation) -> None:
        try:
            self._end(await call_async(layer, invocation, self._workplace.max_output_bytes))
        except KeyboardInterrupt as error:
            self._end(failed(error, self._workplace.max_output_bytes))
            raise

    def _create_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None
        name = f"orchestrator-tool-{self.name}"
        self._task = self._loop.create_task(coroutine, name=name, context=self._contextvars)
        self._task.add_done_callback(self._note_unbegun)

    def _note_unbegun(self, task: asyncio.Task[None]) -> None:
        # The coroutines let no CancelledError out: this one was cancelled before its first step.
        if task.cancelled():
            self._end(failed(CancelledError(), self._workplace.max_output_bytes))

    def _end(self, result: Result) -> None:
        """Say that the tool has returned its thread, or is about to end its task."""
        self._task = None
        with self._lock:
            self._running = self._executing = False
        self._give_place_back()
        pause_s = self._pause_before_another(result)
        if pause_s is not None:
            origin = None if result.failure is None else result.failure.origin
            self._log.info("tool.retried", attempt=self._attempts, exception=origin, pause_s=pause_s)
            self._deadlines.at(time.monotonic() + pause_s, partial(self._proceed, here=False))
        elif self._claim():
            self._deliver(result)
        else:
            self._log.debug("tool.returned_late", duration_s=self._duration_s())
            self._check_over()

    def _pause_before_another(self, result: Result) -> float | None:
        """Seconds until the function is executed again, or `None` where it is not."""
        if not result.repeatable or self._settled:
            return None
        assert self._plan is not None
        retries, error = self._plan.tool.options.retries, result.error
        if retries is None:
            retries = _RETRIES_AFTER_RETRY if isinstance(error, Retry) else 0
        if self._attempts > retries:
            return None
        pause = random.uniform(0.5, 1.0) * min(_PAUSE_CAP_S, _PAUSE_S * 2.0 ** (self._attempts - 1))  # noqa: S311 - jitter
        if isinstance(error, Retry) and error.after_s is not None:
            pause = max(0.0, error.after_s)
        return pause if time.monotonic() + pause < self._deadline else None

    def _lateness(self) -> str:
        since = self._started if self._began is None else self._began
        within = f"within {round(max(0.0, self._deadline - since), 2):g} seconds"
        if self._awaits_approval:
            return f"the call needs approval, and nobody approved it {within}"
        if self._began is not None:
            return f"no result {within}"
        if self._deadline <= since:
            return "not begun: no time was left for it"
        return f"not begun {within}: {self._obstacle()}"

    def _obstacle(self) -> str:
        most = None if self._plan is None else self._plan.tool.options.max_concurrency
        if most is not None and not self._has_place:
            return f"no more than {most} calls of this tool run at once"
        return "every thread was busy" if self._loop is None else "the event loop was busy"

    def _interrupt(self) -> None:
        self._context.stop.set()
        self._approvals.withdraw(self._context.call_id)
        if self._plan is not None:
            if self._plan.bridge is not None:
                self._plan.bridge.interrupt()
            self._workplace.limits.withdraw(self._plan.tool, self._placed)
        if self._job is not None:
            self._job.abandon()
        if not self._executing:
            self._give_place_back()
        if self._loop is not None:
            with suppress(RuntimeError):  # a closed loop runs nothing any more
                self._loop.call_soon_threadsafe(self._cancel_task)

    def _give_place_back(self) -> None:
        with self._lock:
            had, self._has_place = self._has_place, False
        if had and self._plan is not None:
            self._workplace.limits.leave(self._plan.tool)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _stuck_threads(self) -> int:
        return self._workplace.pool.stuck

    def _check_over(self) -> None:
        self._on_over(self)


class _Plan(NamedTuple):
    """How a call of a known tool runs."""

    tool: Tool[..., Any]
    layer: Layer
    bridge: Bridge | None
