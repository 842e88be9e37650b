"""How many calls of one tool run at once.

Owns the places and the order in which calls get them. It starts nothing itself: a call that gets a place is
told so, on the thread of whoever gave it up.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from orchestrator.tools.declaration import Tool

__all__ = ["ConcurrencyLimits"]


@dataclass(slots=True)
class _Places:
    taken: int = 0
    waiting: deque[Callable[[], None]] = field(default_factory=deque)


class ConcurrencyLimits:
    """The places of all tools that have `max_concurrency`. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[Hashable, _Places] = {}

    def enter(self, tool: Tool[..., Any], then: Callable[[], None]) -> bool:
        """Take a place, or wait for one.

        Args:
            tool: The tool.
            then: Called once the call has a place, unless it had one at once or is withdrawn before. It must
                be quick; the place is given back by `leave`.

        Returns:
            Whether the place is taken; false while the call waits.
        """
        limit = tool.options.max_concurrency
        if limit is None:
            return True
        with self._lock:
            places = self._places.setdefault(_function(tool), _Places())
            if places.taken < limit:
                places.taken += 1
                return True
            places.waiting.append(then)
            return False

    def leave(self, tool: Tool[..., Any]) -> None:
        """Give a place back; who has waited longest gets it."""
        if tool.options.max_concurrency is None:
            return
        with self._lock:
            places = self._places[_function(tool)]
            then = places.waiting.popleft() if places.waiting else None
            if then is None:
                places.taken -= 1
                if not places.taken:
                    del self._places[_function(tool)]
        if then is not None:
            then()

    def withdraw(self, tool: Tool[..., Any], then: Callable[[], None]) -> None:
        """Let a call wait no longer; one that does not wait is none of this."""
        if tool.options.max_concurrency is None:
            return
        with self._lock:
            places = self._places.get(_function(tool))
            if places is not None and then in places.waiting:
                places.waiting.remove(then)


def _function(tool: Tool[..., Any]) -> Hashable:
    """What makes two tools the same: their function, and its object where it is a method.

    Ids will do, since an entry lasts no longer than the calls that hold the function.
    """
    function = tool.function
    return id(getattr(function, "__self__", None)), id(getattr(function, "__func__", function))
