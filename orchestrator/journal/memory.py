"""The journal that lives and dies with the process: what an orchestrator has that is given none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orchestrator.errors import UnknownRun
from orchestrator.journal.interface import Answer, Conducted, Refused

if TYPE_CHECKING:
    import asyncio

    from orchestrator.journal.interface import Address, Listener
    from orchestrator.runs.effects import Finish
    from orchestrator.runs.record import RunRecord

__all__ = ["MemoryJournal"]


class MemoryJournal:
    """Survives the death of a run's actor, not of the process; see `Journal` for the methods."""

    survives: Final = False

    def __init__(self) -> None:
        self._records: dict[str, RunRecord] = {}

    def serve(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        """Nobody needs to be told anything."""

    def open(self, record: RunRecord, address: Address) -> Answer:  # noqa: ARG002 - nobody else reads it
        """Conduct this run; its key is new, or its orchestrator would have refused it."""
        self._records[record.key] = record
        return Conducted(record=record, first=True)

    def claim(self, key: str) -> Answer:
        """Refuse: what is known here is conducted already."""
        return Refused(
            error=UnknownRun(f"run {key!r} is not known: this orchestrator has no journal", key=key)
        )

    def record(self, record: RunRecord) -> None:
        """Keep this in place of the run's earlier record."""
        self._records[record.key] = record

    def last(self, key: str) -> RunRecord:
        """Return the run's last record."""
        return self._records[key]

    def finish(self, record: RunRecord, finish: Finish) -> None:  # noqa: ARG002 - nobody asks for outcomes here
        """Drop what was kept of the run."""
        self._records.pop(record.key, None)

    def let_go(self, key: str) -> None:
        """Drop what was kept of the run. Repeatable."""
        self._records.pop(key, None)

    def request_cancel(self, key: str) -> None:
        """Whoever conducts the run is in this process, and is told."""

    def may_act(self, key: str) -> bool:  # noqa: ARG002 - as in `Journal`
        """Nobody else can take the run."""
        return True

    def sweep(self) -> None:
        """There are no other owners."""

    def close(self, timeout_s: float) -> None:
        """Nothing is left to be written."""
