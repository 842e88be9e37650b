"""The requests and tool calls of one run that are under way, and what its actor has still to be told.

They belong to the run, not to one incarnation of its actor: when the actor dies they go on, and what comes
of them, like everything it was told and had not begun to handle, is told to the successor. Lives on the
actors' loop; only `start_tools` hands work to other threads, and the outcomes come back through the loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from orchestrator.errors import APIConnectionError, APIResponseError, OrchestratorClosed
from orchestrator.runs.effects import StartTools
from orchestrator.runs.inputs import (
    Input,
    RequestFailed,
    Resumed,
    RunObserved,
    Started,
    ToolFinished,
    ToolNoticed,
    Word,
)
from orchestrator.runs.record import Phase
from orchestrator.supervision.barrier import Barrier
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    import asyncio
    import contextvars
    from collections.abc import Callable

    from orchestrator.protocol.objects import ToolCall
    from orchestrator.runs.backend import Backend, Report
    from orchestrator.runs.effects import RequestEffect
    from orchestrator.runs.record import RunRecord
    from orchestrator.runtime import LoopThread
    from orchestrator.supervision.draining import Draining
    from orchestrator.supervision.gate import Gate, Holder, Ticket
    from orchestrator.tools import (
        Approvals,
        ToolExecution,
        ToolExecutor,
        ToolFailure,
        ToolNotice,
        ToolOutcome,
        ToolRegistry,
    )

__all__ = ["InFlight"]

log = get_logger(__name__)

_UNKNOWN_TOOL_REMEDY = (
    "register a function of this name, Orchestrator(tools=[...]) or start(tools=[...]), "
    "or take it off the assistant"
)

_NOTICES: Final[dict[str, Literal["tool.approval_asked", "tool.approved", "tool.progress"]]] = {
    "approval_asked": "tool.approval_asked",
    "approved": "tool.approved",
    "progress": "tool.progress",
}

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Request:
    """One request of the run's.

    Attributes:
        effect: What is asked.
        ticket: Its turn at the gate.
        task: What makes it.
        muted: Nothing more is told of it.
        is_ending: Its stream has shown the run at rest: there is little more to come than its end.
    """

    effect: RequestEffect
    ticket: Ticket
    task: asyncio.Task[None] | None = None
    muted: bool = False
    is_ending: bool = False


class InFlight:
    """What is under way for one run.

    Args:
        key: The run's key, for task names and logs.
        backend: Makes the requests.
        gate: Where each of them waits for its turn.
        draining: Takes the streams over that the run needs no more and that are about to end.
        executor: Runs the tools.
        registry: The tools this run may call.
        approvals: Where calls are asked about that need approval.
        context: The user's object for `ToolContext.state`.
        contextvars_context: The context variables of the caller of `start()`, seen by tools.
        loop_thread: The actors' loop.
        may_act: Whether the run is still ours to act on, by the clock of its lease.

    Attributes:
        backend: As given.
        barrier: What keeps effects back until the journal has kept what they are about.
        closed: The run is over, or not ours any more.
    """

    def __init__(
        self,
        *,
        key: str,
        backend: Backend,
        gate: Gate,
        draining: Draining,
        executor: ToolExecutor,
        registry: ToolRegistry,
        approvals: Approvals,
        context: object,
        contextvars_context: contextvars.Context,
        loop_thread: LoopThread,
        may_act: Callable[[], bool],
    ) -> None:
        self.backend = backend
        self.barrier = Barrier(may_act, loop_thread.loop)
        self._key = key
        self._gate = gate
        self._draining = draining
        self._executor = executor
        self._registry = registry
        self._approvals = approvals
        self._context = context
        self._contextvars = contextvars_context
        self._loop_thread = loop_thread
        self._tell: Report | None = None
        self._words: dict[type[Word], Word] = {}
        # A list: few wait, and an empty deque takes as much memory as seventy of them.
        self._answers: list[Input] = []
        self._requests: dict[int, _Request] = {}
        self._round = 0
        self._executions: dict[str, ToolExecution] = {}
        self._outcomes: dict[str, ToolFinished] = {}
        self.closed = False

    def attach(self, tell: Report, record: RunRecord) -> None:
        """Tell this incarnation everything from now on: first what is under way, then what it missed.

        Args:
            tell: Puts inputs into the actor's mailbox.
            record: What the actor goes on from.
        """
        if self.closed:
            return
        outcomes = self._unrecorded_outcomes(record)
        wishes = [word for word in self._words.values() if not isinstance(word, Started)]
        # In place of the admission: what nobody wants any more is not begun.
        words: list[Input] = [*wishes]
        if Started in self._words and record.phase is Phase.ADMITTED and not wishes:
            words = [self._words[Started]]
        # What was said of a call before its outcome: it is not heard of a call that is settled.
        tell(self._resumed(outcomes, unwanted=bool(wishes)), *words, *self._answers, *outcomes.values())
        self._tell = tell

    def _unrecorded_outcomes(self, record: RunRecord) -> dict[str, ToolFinished]:
        if record.round != self._round:
            return {}  # the last round's; servers use the same ids again
        recorded = record.results_of(record.round)
        return {id_: outcome for id_, outcome in self._outcomes.items() if id_ not in recorded}

    def _resumed(self, outcomes: dict[str, ToolFinished], *, unwanted: bool) -> Resumed:
        numbers = {number for answer in self._answers if (number := getattr(answer, "number", None))}
        calls = {*self._executions, *outcomes}
        for held in self.barrier.held:
            if isinstance(held, StartTools):
                calls.update(call.id for call in held.calls)
            else:
                numbers.add(held.number)
        return Resumed(
            in_flight=frozenset(self._requests) | numbers, open_calls=frozenset(calls), unwanted=unwanted
        )

    def detach(self) -> None:
        """Nobody conducts the run for now: keep what is to be told."""
        self._tell = None

    def say(self, word: Word) -> None:
        """Tell whoever conducts the run, now or later, what somebody wants of it."""
        if isinstance(word, Started) and self._words:
            return  # what nobody wants any more is not begun
        self._words[type(word)] = word
        if self._tell is not None:
            self._tell(word)

    def report(self, *inputs: Input) -> None:
        """Tell whoever conducts the run, now or later, what has happened, in this order."""
        self._answers.extend(inputs)
        if self._tell is not None:
            self._tell(*inputs)

    def take(self, input: Input, /) -> None:  # noqa: A002 - the machine's own word
        """The actor handles this now, and nobody will be told it again: should it kill, it kills once."""
        if self._answers and self._answers[0] is input:
            del self._answers[0]

    def run_seen(self, number: int | None) -> str | None:
        """The id of the run that a create showed, where the actor has not come to handle that."""
        seen = (answer for answer in self._answers if isinstance(answer, RunObserved))
        return next((answer.run.id for answer in seen if answer.number == number), None)

    def send(self, effect: RequestEffect) -> None:
        """Make a request, in a task of its own, once the journal allows; none once the run is over."""
        if not self.closed:
            self.barrier.act(effect, partial(self._send, effect))

    def _send(self, effect: RequestEffect) -> None:
        request = _Request(effect, self._gate.ask(effect))
        name = f"{self._key}:{type(effect).__name__}:{effect.number}"
        task = request.task = self._loop_thread.create_task(self._perform(request), name=name)
        self._requests[effect.number] = request
        # Not in the task itself: one that is cancelled before its first step never gets to a `finally`.
        task.add_done_callback(partial(self._forget, request))

    @property
    def held_by(self) -> Holder | None:
        """What holds a request of the run's back at the gate, or `None`; from any thread."""
        holders = (request.ticket.held_by for request in tuple(self._requests.values()))
        return next(filter(None, holders), None)

    def withdraw(self, number: int) -> None:
        """Take a request back that has not left; it fails as one that was never sent."""
        request = self._requests.get(number)
        if request is not None:
            request.ticket.withdraw()
        for effect in self._taken_back(number):
            unsent = APIConnectionError(
                "it was taken back before it was sent", method="?", path=type(effect).__name__, sent=False
            )
            self.report(RequestFailed(number=number, error=unsent))

    def _taken_back(self, number: int) -> list[RequestEffect]:
        return self.barrier.take_back(lambda held: getattr(held, "number", None) == number)

    def close_stream(self, number: int) -> None:
        """Close the stream that a request opened; nothing more is told of it.

        One that is about to end is read on for a moment, so that its connection can be used again.
        """
        self._taken_back(number)
        request = self._requests.pop(number, None)
        if request is None or request.task is None:
            return
        request.muted = True
        if request.is_ending:
            self._draining.take(request.task)
        else:
            request.task.cancel()

    def _forget(self, request: _Request, _: asyncio.Task[None]) -> None:
        request.ticket.leave()
        if self._requests.get(request.effect.number) is request:
            del self._requests[request.effect.number]

    async def _perform(self, request: _Request) -> None:
        effect = request.effect
        try:
            await request.ticket.passed()
        except APIConnectionError as error:
            self.report(RequestFailed(number=effect.number, error=error))
            return
        await self.barrier.allowed()  # it may have waited at the gate for long
        try:
            await self.backend.perform(effect, partial(self._hear, request))
        except Exception as error:
            # A backend that breaks its promise must not leave the run waiting for an answer for ever.
            log.exception("run.request_broken", run_key=self._key, request=type(effect).__name__)
            broken = APIResponseError(
                f"the request could not be made or its answer not be used: {type(error).__name__}: {error}",
                method="?",
                path=type(effect).__name__,
            )
            self.report(RequestFailed(number=effect.number, error=broken))

    def _hear(self, request: _Request, *inputs: Input) -> None:
        last = inputs[-1]
        if isinstance(last, RequestFailed):
            request.ticket.fail(last.error)
        request.is_ending = isinstance(last, RunObserved) and _is_last(last)
        if not request.muted:
            self.report(*inputs)

    def start_tools(self, effect: StartTools, *, run_id: str, thread_id: str) -> None:
        """Start calls; each one's outcome is told exactly once to each incarnation that has to know it."""
        if not self.closed:
            self.barrier.act(effect, partial(self._start_tools, effect, run_id=run_id, thread_id=thread_id))

    def _start_tools(self, effect: StartTools, *, run_id: str, thread_id: str) -> None:
        if effect.round != self._round:
            self._round = effect.round
            self._outcomes.clear()
        for call in effect.calls:
            self._start_tool(call, effect, run_id=run_id, thread_id=thread_id)

    def _start_tool(self, call: ToolCall, effect: StartTools, *, run_id: str, thread_id: str) -> None:
        def hear(handle: Callable[[int, T], None], news: T) -> None:
            # From a tool's thread, perhaps after the loop has ended with the last orchestrator.
            try:
                self._loop_thread.call_soon(handle, effect.round, news)
            except OrchestratorClosed:
                log.debug("run.tool_outcome_dropped", run_key=self._key, call_id=call.id)

        if self._registry.get(call.function.name) is None:
            log.warning(
                "run.tool_unknown",
                tool=call.function.name[:200],
                call_id=call.id,
                run_key=self._key,
                run_id=run_id,
                thread_id=thread_id,
                remedy=f"{_UNKNOWN_TOOL_REMEDY}; the model was told that it does not exist",
            )
        self._executions[call.id] = self._executor.start(
            call,
            self._registry,
            run_id=run_id,
            thread_id=thread_id,
            state=self._context,
            timeout_s=effect.bound_s,
            contextvars_context=self._contextvars,
            approvals=self._approvals,
            ask=call.id in effect.doubtful,
            on_notice=partial(hear, self._take_notice),
            on_done=partial(hear, self._finish_tool),
        )

    def _take_notice(self, round_number: int, notice: ToolNotice) -> None:
        if round_number == self._round and notice.call_id in self._executions:
            self.report(
                ToolNoticed(
                    round=round_number,
                    call_id=notice.call_id,
                    notice=_NOTICES[notice.kind],
                    detail=notice.detail,
                    fraction=notice.fraction,
                )
            )

    def _finish_tool(self, round_number: int, outcome: ToolOutcome) -> None:
        if round_number != self._round or self._executions.pop(outcome.call_id, None) is None:
            return
        failure = outcome.error
        finished = ToolFinished(
            round=round_number,
            call_id=outcome.call_id,
            output=outcome.output,
            error=None if failure is None else _described(failure),
            fatal=outcome.fatal,
            attempts=outcome.attempts,
            duration_s=outcome.duration_s,
        )
        # Kept for the whole round, not until it is taken: an actor's death is no reason to call again.
        self._outcomes[outcome.call_id] = finished
        if self._tell is not None:
            self._tell(finished)

    def stop_tools(self) -> None:
        """Stop every call that is under way; nothing more is told of them."""
        self.barrier.take_back(lambda held: isinstance(held, StartTools))
        executions, self._executions = self._executions, {}
        for execution in executions.values():
            execution.cancel()

    def close(self) -> None:
        """The run is over: abandon everything that is under way, and take on nothing more. Repeatable."""
        self.closed = True
        self.detach()
        self.barrier.close()
        self.stop_tools()
        for number in tuple(self._requests):
            self.close_stream(number)


def _is_last(seen: RunObserved) -> bool:
    """Whether a stream ends with this: the run is over, or waits for its outputs."""
    return seen.event is not None and (seen.run.is_terminal or bool(seen.run.required_calls))


def _described(failure: ToolFailure) -> str:
    """What `ToolCallResult.error` says to the user, who unlike the model can register a tool."""
    remedy = f"; {_UNKNOWN_TOOL_REMEDY}" if failure.kind == "unknown_tool" else ""
    return f"{failure.kind}: {failure.message}{remedy}"
