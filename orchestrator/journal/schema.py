"""The journal's tables, and how an older version of them becomes this one.

Owns the layout. A run is one row with its request and its state; what it did is told by the rows of its tool
calls, its submissions and its time line. The tables may stand beside others in the same database. Texts that
users, models and tools make up are stored as bytes, because no database takes every text. Times are seconds
since the Unix epoch, by the database's own clock. Knows no statements.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    inspect,
    select,
)

from orchestrator.errors import JournalError

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = [
    "METADATA",
    "SCHEMA_VERSION",
    "VERSION_TABLE",
    "events",
    "prepare",
    "runs",
    "servers",
    "submissions",
    "tool_calls",
    "version",
]

SCHEMA_VERSION: Final = "0002"
"""The newest of the migrations, and what a database is stamped with."""

VERSION_TABLE: Final = "journal_version"

METADATA: Final = MetaData()

_ORDINAL: Final = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts rows up by itself only in a column of this name."""

runs: Final = Table(
    "journal_runs",
    METADATA,
    Column("ordinal", _ORDINAL, primary_key=True, autoincrement=True),
    Column("key", String(255), nullable=False, unique=True),
    Column("nonce", String(64), nullable=False),
    Column("server", Text, nullable=False),
    Column("organization", Text),
    Column("project", Text),
    Column("assistant_id", Text, nullable=False),
    Column("thread_id", Text),
    Column("run_id", Text),
    Column("asked", LargeBinary, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("status", Text),
    Column("attempts", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("owner", String(255)),
    Column("epoch", BigInteger, nullable=False),
    Column("lease_until", Double),
    Column("seq", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("outcome", LargeBinary),
    Column("error", Text),
    Index("ix_journal_runs_owner", "owner"),
    Index("ix_journal_runs_open", "ended_at", "lease_until"),
    Index("ix_journal_runs_thread", "thread_id"),
)
"""One row per run: `asked` is what was asked for, `state` the rest of its record, `seq` its last event."""


def _of_run() -> Column[int]:
    parent = ForeignKey("journal_runs.ordinal", ondelete="CASCADE")
    return Column("run", _ORDINAL, parent, primary_key=True, autoincrement=False)


tool_calls: Final = Table(
    "journal_tool_calls",
    METADATA,
    _of_run(),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("call_id", String(255), primary_key=True),
    Column("ordinal", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("arguments", LargeBinary, nullable=False),
    Column("state", String(16), nullable=False),
    Column("output", LargeBinary),
    Column("error", LargeBinary),
    Column("attempts", Integer, nullable=False),
    Column("duration_s", Double, nullable=False),
    Column("run_id", Text),
    Column("epoch", BigInteger, nullable=False),
)
"""One row per call, `started` before it is made and `finished` with its outcome; `ordinal` is its place."""

submissions: Final = Table(
    "journal_submissions",
    METADATA,
    _of_run(),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("run_id", Text),
    Column("epoch", BigInteger, nullable=False),
    Column("at", Double, nullable=False),
)
"""One row per batch that was submitted: `sent` before it is, `accepted` once the server shows that."""

events: Final = Table(
    "journal_events",
    METADATA,
    _of_run(),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("detail", Text),
    Column("epoch", BigInteger, nullable=False),
)
"""The run's time line; `seq` has no gaps, `epoch` says under which owner it happened."""

servers: Final = Table("journal_servers", METADATA, Column("base_url", Text, primary_key=True))
"""Servers that were seen to give metadata back, so that a run that is not listed is known not to exist."""

_ALEMBIC: Final = threading.Lock()
"""Alembic keeps what it works on in globals of its modules."""


def version(connection: Connection) -> str | None:
    """Return which version the tables have, or `None` where there are none."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    stamp = Table(VERSION_TABLE, MetaData(), Column("version_num", String(32)))
    return str(connection.execute(select(stamp.c.version_num)).scalar())


def prepare(connection: Connection) -> None:
    """Make the tables, bring older ones up to date, or see that they are this version's.

    Args:
        connection: In a transaction that no other process shares, by which all of it happens or nothing.

    Raises:
        JournalError: The tables are a newer version's. Nothing was changed.
    """
    found = version(connection)
    if found == SCHEMA_VERSION:
        return
    if found is not None and not (found.isdecimal() and found < SCHEMA_VERSION):
        raise JournalError(
            f"the journal's schema has version {found}, this program knows versions up to "
            f"{SCHEMA_VERSION}: upgrade the program to a release that knows it, or choose another database"
        )
    _migrate(connection)


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    directory = Path(__file__).parent / "migrations"
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(directory).replace("%", "%%"))
    with _ALEMBIC:
        command.upgrade(config, "head")
