"""What a user holds of one run: its outcome, its events, and the means to end it.

Safe on any thread and on any event loop. It holds no run alive and decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

import pykka

from orchestrator.errors import OrchestratorClosed
from orchestrator.runs.inputs import CancelRequested, DetachRequested
from orchestrator.runtime import refuse_blocking_on_running_loop
from orchestrator.supervision.messages import Forward
from orchestrator.tools.approval import Decision

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator
    from concurrent.futures import Future

    from orchestrator.runs.result import RunResult, StreamedEvent
    from orchestrator.runtime import LoopActorRef
    from orchestrator.supervision.state import RunSnapshot, RunState
    from orchestrator.supervision.supervisor import Supervisor

__all__ = ["RunHandle"]


class RunHandle:
    """One run, from any thread and from any event loop. Made by `Orchestrator.start()` and `adopt()`.

    Attributes:
        key: The run's key, unique among the open runs of its orchestrator.
    """

    def __init__(self, state: RunState, supervisor: LoopActorRef[Supervisor]) -> None:
        self.key = state.key
        self._state = state
        self._supervisor = supervisor
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<RunHandle {self.key} run={self.run_id} thread={self.thread_id} status={self.status}>"

    @property
    def thread_id(self) -> str | None:
        """The run's thread; `None` until it is created."""
        return self._state.record.thread_id

    @property
    def run_id(self) -> str | None:
        """The run's id; `None` until it is created."""
        return self._state.record.run_id

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The ids of all the runs this handle stood for, oldest first."""
        return self._state.run_ids

    @property
    def status(self) -> str | None:
        """The server's status, as it was last seen; `None` before the first look."""
        return self._state.record.status

    @property
    def future(self) -> Future[RunResult]:
        """The outcome, for `concurrent.futures.wait` and `as_completed`; its `cancel()` does nothing.

        What is added by `add_done_callback` runs on one thread for all runs of the orchestrator; a slow
        callback delays these futures, and neither `result()` nor `await handle`.
        """
        self._refuse_fork()
        return self._state.future

    @property
    def recorded(self) -> Future[None]:
        """Resolved once the journal has the run: from then on it survives this process.

        Nothing is sent before. It fails with what keeps the journal from that, or keeps the run from being
        started. Without a journal it is resolved once the run is taken on. Callbacks run as for `future`.
        """
        self._refuse_fork()
        return self._state.recorded

    def done(self) -> bool:
        """Whether the outcome is known; never blocks."""
        self._refuse_fork()
        return self._state.outcome.done()

    def result(self, timeout: float | None = None) -> RunResult:
        """Wait for the run's end and return its result; blocks, and may be called again.

        Args:
            timeout: The most seconds to wait; `None` waits as long as the run takes, which its deadline and
                the cancel timeout bound.

        Returns:
            The result of a run in any terminal status; `raise_for_status()` tells success from the rest.

        Raises:
            TimeoutError: The run had not ended by then; it goes on.
            OrchestratorError: The run could not be conducted to its end; the error names the ids.
            RuntimeError: An event loop runs on this thread: `await` the handle instead.
        """
        refuse_blocking_on_running_loop("RunHandle.result()", "use `await handle`")
        self._refuse_fork()
        try:
            return self._state.outcome.result(timeout)
        except TimeoutError:
            raise TimeoutError(
                f"run {self.run_id or self.key} on thread {self.thread_id} has not ended within {timeout} s; "
                f"it goes on: wait for it again, or cancel() it"
            ) from None

    def detach(self) -> None:
        """Stop conducting the run and leave it to the server; returns at once, may be repeated.

        `result()` then raises `OrchestratorClosed` with the ids, by which `Orchestrator.adopt()` takes the
        run up again. A create that is under way is waited for, so that the id is known.
        """
        self._tell(DetachRequested())

    def cancel(self) -> None:
        """Ask for the run to end; returns at once, may be repeated, does nothing once the run is over.

        The outcome tells what became of it: usually a result with status `cancelled`, or the run's own
        result where it ended first.
        """
        self._tell(CancelRequested())

    def approve(self, call_id: str) -> None:
        """Let a tool call be made that waits for approval; returns at once.

        The `tool.approval_asked` notice among the run's events has its id, and `snapshot().approvals` its
        arguments. The first decision stands.

        Raises:
            ValueError: No such call waits; the message names those that do.
            OrchestratorClosed: The run belongs to the parent of this forked process.
        """
        self._refuse_fork()
        self._state.approvals.decide(call_id, Decision(approved=True))

    def deny(self, call_id: str, reason: str = "") -> None:
        """Have a tool call that waits for approval answered with a denial; returns at once.

        Args:
            call_id: As for `approve()`, which see.
            reason: What the model is told of why.

        Raises:
            ValueError: No such call waits; the message names those that do.
            TypeError: `reason` is no string.
            OrchestratorClosed: The run belongs to the parent of this forked process.
        """
        self._refuse_fork()
        if not isinstance(reason, str):
            raise TypeError(f"reason must be a str, got {type(reason).__name__}")
        self._state.approvals.decide(call_id, Decision(approved=False, reason=reason))

    def events(self) -> Iterator[StreamedEvent]:
        """Iterate over the run's events from its beginning, across tool rounds and lost streams; blocks.

        Every call begins anew, late ones too. Ends when the run is over, and raises nothing for how it ended.

        Every event comes, in order, except for old deltas: up to 1,000 are kept, and up to 256 KB of JSON;
        whenever there are more, the older half is merged. A reader that had not come to those gets a `Notice`
        `run.gap` where they began, and then their message or step as it had become: as an `…in_progress`
        event where the last of them stood, unless a later event shows it whole. It replaces what the reader
        had of that object. A reader that keeps up sees every delta and no such gap.

        Raises:
            RuntimeError: An event loop runs on this thread: use `async for` on the handle instead.
        """
        refuse_blocking_on_running_loop("RunHandle.events()", "use `async for event in handle`")
        self._refuse_fork()
        return iter(self._state.events)

    def watch(self, ref: pykka.ActorRef[Any]) -> None:
        """Have an actor told how the run ends, once, also when it ended before; returns at once.

        The message is `Completed`, `Failed` or `Stopped`, and carries the run's key. An actor that asks again
        is told no more often; one that has died by then is forgotten.

        Args:
            ref: The actor, of whatever Pykka type.

        Raises:
            TypeError: It is no `pykka.ActorRef`.
            OrchestratorClosed: The run belongs to the parent of this forked process.
        """
        self._refuse_fork()
        if not isinstance(ref, pykka.ActorRef):
            raise TypeError(f"watch() takes a pykka.ActorRef, got {ref!r}: for callables there is `future`")
        self._state.watch(ref)

    def snapshot(self) -> RunSnapshot:
        """Where the run stands at this moment; never blocks."""
        return self._state.snapshot()

    def __await__(self) -> Generator[Any, None, RunResult]:
        """Wait for the result on any event loop; cancelling the waiter leaves the run alone."""
        self._refuse_fork()
        return asyncio.wrap_future(self._state.outcome.future).__await__()

    def __aiter__(self) -> AsyncIterator[StreamedEvent]:
        """Iterate over the run's events on any event loop; see `events()`."""
        self._refuse_fork()
        return self._state.events.__aiter__()

    def _tell(self, input_: CancelRequested | DetachRequested) -> None:
        self._refuse_fork()
        with contextlib.suppress(pykka.ActorDeadError):
            self._supervisor.tell(Forward(state=self._state, input=input_))

    def _refuse_fork(self) -> None:
        if os.getpid() != self._pid:
            raise OrchestratorClosed(
                f"run {self.run_id or self.key!r} belongs to the parent of this forked process: make a new "
                f"Orchestrator here and start or adopt runs with it"
            )
