"""How far a call is: told often by the tool, passed on seldom.

Owns the pace. It does not know who hears of it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from orchestrator.tools.outcome import shortened

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.tools.deadlines import Deadlines

__all__ = ["Progress"]

INTERVAL_S: Final = 0.1
"""The least time between two words of one call that are passed on."""

_LENGTH: Final = 2000


class Progress:
    """One call's progress.

    Args:
        deadlines: Calls back for the word that had to wait.
        tell: Takes a word and the fraction that is done; called from any thread, but never from two at once.
    """

    def __init__(self, deadlines: Deadlines, tell: Callable[[str, float | None], None]) -> None:
        self._deadlines = deadlines
        self._tell = tell
        self._lock = threading.Lock()
        self._told_at = float("-inf")
        self._newest: tuple[str, float | None] | None = None

    def report(self, detail: str, fraction: float | None) -> None:
        """Take the newest word. From any thread; never waits for whoever hears of it."""
        with self._lock:
            waiting = self._newest is not None
            self._newest = (shortened(detail, _LENGTH), fraction)
            due = self._told_at + INTERVAL_S
            if not waiting and due > time.monotonic():
                self._deadlines.at(due, self._pass_on)
                waiting = True
        if not waiting:
            self._pass_on()

    def _pass_on(self) -> None:
        with self._lock:
            newest, self._newest = self._newest, None
            if newest is not None:
                self._told_at = time.monotonic()
                self._tell(*newest)
