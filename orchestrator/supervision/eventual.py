"""A value that comes once, and a `Future` of it for whoever wants to wait.

Owns when a `Future` is made: a future is a dozen objects, every run has two values that come, and hardly
anybody waits for both. It knows nothing of runs.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import threading

__all__ = ["Eventual", "uncancellable"]

T = TypeVar("T")


class Eventual(Generic[T]):
    """Settled once, by one thread; asked and waited for by any.

    Args:
        lock: Held for a moment at a time; it may be shared.
    """

    __slots__ = ("_error", "_future", "_is_settled", "_lock", "_value")

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._is_settled = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._future: Future[T] | None = None

    def done(self) -> bool:
        """Whether it is settled; never blocks."""
        return self._is_settled

    def result(self, timeout: float | None = None) -> T:
        """Return the value, blocking until there is one.

        Args:
            timeout: The most seconds to wait; `None` waits as long as it takes.

        Raises:
            TimeoutError: There is none yet.
            BaseException: What it was settled with in a value's place.
        """
        return self.future.result(None if self._is_settled else timeout)

    @property
    def future(self) -> Future[T]:
        """The same one each time. It cannot be cancelled; its callbacks run where it is settled."""
        with self._lock:
            if self._future is None:
                self._future = uncancellable()
                if self._is_settled:
                    self._tell(self._future)
            return self._future

    def settle(self, value: T | None, error: BaseException | None = None) -> None:
        """Settle it with a value, or with what is raised in a value's place."""
        with self._lock:
            self._value, self._error = value, error
            self._is_settled = True
            future = self._future
        if future is not None:
            self._tell(future)

    def _tell(self, future: Future[T]) -> None:
        if self._error is not None:
            future.set_exception(self._error)
        else:
            future.set_result(self._value)


def uncancellable() -> Future[Any]:
    """A future whose `cancel()` does nothing."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future
