"""The journal's interface, and the one that lives and dies with the process.

A journal keeps the last record of each run by its key. It does not look inside, and it does not decide who
may go on with a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from orchestrator.runs.record import RunRecord

__all__ = ["Journal", "MemoryJournal"]


class Journal(Protocol):
    """Keeps the last record of every unfinished run; used on the actors' loop, so nothing here waits."""

    def record(self, record: RunRecord) -> None:
        """Keep this in place of the run's earlier record."""

    def last(self, key: str) -> RunRecord:
        """Return the run's last record.

        Raises:
            KeyError: There is none.
        """

    def forget(self, key: str) -> None:
        """The run is finished: drop what was kept of it. Repeatable."""


class MemoryJournal:
    """Survives the death of a run's actor, not of the process."""

    def __init__(self) -> None:
        self._records: dict[str, RunRecord] = {}

    def record(self, record: RunRecord) -> None:
        """Keep this in place of the run's earlier record."""
        self._records[record.key] = record

    def last(self, key: str) -> RunRecord:
        """Return the run's last record; see `Journal.last`."""
        return self._records[key]

    def forget(self, key: str) -> None:
        """Drop what was kept of the run. Repeatable."""
        self._records.pop(key, None)
