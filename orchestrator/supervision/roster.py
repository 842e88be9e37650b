"""The runs of one orchestrator that are not over: who may join them, and how all of them end.

Owns the lock around them, the waiting for their ends, and the parts that serve them: made with the first run,
torn down by `close`. It decides nothing about a run, and does not know what users may ask for.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pykka

from orchestrator.errors import KeyReused, OrchestratorClosed, OrchestratorError, Overloaded
from orchestrator.journal import MemoryJournal
from orchestrator.runtime import acquire
from orchestrator.supervision.fleet import TEARDOWN_S, Fleet
from orchestrator.supervision.handle import RunHandle
from orchestrator.supervision.messages import Admit, FindOrphans, Sweep
from orchestrator.supervision.state import RunState
from orchestrator.supervision.supervisor import Supervisor
from orchestrator.telemetry import get_logger
from orchestrator.tools.signature import is_async

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from orchestrator.client import AsyncThreadsClient
    from orchestrator.journal import Journal, StoredRun
    from orchestrator.protocol.objects import Page, Run
    from orchestrator.runs.machine import Timing
    from orchestrator.runs.result import StreamedEvent
    from orchestrator.supervision.commission import Commission
    from orchestrator.supervision.gate import ServerLimits
    from orchestrator.supervision.restarts import RestartPolicy
    from orchestrator.tools import ToolExecutor

__all__ = ["OnActive", "Roster", "StreamTo", "require_consumer"]

log = get_logger(__name__)

_OTHERS_TEARDOWN_S = 6 * TEARDOWN_S

_SUPERVISOR_ENDED = (
    "the orchestrator's supervisor has ended, by a defect that was logged or because something "
    "in this process stopped all Pykka actors: close it and make a new one"
)

OnActive: TypeAlias = Literal["cancel", "detach", "wait"]
StreamTo: TypeAlias = "Callable[[StreamedEvent], object] | pykka.ActorRef[Any] | None"


class Roster:
    """The open runs, by key. Every method may be called from any thread.

    Args:
        client: Makes the requests; closed at the end.
        max_concurrent_runs: The most runs at work at once.
        max_pending: The most runs that wait for their turn.
        restart: How often a run's actor is started again.
        executor: Runs the tools; closed at the end.
        timing: How patient the runs are.
        limits: How each server is treated.
        log_tool_data: Whether the logs show the arguments and outputs of tool calls.
        journal: Keeps the runs' records; closed at the end. By default they live as long as this process.
        take_up: Told a run of a process that has died, on a thread of its own; it may block.
    """

    def __init__(
        self,
        *,
        client: AsyncThreadsClient,
        journal: Journal | None,
        take_up: Callable[[StoredRun], object],
        max_concurrent_runs: int,
        max_pending: int,
        restart: RestartPolicy,
        executor: ToolExecutor,
        timing: Timing,
        limits: ServerLimits,
        log_tool_data: bool,
    ) -> None:
        self._client = client
        self.journal = MemoryJournal() if journal is None else journal
        self._take_up = take_up
        self._max_concurrent_runs = max_concurrent_runs
        self._max_pending = max_pending
        self._restart = restart
        self._timing = timing
        self._limits = limits
        self._log_tool_data = log_tool_data
        self._executor = executor
        self._pid = os.getpid()
        self._lock = threading.Condition()
        self._runs: dict[str, RunHandle] = {}
        self._states: dict[str, RunState] = {}
        self._closed = False
        self._fleet: Fleet | None = None
        self._torn_down: threading.Event | None = None

    @property
    def inherited(self) -> bool:
        """Whether this process is a fork of the one it was made in."""
        return os.getpid() != self._pid

    def refuse_fork(self) -> None:
        """Raise in a forked process; before any lock is taken, which the fork may have copied as held.

        Raises:
            OrchestratorClosed: This process is a fork.
        """
        if self.inherited:
            raise OrchestratorClosed(
                "this Orchestrator belongs to the parent of this forked process: make a new one here"
            )

    @property
    def stuck_tool_threads(self) -> int:
        """How many threads are held by tool calls that nobody waits for."""
        return self._executor.stuck_threads

    def run_async_tools_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on asynchronous tools run on this loop.

        Raises:
            OrchestratorClosed: This process is a fork.
        """
        self.refuse_fork()
        self._executor.loop = loop

    def begin(self, commission: Commission, *, stream_to: StreamTo) -> RunHandle:
        """Have one more run begin; returns at once.

        Args:
            commission: The run.
            stream_to: Told its events.

        Returns:
            Its handle; with a journal that survives, the one there is where the key is that of an open run.

        Raises:
            ValueError: The key is taken.
            Overloaded: There are too many.
            OrchestratorClosed: No run may begin any more.
        """
        self.refuse_fork()
        record = commission.record
        with self._lock:
            fleet = self._serving()
            known = self._known(commission)
            if known is not None:
                _show_to(stream_to, known, fleet)
                return self._runs[known.key]
            self._require_room()
            state = RunState(record, server=commission.client.base_url, resolver=fleet.resolver)
            _show_to(stream_to, state, fleet)
            admit = Admit(
                record=record,
                address=commission.address,
                state=state,
                serve=partial(commission.in_flight, fleet, state),
                settle=commission.settled,
                claims=commission.claims,
            )
            # Still under the lock: whoever finds the run among the open ones can tell the supervisor of it.
            fleet.supervisor.tell(admit)
            handle = self._runs[record.key] = RunHandle(state, fleet.supervisor)
            self._states[record.key] = state
            return handle

    def orphans(self, runs_of_thread: Callable[[], Coroutine[Any, Any, Page[Run]]]) -> list[Run]:
        """Those of a thread's runs that are not over and that nobody here conducts; blocks.

        Args:
            runs_of_thread: Lists them; called on this thread, run on the actors' loop.

        Raises:
            OrchestratorError: They could not be listed.
            OrchestratorClosed: The orchestrator is closed, or this process is a fork.
        """
        self.refuse_fork()
        with self._lock:
            fleet = self._serving()
            # Of its own, so that the loop does not end under it, should somebody close this meanwhile.
            loop_thread = acquire()
        try:
            listing = asyncio.run_coroutine_threadsafe(runs_of_thread(), loop_thread.loop)
            try:
                page = listing.result()
            finally:
                listing.cancel()
            found: tuple[Run, ...] = fleet.supervisor.ask(FindOrphans(runs=tuple(page.data)))
            return list(found)
        except pykka.ActorDeadError as error:
            raise OrchestratorClosed(_SUPERVISOR_ENDED) from error
        finally:
            loop_thread.release()

    def handles(self) -> list[RunHandle]:
        """The open runs, oldest first.

        Raises:
            OrchestratorClosed: This process is a fork.
        """
        self.refuse_fork()
        with self._lock:
            return list(self._runs.values())

    def cancel(self) -> list[RunHandle]:
        """Cancel every open run; returns their handles at once.

        Raises:
            OrchestratorClosed: This process is a fork.
        """
        handles = self.handles()
        for handle in handles:
            handle.cancel()
        return handles

    def end_soon(self) -> None:
        """Nobody wants to wait for the open runs any more: cancel them, or leave those that survive."""
        if self.journal.survives:
            self._detach()
        else:
            self.cancel()

    def drain(self, timeout_s: float) -> list[RunHandle]:
        """Take no more runs, wait for the open ones, then leave the rest to the server; blocks.

        Returns:
            The handles of the runs that were left.

        Raises:
            OrchestratorClosed: This process is a fork.
        """
        self.refuse_fork()
        with self._lock:
            self._closed = True
            handles = list(self._runs.values())
            fleet = self._fleet
        if not self._all_ended(timeout_s):
            self._detach()
            if not self._all_ended(TEARDOWN_S) and fleet is not None:
                fleet.abandon()
                self._all_ended(TEARDOWN_S)
        left = [handle for handle in handles if _was_left(handle)]
        log.info(
            "orchestrator.drained", ended=len(handles) - len(left), left=[handle.run_id for handle in left]
        )
        return left

    def close(self, on_active: OnActive, timeout_s: float | None) -> list[RunHandle]:
        """End every open run and everything that served them; blocks, repeatable, nothing in a fork.

        Args:
            on_active: How the runs end.
            timeout_s: Seconds to wait for that; None waits as long as it takes.

        Returns:
            The handles of the runs that were not seen to end.
        """
        if self.inherited:
            return []
        with self._lock:
            self._closed = True
            handles = list(self._runs.values())
            fleet, self._fleet = self._fleet, None
            if fleet is not None:
                self._torn_down = threading.Event()
            torn_down = self._torn_down
        if torn_down is None:
            self.journal.close(TEARDOWN_S)
            return []
        try:
            self._end_runs(on_active, timeout_s)
        finally:
            if fleet is None:
                # Somebody else is closing: what this call says of the runs holds, the teardown is theirs.
                torn_down.wait(_OTHERS_TEARDOWN_S)
            else:
                fleet.close(self._all_ended)
                torn_down.set()
        left = [handle for handle in handles if _was_left(handle)]
        if left:
            log.warning("orchestrator.left_runs", runs=[handle.run_id for handle in left])
        return left

    def _end_runs(self, on_active: OnActive, timeout_s: float | None) -> None:
        if on_active == "cancel":
            self.cancel()
        elif on_active == "detach":
            self._detach()
        try:
            self._all_ended(timeout_s)
        except BaseException:  # such as Ctrl-C
            self.end_soon()
            self._all_ended(TEARDOWN_S)
            raise

    def _detach(self) -> None:
        for handle in self.handles():
            handle.detach()

    def _all_ended(self, timeout_s: float | None) -> bool:
        """Wait until no run is open; say whether that is so."""
        if timeout_s is not None:
            timeout_s = min(timeout_s, threading.TIMEOUT_MAX)  # infinity is more than a lock can be told
        with self._lock:
            return self._lock.wait_for(lambda: not self._runs, timeout_s)

    def _known(self, commission: Commission) -> RunState | None:
        """The open run of that key, where it is the same run. Under the lock."""
        record = commission.record
        known = self._states.get(record.key)
        if known is None:
            return None
        if not self.journal.survives:
            raise ValueError(
                f"a run with key {record.key!r} is open already: wait for it, or use another key"
            )
        open_ = known.record
        elsewhere = record.thread_id is not None and open_.thread_id not in (None, record.thread_id)
        if open_.request != record.request or elsewhere:
            raise KeyReused(
                f"key {record.key!r} is that of run {open_.run_id or 'not created yet'}, which asks for "
                f"something else: use another key",
                key=record.key,
            )
        return known

    def _require_room(self) -> None:
        """Check that one more run may begin. Under the lock."""
        if len(self._runs) >= self._max_concurrent_runs + self._max_pending:
            raise Overloaded(
                f"{len(self._runs)} runs are open, all that max_concurrent_runs={self._max_concurrent_runs} "
                f"and max_pending={self._max_pending} allow: try again later, or raise one of them"
            )

    def _serving(self) -> Fleet:
        """What serves the runs, made with the first use. Under the lock."""
        if self._closed:
            raise OrchestratorClosed("the orchestrator is closed: make a new one")
        if self._fleet is None:
            self._fleet = self._make_fleet()
        if not self._fleet.supervisor.is_alive():
            raise OrchestratorClosed(_SUPERVISOR_ENDED)
        return self._fleet

    def _make_fleet(self) -> Fleet:
        loop_thread = acquire()
        supervisor = Supervisor.start(
            journal=self.journal,
            max_concurrent_runs=self._max_concurrent_runs,
            restart=self._restart,
            timing=self._timing,
            jitter=random.random,
            log_tool_data=self._log_tool_data,
            ended=self._forget,
            take_up=self._found,
        )
        return Fleet(self._client, loop_thread, supervisor, self._executor, self._limits, self.journal)

    def sweep(self) -> None:
        """From now on take up the runs of other processes that have died; returns at once.

        Raises:
            OrchestratorClosed: The orchestrator is closed.
        """
        self.refuse_fork()
        with self._lock:
            self._serving().supervisor.tell(Sweep())

    def _found(self, stored: StoredRun) -> None:
        """Have a run taken up whose process died, which may ask the user for a key. On the actors' loop."""
        with self._lock:
            fleet = self._fleet
        if fleet is not None:
            fleet.resolver.submit(partial(self._take_up, stored))

    def _forget(self, state: RunState) -> None:
        """Let go of a run that is over, and hand its outcome over. On the actors' loop."""
        with self._lock:
            self._runs.pop(state.key, None)
            self._states.pop(state.key, None)
            state.hand_over()
            self._lock.notify_all()


def _show_to(stream_to: StreamTo, state: RunState, fleet: Fleet) -> None:
    if isinstance(stream_to, pykka.ActorRef):
        state.tell_events_to(stream_to)
    elif stream_to is not None:
        fleet.consumers.feed(stream_to, state.events, key=state.key)


def require_consumer(stream_to: object) -> None:
    """Raise unless events can be told to it.

    Raises:
        TypeError: They cannot; the message says what can be done instead.
    """
    if stream_to is None or isinstance(stream_to, pykka.ActorRef):
        return
    if not callable(stream_to):
        raise TypeError(f"stream_to must be a callable or a pykka.ActorRef, got {stream_to!r}")
    if is_async(stream_to):
        raise TypeError(
            f"stream_to cannot be a coroutine function, got {stream_to!r}: in a coroutine, iterate with "
            f"`async for event in handle`"
        )


def _was_left(handle: RunHandle) -> bool:
    """Whether the run was not seen to end. Does not look at `future`, which a user's callback may hold up."""
    if not handle.done():
        return True
    try:
        handle.result()
    except OrchestratorError as error:
        return isinstance(error, OrchestratorClosed)
    return False
