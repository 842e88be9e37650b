"""The tables, and the stamp that says which version of them a file holds.

Owns the layout: each object is one row with its JSON body, the columns that lists are filtered by, and `seq`,
the order of creation. Knows no queries; `orchestrator.server.store` runs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from sqlalchemy import Column, Integer, LargeBinary, MetaData, String, Table, inspect, select

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["SCHEMA_VERSION", "TABLES", "Kind", "SchemaMismatchError", "idempotency", "prepare"]

SCHEMA_VERSION: Final = 1
"""Raised with every change of the tables below."""

Kind: TypeAlias = Literal["assistants", "threads", "messages", "runs", "steps"]
"""The kinds of stored objects, named after their tables."""

_metadata = MetaData()


def _objects(kind: Kind, *filters: str) -> Table:
    return Table(
        kind,
        _metadata,
        Column("id", String(64), primary_key=True),
        Column("seq", Integer, nullable=False, unique=True),
        Column("body", LargeBinary, nullable=False),
        *(Column(name, String(64), index=True) for name in filters),
    )


TABLES: Final[dict[Kind, Table]] = {
    "assistants": _objects("assistants"),
    "threads": _objects("threads"),
    "messages": _objects("messages", "thread_id", "run_id"),
    "runs": _objects("runs", "thread_id", "status"),
    "steps": _objects("steps", "thread_id", "run_id"),
}
"""One table per kind; the columns beside `id`, `seq` and `body` repeat fields of the body for filters."""

idempotency: Final = Table(
    "idempotency",
    _metadata,
    Column("key", String(64), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("thread_id", String(64), nullable=False, index=True),
)
"""Which run an `Idempotency-Key` made; `key` and `digest` are hashes."""

_meta = Table("meta", _metadata, Column("schema_version", Integer, primary_key=True))


class SchemaMismatchError(Exception):
    """The file holds tables of another version of this program."""


def prepare(connection: Connection) -> None:
    """Create the tables in an empty file, or check the stamp of one that has them.

    Raises:
        SchemaMismatchError: The file is stamped with another version, or holds tables that are not ours.
    """
    if inspect(connection).get_table_names():
        _check(connection)
        return
    _metadata.create_all(connection)
    connection.execute(_meta.insert().values(schema_version=SCHEMA_VERSION))


def _check(connection: Connection) -> None:
    if not inspect(connection).has_table(_meta.name):
        raise SchemaMismatchError("it holds tables of another program")
    version = connection.execute(select(_meta.c.schema_version)).scalar()
    if version != SCHEMA_VERSION:
        raise SchemaMismatchError(f"its schema has version {version}, this program knows {SCHEMA_VERSION}")
