"""Ctrl-C and its kin: heeded where the demo waits, put off where it makes something or puts it away.

Owns the process's handlers of these signals while the demo plays. What an interruption leads to is not known
here.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType
    from typing import Self

__all__ = ["Interrupted", "Interruptions", "ignore_from_now_on"]

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]  # Windows knows no SIGHUP.


class Interrupted(KeyboardInterrupt):
    """A signal asks the demo to end.

    Attributes:
        exit_code: What shells report for a command that this signal ended, such as 130 after Ctrl-C.
    """

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__(signal.Signals(number).name)


def ignore_from_now_on() -> None:
    """For a process that has its exit code and only has to end: one more Ctrl-C must not change that code."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Interruptions:
    """Handles the signals while it is entered, on the main thread; one that was ignored before stays ignored.

    A signal raises inside `heeded()` only. One that arrives elsewhere raises when `heeded()` is entered next,
    so that neither a process that was just started nor a teardown that has begun is left half done.
    """

    def __init__(self) -> None:
        self._heeded = False
        self._pending: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._arrive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Let a signal end the block; each signal ends at most one.

        Raises:
            Interrupted: One arrived, now or since the last block.
        """
        self._heeded = True
        try:
            if self._pending is not None:
                self._arrive(self._pending, None)
            yield
        finally:
            self._heeded = False

    def _arrive(self, number: int, _frame: FrameType | None) -> None:
        self._pending = number
        if self._heeded:
            self._heeded, self._pending = False, None
            raise Interrupted(number)
