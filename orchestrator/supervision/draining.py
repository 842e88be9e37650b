"""Streams that nobody reads any more and that are about to end: their connections are worth a moment.

Owns how long they get, and that none outlives its orchestrator. A connection whose answer was not read to its
end has to be closed: without this, every round of a run would cost one. Lives on the actors' loop.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from orchestrator.client.stream import DRAIN_S

if TYPE_CHECKING:
    from orchestrator.runtime import LoopThread

__all__ = ["Draining"]


class Draining:
    """The tasks of one orchestrator that read what nobody waits for.

    Args:
        loop_thread: The actors' loop.
    """

    def __init__(self, loop_thread: LoopThread) -> None:
        self._loop_thread = loop_thread
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, task: asyncio.Task[None]) -> None:
        """Let a task go on for a second at most."""
        patience = self._loop_thread.loop.call_later(DRAIN_S, task.cancel)
        self._tasks.add(task)

        def ended(_: object) -> None:
            patience.cancel()
            self._tasks.discard(task)

        task.add_done_callback(ended)

    async def aclose(self) -> None:
        """Cancel them all, and wait until they are gone."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
