"""What tests of durable runs share: journals in a test's database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.journal.sql import SQLJournal

if TYPE_CHECKING:
    from orchestrator.server.database import Database


def journal_url(database: Database) -> str:
    """Under which URL a journal is in this database."""
    return database if isinstance(database, str) else f"sqlite:///{database}"


def journal_in(
    database: Database, *, lease_s: float = 5.0, poll_s: float = 0.05, **options: Any
) -> SQLJournal:
    """One more journal object for this database, which looks at what others do more often than usual."""
    return SQLJournal(journal_url(database), lease_s=lease_s, poll_s=poll_s, **options)
