"""One thread that calls back at given times: what bounds every tool call.

Why a thread of its own: a timer on the tools' event loop would be late whenever an asynchronous tool blocks
that loop, the actors' loop runs nothing that belongs to tools, and `threading.Timer` takes a thread per call.
It knows nothing of tools.
"""

from __future__ import annotations

import heapq
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Deadline", "Deadlines"]

_LONGEST_WAIT_S = 3600.0  # a condition refuses infinity, which is what "no bound" looks like here
_COMPACT_FROM = 64


class Deadline:
    """A callback that is due at a time, unless it is cancelled first.

    Attributes:
        when: When it is due, on the clock of `time.monotonic()`.
        callback: `None` once it was called or cancelled; `Deadlines` writes it, under its lock.
    """

    __slots__ = ("_number", "callback", "when")

    def __init__(self, when: float, number: int, callback: Callable[[], None]) -> None:
        self.when = when
        self._number = number
        self.callback: Callable[[], None] | None = callback

    def __lt__(self, other: Deadline) -> bool:
        return (self.when, self._number) < (other.when, other._number)


class Deadlines:
    """Calls back at given times, on a daemon thread that starts with the first use.

    Every method may be called from any thread, and none but `close` waits. Callbacks run one after the
    other, must be quick and must not raise.
    """

    def __init__(self, thread_name: str) -> None:
        self._thread_name = thread_name
        self._changed = threading.Condition()
        self._heap: list[Deadline] = []
        self._added = 0
        self._cancelled = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread now, so that no later call can fail for want of one. May be repeated.

        Raises:
            RuntimeError: The system refuses another thread.
        """
        with self._changed:
            self._start()

    def at(self, when: float, callback: Callable[[], None]) -> Deadline:
        """Call back at `when`, on the clock of `time.monotonic()`; at once if that has passed."""
        with self._changed:
            self._start()
            self._added += 1
            deadline = Deadline(when, self._added, callback)
            heapq.heappush(self._heap, deadline)
            if self._heap[0] is deadline:
                self._changed.notify()
        return deadline

    def soon(self, callback: Callable[[], None]) -> None:
        """Call back at once, but not on this thread."""
        self.at(time.monotonic(), callback)

    def cancel(self, deadline: Deadline) -> None:
        """Forget a callback; too late, this does nothing. May be repeated."""
        with self._changed:
            if deadline.callback is None:
                return
            deadline.callback = None
            self._cancelled += 1
            if self._cancelled > _COMPACT_FROM and self._cancelled > len(self._heap) // 2:
                self._compact()

    def close(self, timeout_s: float) -> None:
        """Run what is due, forget the rest and end the thread. Waits at most `timeout_s`; repeatable."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._thread_name, daemon=True)
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        while (callback := self._next()) is not None:
            callback()
            del callback  # else the last one is kept alive while this thread waits

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while True:
                wait_s = self._heap[0].when - time.monotonic() if self._heap else _LONGEST_WAIT_S
                if wait_s <= 0:
                    deadline = heapq.heappop(self._heap)
                    callback, deadline.callback = deadline.callback, None
                    if callback is not None:
                        return callback
                    self._cancelled -= 1
                elif self._closed:
                    self._heap.clear()
                    return None
                else:
                    self._changed.wait(min(wait_s, _LONGEST_WAIT_S))

    def _compact(self) -> None:
        # Most tools end long before their deadline: without this the heap would hold a minute's calls.
        self._heap = [deadline for deadline in self._heap if deadline.callback is not None]
        heapq.heapify(self._heap)
        self._cancelled = 0
