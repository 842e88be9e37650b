"""What must survive: records of runs, their outcomes, and who may go on with them."""

from __future__ import annotations

from orchestrator.journal.interface import (
    Address,
    Answer,
    Conducted,
    DurableJournal,
    Ended,
    Held,
    Journal,
    Listener,
    Refused,
    StoredRun,
)
from orchestrator.journal.memory import MemoryJournal

__all__ = [
    "Address",
    "Answer",
    "Conducted",
    "DurableJournal",
    "Ended",
    "Held",
    "Journal",
    "Listener",
    "MemoryJournal",
    "Refused",
    "StoredRun",
]
