"""What the journal tells the supervisor's runs: the one place where the two meet.

Lives on the actors' loop. That something was kept goes to the run itself, many times in its life; everything
else is a message to the supervisor. It decides nothing.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pykka

from orchestrator.supervision.messages import CancelWanted, Lost, Opened, OutcomeKept

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from orchestrator.errors import JournalError
    from orchestrator.journal import Answer, StoredRun
    from orchestrator.supervision.open_run import OpenRun

__all__ = ["JournalNews"]


class JournalNews:
    """The supervisor's `orchestrator.journal.Listener`.

    Args:
        runs: The open runs.
        tell: Tells the supervisor.
        take_up: Told a run that nobody conducts any more; it does not wait.
    """

    def __init__(
        self,
        runs: Mapping[str, OpenRun],
        tell: Callable[[object], None],
        take_up: Callable[[StoredRun], None],
    ) -> None:
        self._runs = runs
        self._tell_supervisor = tell
        self._take_up = take_up

    def opened(self, key: str, answer: Answer) -> None:
        """See `Listener.opened`."""
        self._tell(Opened(key, answer))

    def kept(self, key: str, ticket: int) -> None:
        """See `Listener.kept`."""
        run = self._runs.get(key)
        if run is not None and run.in_flight is not None:
            run.in_flight.barrier.kept(ticket)
            if run.closing is not None and ticket >= run.closing:
                self._tell(OutcomeKept(key))

    def lost(self, key: str, error: JournalError) -> None:
        """See `Listener.lost`."""
        self._tell(Lost(key, error))

    def cancel_wanted(self, key: str) -> None:
        """See `Listener.cancel_wanted`."""
        self._tell(CancelWanted(key))

    def found(self, stored: StoredRun) -> None:
        """See `Listener.found`."""
        if stored.record.key not in self._runs:
            self._take_up(stored)

    def _tell(self, message: object) -> None:
        with contextlib.suppress(pykka.ActorDeadError):
            self._tell_supervisor(message)
