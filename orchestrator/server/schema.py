"""The tables, which version of them a database holds, and how an older one becomes this one.

Owns the layout: each object is one row with its JSON body, the namespace it belongs to, the columns that
lists are filtered by, and `seq`, the order of creation. How it came to be so is told by
`orchestrator.server.migrations`, from which every database is made, new ones too. Knows no queries.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    inspect,
    select,
)
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = [
    "METADATA",
    "SCHEMA_VERSION",
    "TABLES",
    "VERSION_TABLE",
    "Kind",
    "SchemaMismatchError",
    "idempotency",
    "prepare",
    "tenure",
]

SCHEMA_VERSION: Final = "0002"
"""The newest of the migrations, and what a database of this program is stamped with."""

VERSION_TABLE: Final = "schema_version"
"""Where the stamp is; Alembic's own name would be taken for that of another program beside this one."""

Kind: TypeAlias = Literal["assistants", "threads", "messages", "runs", "steps"]
"""The kinds of stored objects, named after their tables."""

METADATA: Final = MetaData()


class _Word(TypeDecorator[str]):
    """An id, a status, a hash: short text. What callers make up may hold what no database takes.

    Minted ids are letters, digits and `_`; what stands here for any other character finds nothing.
    """

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Return a text that both databases take."""
        if value is None or (value.isascii() and "\0" not in value):
            return value
        return value.replace("\0", "?").encode("ascii", "replace").decode()


def _word(name: str, **options: Any) -> Column[str]:
    return Column(name, _Word(64), **options)


def _objects(kind: Kind, *filters: str) -> Table:
    return Table(
        kind,
        METADATA,
        _word("id", primary_key=True),
        _word("namespace", nullable=False),
        Column("seq", BigInteger, nullable=False, unique=True),
        Column("body", LargeBinary, nullable=False),
        *(_word(name, index=True) for name in filters),
    )


TABLES: Final[dict[Kind, Table]] = {
    "assistants": _objects("assistants"),
    "threads": _objects("threads"),
    "messages": _objects("messages", "thread_id", "run_id"),
    "runs": _objects("runs", "thread_id", "status"),
    "steps": _objects("steps", "thread_id", "run_id"),
}
"""One table per kind; the columns behind `body` repeat fields of it for filters."""

# The one list that is not within a thread.
Index("ix_assistants_namespace_seq", TABLES["assistants"].c.namespace, TABLES["assistants"].c.seq)

idempotency: Final = Table(
    "idempotency",
    METADATA,
    _word("key", primary_key=True),
    _word("digest", nullable=False),
    _word("run_id", nullable=False),
    _word("thread_id", nullable=False, index=True),
)
"""Which run an `Idempotency-Key` made; `key` and `digest` are hashes, the first of the namespace, too."""

tenure: Final = Table("tenure", METADATA, _word("token", primary_key=True))
"""One row: a random token of the server that opened the database last."""

_VERSION_1: Final = Table("meta", MetaData(), Column("schema_version", BigInteger, primary_key=True))
"""The stamp of version 1, from before there were migrations."""

_ALEMBIC: Final = threading.Lock()
"""Alembic keeps what it works on in globals of its modules, and servers may start on several threads."""


class SchemaMismatchError(Exception):
    """The database holds tables of a newer version of this program, or of another one."""


def prepare(connection: Connection, *, heir: str) -> None:
    """Make the tables in an empty database, bring older ones up to date, or see that they are this version's.

    Args:
        connection: In a transaction, by which all of it happens or nothing.
        heir: The namespace that inherits objects from before there were namespaces.

    Raises:
        SchemaMismatchError: The tables are a newer version's, or not ours. Nothing was changed.
    """
    version = _version(connection)
    if version == SCHEMA_VERSION:
        return
    if version is not None and not (version.isdecimal() and version < SCHEMA_VERSION):
        raise SchemaMismatchError(
            f"its schema has version {version}, this program knows versions up to {SCHEMA_VERSION}: "
            "upgrade the program to a release that knows it, or choose another database"
        )
    _migrate(connection, version, heir)


def _version(connection: Connection) -> str | None:
    tables = set(inspect(connection).get_table_names())
    if not tables:
        return None
    if VERSION_TABLE in tables:
        stamp = Table(VERSION_TABLE, MetaData(), Column("version_num", String(32)))
        return str(connection.execute(select(stamp.c.version_num)).scalar())
    if {_VERSION_1.name, *TABLES} <= tables:
        return f"{connection.execute(select(_VERSION_1.c.schema_version)).scalar():04}"
    raise SchemaMismatchError(
        "it holds tables of another program: choose another database, or in PostgreSQL another schema"
    )


def _migrate(connection: Connection, version: str | None, heir: str) -> None:
    from alembic import command
    from alembic.config import Config

    directory = Path(__file__).parent / "migrations"
    config = Config(attributes={"connection": connection, "heir": heir})
    config.set_main_option("script_location", str(directory).replace("%", "%%"))
    with _ALEMBIC:
        if version is not None and not inspect(connection).has_table(VERSION_TABLE):
            command.stamp(config, version)
        command.upgrade(config, "head")
