"""The users' callables that are told events, and the few threads that all of them share.

Owns their order and their isolation: one event at a time for each, in order, and one that raises is told no
more. It reads each run's log as any reader does, so that a slow one costs no memory: it is told of old deltas
as the log has merged them. It decides nothing of a run, and nobody waits for it but `close()`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from orchestrator.telemetry import get_logger
from orchestrator.tools.threads import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.runs.result import StreamedEvent
    from orchestrator.supervision.events import EventLog

__all__ = ["Consumers"]

log = get_logger(__name__)


class Consumers:
    """Feeds event logs to callables, on threads of its own.

    Args:
        threads: The most threads. A slow consumer holds one while it handles what has come so far; then the
            others get their turn.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPool(threads, "orchestrator-consumer")
        self._changed = threading.Condition()
        self._open = 0
        self._closed = False

    def feed(self, consume: Callable[[StreamedEvent], object], events: EventLog, *, key: str) -> None:
        """Tell `consume` the events in order, one at a time, until the log is closed; returns at once.

        One that raises is logged and told no more.

        Args:
            consume: The user's.
            events: The log; read from its beginning.
            key: The run's key, for logs.
        """
        with self._changed:
            self._open += 1
        _Consumer(self, consume, events, key).wait()

    def close(self, timeout_s: float) -> None:
        """Let the consumers finish, then end the threads; blocks, waiting at most about `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open, timeout_s)
            self._closed = True
            left = self._open
        if left:
            log.warning("run.consumers_left", consumers=left, waited_s=timeout_s)
        # Only consumers that are stuck are left now; their threads end when they return.
        self._pool.close(0.0 if left else timeout_s)

    def schedule(self, job: Callable[[], None]) -> None:
        """Have a consumer go on as soon as a thread is free; not after `close()`."""
        with self._changed:
            if self._closed:
                return
            try:
                self._pool.submit(job)
            except RuntimeError:  # the system refuses a thread: no reason to harm the run
                self._open -= 1
                log.exception("run.consumer_failed")

    def finished(self) -> None:
        """Count one consumer that is done."""
        with self._changed:
            self._open -= 1
            self._changed.notify_all()


class _Consumer:
    """One callable and how far it has got; at any time either waiting, queued or at work."""

    def __init__(
        self, consumers: Consumers, consume: Callable[[StreamedEvent], object], events: EventLog, key: str
    ) -> None:
        self._consumers = consumers
        self._consume = consume
        self._events = events
        self._key = key
        self._position = 0

    def wait(self) -> None:
        """Go on once there is more."""
        if not self._events.when_changed(self._position, self._go_on):
            self._go_on()

    def _go_on(self) -> None:
        self._consumers.schedule(self._drain)

    def _drain(self) -> None:
        events, self._position, closed = self._events.since(self._position)
        try:
            for event in events:
                self._consume(event)
        except BaseException:  # a SystemExit of one consumer must not take the others' thread away
            log.exception("run.consumer_failed", run_key=self._key)
            self._consumers.finished()
            return
        if closed:
            self._consumers.finished()
        else:
            self.wait()
