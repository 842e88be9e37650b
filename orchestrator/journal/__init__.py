"""What must survive: records of runs, their outcomes, and who may go on with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator import errors
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

if TYPE_CHECKING:
    from orchestrator.journal.sql import SQLJournal

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
    "SQLJournal",
    "StoredRun",
    "sql_journal",
]


def sql_journal(url: str) -> SQLJournal:
    """Return the journal that a URL names; nothing is opened yet.

    Raises:
        ValueError: It is no such URL.
        JournalError: The packages for it are not installed; the message says which extra brings them.
    """
    try:
        from orchestrator.journal.sql import SQLJournal
    except ImportError as error:
        raise errors.JournalError(
            f"a journal needs another extra: pip install 'run-orchestrator[journal]' ({error})"
        ) from error
    return SQLJournal(url)


def __getattr__(name: str) -> type[SQLJournal]:
    """Import SQLAlchemy when somebody asks for what needs it, and not with `import orchestrator`."""
    if name == "SQLJournal":
        from orchestrator.journal.sql import SQLJournal

        return SQLJournal
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
