"""A run's events, kept in order for any number of readers on any thread.

It knows nothing of runs: the actors' loop appends, readers iterate, each from the beginning and at its own
pace. A reader that is slow, late or gone costs the writer nothing.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

__all__ = ["EventLog"]

T = TypeVar("T")


class EventLog(Generic[T]):
    """An append-only sequence that is closed once."""

    __slots__ = ("_closed", "_events", "_lock", "_wakers")

    def __init__(self) -> None:
        self._events: list[T] = []
        self._closed = False
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], None]] = []

    def append(self, event: T) -> None:
        """Add an event and wake the readers; from any thread, never waits."""
        with self._lock:
            self._events.append(event)
            wakers = self._take_wakers()
        _wake(wakers)

    def close(self) -> None:
        """Let readers end after the last event. Repeatable."""
        with self._lock:
            self._closed = True
            wakers = self._take_wakers()
        _wake(wakers)

    def when_changed(self, seen: int, waker: Callable[[], None]) -> bool:
        """Have `waker` called once there are more than `seen` events, or none will come any more.

        It is called once, on the thread that appends or closes; it must not wait and must not raise.

        Returns:
            False when that is so already; then it is not called.
        """
        with self._lock:
            if self._closed or len(self._events) > seen:
                return False
            self._wakers.append(waker)
            return True

    def since(self, seen: int) -> tuple[list[T], bool]:
        """The events after the first `seen`, and whether the sequence is closed."""
        with self._lock:
            return self._events[seen:], self._closed

    def __iter__(self) -> Iterator[T]:
        """Read from the beginning, blocking until there is more; ends when the sequence is closed."""
        seen = 0
        while True:
            events, closed = self.since(seen)
            yield from events
            seen += len(events)
            if closed and not events:
                return
            more = threading.Event()
            if self.when_changed(seen, more.set):
                more.wait()

    async def __aiter__(self) -> AsyncIterator[T]:
        """Read from the beginning without blocking, on any event loop."""
        loop = asyncio.get_running_loop()
        seen = 0
        while True:
            events, closed = self.since(seen)
            for event in events:
                yield event
            seen += len(events)
            if closed and not events:
                return
            more = asyncio.Event()
            if self.when_changed(seen, _waker(loop, more)):
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
