"""The parts that serve the runs of one orchestrator: made together, torn down in order."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
from typing import TYPE_CHECKING

import pykka

from orchestrator.protocol.lean import Lean
from orchestrator.supervision.consumers import Consumers
from orchestrator.supervision.draining import Draining
from orchestrator.supervision.gate import Gates
from orchestrator.supervision.messages import Abandon
from orchestrator.supervision.tool_checks import ToolChecks
from orchestrator.telemetry import get_logger
from orchestrator.tools.threads import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.client import AsyncThreadsClient
    from orchestrator.journal import Journal
    from orchestrator.runtime import LoopActorRef, LoopThread
    from orchestrator.supervision.gate import ServerLimits
    from orchestrator.supervision.supervisor import Supervisor
    from orchestrator.tools import ToolExecutor

__all__ = ["TEARDOWN_S", "Fleet"]

log = get_logger(__name__)

TEARDOWN_S = 5.0
"""Seconds that each step of the teardown may take; all of them usually take milliseconds."""

_CONSUMER_THREADS = 4


class Fleet:
    """What an orchestrator makes with its first run, and the order in which it goes.

    Args:
        client: Makes the requests; closed with the fleet.
        loop_thread: A lease of the actors' loop, given back at the end.
        supervisor: Watches the runs.
        executor: Runs the tools.
        limits: How each server is treated.
        journal: Keeps the runs' records; closed with the fleet.

    Attributes:
        gates: Where requests wait for their turn at a server.
        lean: What the runs have in common, held once.
        draining: Reads streams to their end that nobody needs any more.
        tool_checks: Compares assistants' functions with those here.
        resolver: The thread on which users' callbacks on a run's future run.
        consumers: The threads that feed events to users' callables.
    """

    def __init__(
        self,
        client: AsyncThreadsClient,
        loop_thread: LoopThread,
        supervisor: LoopActorRef[Supervisor],
        executor: ToolExecutor,
        limits: ServerLimits,
        journal: Journal,
    ) -> None:
        self.client = client
        self.loop_thread = loop_thread
        self.supervisor = supervisor
        self.executor = executor
        self.journal = journal
        self.gates = Gates(limits, loop_thread)
        self.lean = Lean()
        self.draining = Draining(loop_thread)
        self.tool_checks = ToolChecks(loop_thread)
        self.resolver = ThreadPool(1, "orchestrator-resolver")
        self.consumers = Consumers(_CONSUMER_THREADS)
        # Runs before the loop thread's own hook, which was registered before.
        atexit.register(self._leave)

    def abandon(self) -> None:
        """Let go of every run that is still open; returns at once."""
        with contextlib.suppress(pykka.ActorDeadError):
            self.supervisor.tell(Abandon())

    def close(self, all_ended: Callable[[float], object]) -> None:
        """End the actors while the loop and the connections are there, then what served them; blocks.

        Args:
            all_ended: Waits, for the seconds given, until no run is open and no run's actor alive.
        """
        atexit.unregister(self._leave)
        with contextlib.ExitStack() as parts:
            # Called in the opposite order, each one whatever became of those before it.
            parts.callback(self.consumers.close, TEARDOWN_S)
            parts.callback(self.resolver.close, TEARDOWN_S)
            parts.callback(self.loop_thread.release)
            parts.callback(self.journal.close, TEARDOWN_S)
            parts.callback(self._close_client)
            parts.callback(self._close_tools)
            parts.callback(self._stop_supervisor)
            self.abandon()
            all_ended(TEARDOWN_S)

    def _leave(self) -> None:
        """The interpreter exits, and nobody has closed this: report the open runs, close the connections."""
        if not self.loop_thread.inherited:
            self._stop_supervisor()
            self._close_client()
            self.journal.close(TEARDOWN_S)

    def _stop_supervisor(self) -> None:
        try:
            self.supervisor.stop(timeout=TEARDOWN_S)
        except pykka.Timeout:
            log.warning("orchestrator.supervisor_stuck", waited_s=TEARDOWN_S)

    def _close_tools(self) -> None:
        still_running = self.executor.close(TEARDOWN_S)
        if still_running:
            log.warning("orchestrator.tools_still_running", tools=still_running)

    def _close_client(self) -> None:
        if not self.loop_thread.is_alive():
            return  # the interpreter exits: `_leave` has closed it, then the loop ended
        closing = asyncio.run_coroutine_threadsafe(self._aclose_client(), self.loop_thread.loop)
        try:
            closing.result(TEARDOWN_S)
        except TimeoutError:
            log.warning("orchestrator.client_stuck", waited_s=TEARDOWN_S)

    async def _aclose_client(self) -> None:
        await self.draining.aclose()
        await self.tool_checks.aclose()
        await self.client.aclose()
