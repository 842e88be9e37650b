"""A run's events, kept in order for any number of readers on any thread.

Owns the readers' waiting and waking: the actors' loop appends, readers iterate, each from the beginning and
at its own pace. A reader that is slow, late or gone costs the writer nothing. What is kept of old deltas, and
what a reader that fell behind gets in their place, is for `orchestrator.supervision.history` to say.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.supervision.history import History, in_order

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from orchestrator.runs.result import StreamedEvent

__all__ = ["EventLog", "News"]

_MAX_DELTAS = 1000
_MAX_DELTA_BYTES = 256 * 1024


class News(NamedTuple):
    """What a reader has yet to see, the position that it then has, and whether no more will come."""

    events: list[StreamedEvent]
    position: int
    closed: bool


class EventLog:
    """A run's events; closed once.

    A reader's position is the number of events it has read or skipped; 0 is the beginning.

    Args:
        max_deltas: As many deltas are kept as they are; one more, and the older half is merged.
        max_delta_bytes: Likewise by their size as JSON; the newest delta is kept, however large it is.
    """

    __slots__ = ("_closed", "_history", "_lock", "_wakers")

    def __init__(self, *, max_deltas: int = _MAX_DELTAS, max_delta_bytes: int = _MAX_DELTA_BYTES) -> None:
        self._history = History(max_deltas=max_deltas, max_delta_bytes=max_delta_bytes)
        self._closed = False
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], None]] = []

    def add(self, *events: StreamedEvent) -> None:
        """Add events and wake the readers; from any thread, waits for no reader."""
        with self._lock:
            for event in events:
                self._history.add(event)
            if not self._wakers:
                return
            wakers = self._take_wakers()
        _wake(wakers)

    def close(self) -> None:
        """Let readers end after the last event. Repeatable."""
        with self._lock:
            self._closed = True
            wakers = self._take_wakers()
        _wake(wakers)

    def when_changed(self, position: int, waker: Callable[[], None]) -> bool:
        """Have `waker` called once there is more to read from `position`, or nothing will come any more.

        It is called once, on the thread that appends or closes; it must not wait and must not raise.

        Returns:
            False when that is so already; then it is not called.
        """
        with self._lock:
            if self._closed or self._history.count > position:
                return False
            self._wakers.append(waker)
            return True

    def since(self, position: int) -> News:
        """What a reader at this position has yet to see; never waits for events.

        Where deltas that it has not read were merged, it gets a gap and the objects as they are so far.
        """
        with self._lock:
            entries = self._history.after(position)
            count, closed = self._history.count, self._closed
        # The writer need not wait for this: entries never change.
        return News(in_order(entries), count, closed)

    def __iter__(self) -> Iterator[StreamedEvent]:
        """Read from the beginning, blocking until there is more; ends when the sequence is closed."""
        position = 0
        while True:
            events, position, closed = self.since(position)
            yield from events
            if closed:
                return
            more = threading.Event()
            if self.when_changed(position, more.set):
                more.wait()

    async def __aiter__(self) -> AsyncIterator[StreamedEvent]:
        """Read from the beginning without blocking, on any event loop."""
        loop = asyncio.get_running_loop()
        position = 0
        while True:
            events, position, closed = self.since(position)
            for event in events:
                yield event
            if closed:
                return
            more = asyncio.Event()
            if self.when_changed(position, _waker(loop, more)):
                await more.wait()

    def _take_wakers(self) -> list[Callable[[], None]]:
        wakers, self._wakers = self._wakers, []
        return wakers


def _wake(wakers: list[Callable[[], None]]) -> None:
    for waker in wakers:
        waker()


def _waker(loop: asyncio.AbstractEventLoop, more: asyncio.Event) -> Callable[[], None]:
    def wake() -> None:
        try:
            loop.call_soon_threadsafe(more.set)
        except RuntimeError:  # the reader's loop is closed, and the reader with it
            return

    return wake
