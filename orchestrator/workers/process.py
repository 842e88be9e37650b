"""One orchestrator for each process, made on first use, and so after any fork.

Owns when it is made and how it is left. Who forks, and when a process is told to end, is for the framework
around it to know.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from orchestrator.errors import OrchestratorClosed
from orchestrator.orchestrator import Orchestrator
from orchestrator.runs.request import require_patience

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PerProcess"]


class PerProcess:
    """Gives each process an orchestrator of its own. Safe on any thread, and across forks.

    Args:
        factory: Makes one. Called once in each process that asks; where it raises, again with the next
            question. A journal object serves one orchestrator, so the factory makes that, too, or gives its
            URL.
    """

    def __init__(self, factory: Callable[[], Orchestrator]) -> None:
        self._factory = factory
        self._own: dict[int, _Own] = {}

    @property
    def orchestrator(self) -> Orchestrator:
        """This process's orchestrator; the first use makes it.

        Raises:
            TypeError: The factory made something else.
            OrchestratorClosed: `close()` was called in this process before the first use.
        """
        own = self._here()
        with own.lock:
            if own.made is None:
                if own.closed:
                    raise OrchestratorClosed("this process is ending: no orchestrator is made any more")
                made = self._factory()
                if not isinstance(made, Orchestrator):
                    raise TypeError(f"the factory must make an Orchestrator, it made {type(made).__name__}")
                own.made = made
            return own.made

    def close(self, timeout_s: float) -> None:
        """Take no more runs in this process, let the open ones end, and leave the rest to other processes.

        Nothing is cancelled. Blocks; repeatable, and nothing where this process has made no orchestrator.

        Args:
            timeout_s: The most seconds that the open runs have to end.

        Raises:
            TypeError: `timeout_s` is no number.
            ValueError: `timeout_s` is negative.
            RuntimeError: An event loop runs on this thread: use `asyncio.to_thread()`.
        """
        require_patience("timeout_s", timeout_s)
        own = self._here()
        with own.closing:
            with own.lock:
                left, own.closed = own.closed, True
                made = own.made
            if made is not None and not left:
                made.drain(timeout_s)
                made.close(on_active="detach")

    def _here(self) -> _Own:
        """What is this process's: a fork may have copied the locks of its parent as held."""
        return self._own.setdefault(os.getpid(), _Own())


class _Own:
    """One process's orchestrator, once it is made."""

    __slots__ = ("closed", "closing", "lock", "made")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.closing = threading.Lock()  # held for as long as it takes, so that whoever comes second waits
        self.made: Orchestrator | None = None
        self.closed = False
