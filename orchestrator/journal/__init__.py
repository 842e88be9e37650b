"""What must survive: the last record of every run that is not finished."""

from __future__ import annotations

from orchestrator.journal.memory import Journal, MemoryJournal

__all__ = ["Journal", "MemoryJournal"]
