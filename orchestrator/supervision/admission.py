"""Who may start now: a bound on the runs at work, and one run at a time on a thread.

Pure bookkeeping over keys: no actors, no clocks. First come, first served, except that a run whose thread is
held does not keep the runs behind it waiting.
"""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count

__all__ = ["Admission"]


class Admission:
    """Hands out places to runs; not thread-safe.

    Args:
        limit: The most runs at work at once.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"at least one run must be allowed at a time, got {limit}")
        self._limit = limit
        self._numbers = count()
        self._tickets: dict[str, tuple[int, str]] = {}
        self._ready: list[tuple[int, str]] = []
        self._threads: dict[str, str | None] = {}
        self._holders: dict[str, list[str]] = {}
        self._parked: dict[str, deque[tuple[int, str]]] = {}
        self._working: set[str] = set()

    def holder(self, thread_id: str) -> str | None:
        """The key of the run that has the thread, at work or waiting for a place; `None` when it is free."""
        return next(iter(self._holders.get(thread_id, ())), None)

    def holders(self, thread_id: str) -> tuple[str, ...]:
        """The keys of all runs that have the thread; more than one where a run joined another."""
        return tuple(self._holders.get(thread_id, ()))

    def waiting(self, thread_id: str) -> tuple[str, ...]:
        """The keys of the runs that wait for the thread, in order."""
        return tuple(ticket[1] for ticket in self._parked.get(thread_id, ()) if self._is_valid(ticket))

    def ask(self, key: str, thread_id: str | None, *, next_in_line: bool = False) -> bool:
        """Queue for a place, and for the thread if one is given.

        Args:
            key: The run.
            thread_id: Its thread.
            next_in_line: Whether it gets the thread before those who wait for it already.

        Returns:
            Whether it has to wait for the thread.
        """
        if thread_id is None or thread_id not in self._holders:
            self.join(key, thread_id)
            return False
        ticket = self._register(key, thread_id)
        parked = self._parked.setdefault(thread_id, deque())
        if next_in_line:
            parked.appendleft(ticket)
        else:
            parked.append(ticket)
        return True

    def join(self, key: str, thread_id: str | None) -> None:
        """Queue for a place, and have the thread if one is given, also when others have it."""
        heapq.heappush(self._ready, self._register(key, thread_id))
        if thread_id is not None:
            self._holders.setdefault(thread_id, []).append(key)

    def hold(self, key: str, thread_id: str) -> None:
        """Note that a run which asked for no thread has made this one, and holds it."""
        if key in self._threads and self._threads[key] is None:
            self._threads[key] = thread_id
            self._holders.setdefault(thread_id, []).append(key)

    def leave(self, key: str) -> str | None:
        """Give up the place, or the wait for one; the thread passes on. Repeatable.

        Returns:
            The key of the run that has the thread now and did not before; it may still wait for a place.
        """
        thread_id = self._threads.pop(key, None)
        self._tickets.pop(key, None)
        self._working.discard(key)
        if thread_id is None or key not in self._holders.get(thread_id, ()):
            return None
        self._holders[thread_id].remove(key)
        return None if self._holders[thread_id] else self._pass_on(thread_id)

    def admitted(self) -> list[str]:
        """The keys that may start now, in order; each is named once."""
        keys: list[str] = []
        while self._ready and len(self._working) < self._limit:
            ticket = heapq.heappop(self._ready)
            if self._is_valid(ticket):
                key = ticket[1]
                self._working.add(key)
                keys.append(key)
        return keys

    def _register(self, key: str, thread_id: str | None) -> tuple[int, str]:
        ticket = self._tickets[key] = (next(self._numbers), key)
        self._threads[key] = thread_id
        return ticket

    def _is_valid(self, ticket: tuple[int, str]) -> bool:
        """Whether its run still waits; a later run may have the key of one that left."""
        return self._tickets.get(ticket[1]) == ticket

    def _pass_on(self, thread_id: str) -> str | None:
        waiting = self._parked.get(thread_id, deque())
        while waiting:
            ticket = waiting.popleft()
            if self._is_valid(ticket):
                self._holders[thread_id] = [ticket[1]]
                heapq.heappush(self._ready, ticket)
                return ticket[1]
        self._parked.pop(thread_id, None)
        del self._holders[thread_id]
        return None
