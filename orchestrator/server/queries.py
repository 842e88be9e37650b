"""What is read and written of the tables, inside a transaction that somebody else holds.

Owns the statements, the same for SQLite and PostgreSQL, and that each of them reaches one namespace only.
Knows no threads, no commits and no order of writes; `orchestrator.server.store` has those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.protocol.objects import ACTIVE_STATUSES
from orchestrator.server.objects import page
from orchestrator.server.schema import TABLES, Kind, idempotency

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import ColumnElement, Connection, Table
    from sqlalchemy.dialects.postgresql import Insert as PostgreSQLInsert
    from sqlalchemy.dialects.sqlite import Insert as SQLiteInsert

    from orchestrator.protocol.objects import JSON

__all__ = [
    "UnknownCursorError",
    "active_runs",
    "changed",
    "deleted",
    "find",
    "last_seq",
    "listed",
    "namespaces_at_work",
    "paged",
    "remembered",
    "row",
    "write",
]

_CHANGING: Final = ("body", "status")
"""The columns that a later save of an object changes; the others are decided by the first."""

_REPEATED: Final[dict[Kind, list[str]]] = {
    kind: [name for name in table.c.keys() if name not in ("namespace", "seq", "body")]  # noqa: SIM118
    for kind, table in TABLES.items()
}
"""The columns that repeat fields of the body."""


class UnknownCursorError(Exception):
    """A list was asked to start at an object that is not in it.

    Attributes:
        parameter: `"after"` or `"before"`.
        cursor: The id that was given.
    """

    def __init__(self, parameter: str, cursor: str) -> None:
        self.parameter = parameter
        self.cursor = cursor
        super().__init__(f"no object {cursor!r} in this list")


def row(namespace: str, kind: Kind, body: JSON, seq: int) -> JSON:
    """Return an object as a row of its table."""
    values = {name: body[name] for name in _REPEATED[kind]}
    return values | {"namespace": namespace, "seq": seq, "body": msgspec.json.encode(body)}


def write(connection: Connection, rows: Mapping[tuple[str, str], JSON]) -> None:
    """Insert rows, or update those that exist; `rows` are keyed by table and primary key."""
    by_table: dict[str, list[JSON]] = {}
    for (table, _), values in rows.items():
        by_table.setdefault(table, []).append(values)
    upserts = _UPSERTS[connection.dialect.name]
    for name, batch in by_table.items():
        connection.execute(upserts[name], batch)


def _upserts(insert: Callable[[Table], SQLiteInsert | PostgreSQLInsert]) -> dict[str, Any]:
    made: dict[str, Any] = {idempotency.name: insert(idempotency).on_conflict_do_nothing()}
    for kind, table in TABLES.items():
        statement = insert(table)
        changing = {name: statement.excluded[name] for name in _CHANGING if name in table.c}
        made[kind] = statement.on_conflict_do_update(index_elements=["id"], set_=changing)
    return made


_UPSERTS: Final = {"sqlite": _upserts(sqlite.insert), "postgresql": _upserts(postgresql.insert)}


def last_seq(connection: Connection) -> int:
    """Return the highest `seq` that was given, or 0."""
    queries = (select(func.max(table.c.seq)) for table in TABLES.values())
    return max(connection.execute(query).scalar() or 0 for query in queries)


def find(connection: Connection, namespace: str, kind: Kind, object_id: str) -> JSON | None:
    """Return one object, or `None`."""
    query = select(TABLES[kind].c.body).where(*_is(kind, namespace, id=object_id))
    body = connection.execute(query).scalar()
    return None if body is None else msgspec.json.decode(body)


def listed(connection: Connection, namespace: str, kind: Kind, **filters: str) -> list[JSON]:
    """Return all objects whose columns equal the filters, oldest first."""
    table = TABLES[kind]
    query = select(table.c.body).where(*_is(kind, namespace, **filters)).order_by(table.c.seq)
    return _bodies(connection.scalars(query).all())


def active_runs(connection: Connection, namespace: str) -> list[JSON]:
    """Return the runs that are not terminal, oldest first."""
    runs = TABLES["runs"]
    active = runs.c.status.in_(ACTIVE_STATUSES)
    query = select(runs.c.body).where(*_is("runs", namespace), active).order_by(runs.c.seq)
    return _bodies(connection.scalars(query).all())


def namespaces_at_work(connection: Connection) -> list[str]:
    """Return the namespaces that hold runs which are not terminal."""
    runs = TABLES["runs"]
    query = select(runs.c.namespace).where(runs.c.status.in_(ACTIVE_STATUSES)).distinct()
    return list(connection.scalars(query).all())


def paged(
    connection: Connection,
    namespace: str,
    kind: Kind,
    *,
    filters: Mapping[str, str],
    limit: int,
    descending: bool,
    after: str | None,
    before: str | None,
) -> JSON:
    """Return one page of a list; as `orchestrator.server.store.Shelf.page`."""
    table = TABLES[kind]
    conditions = _is(kind, namespace, **filters)
    query = select(table.c.body).where(*conditions)
    for parameter, cursor in (("after", after), ("before", before)):
        if cursor is None:
            continue
        seq = connection.execute(select(table.c.seq).where(table.c.id == cursor, *conditions)).scalar()
        if seq is None:
            raise UnknownCursorError(parameter, cursor)
        older = (parameter == "after") == descending
        query = query.where(table.c.seq < seq if older else table.c.seq > seq)
    backwards = before is not None and after is None
    order = table.c.seq.desc() if descending != backwards else table.c.seq.asc()
    rows = _bodies(connection.scalars(query.order_by(order).limit(limit + 1)).all())
    data = rows[:limit]
    return page(data[::-1] if backwards else data, has_more=len(rows) > limit)


def changed(
    connection: Connection, namespace: str, kind: Kind, object_id: str, change: Callable[[JSON], None]
) -> JSON | None:
    """Change one object in place and return it, or `None`; what `change` raises leaves it as it was."""
    body = find(connection, namespace, kind, object_id)
    if body is not None:
        change(body)
        table = TABLES[kind]
        where = _is(kind, namespace, id=object_id)
        connection.execute(table.update().where(*where).values(body=msgspec.json.encode(body)))
    return body


def deleted(connection: Connection, namespace: str, kind: Kind, object_id: str) -> bool:
    """Remove one object, and with a thread all it holds; say whether it existed."""
    gone = connection.execute(TABLES[kind].delete().where(*_is(kind, namespace, id=object_id))).rowcount > 0
    if gone and kind == "threads":
        for table in (*(TABLES[name] for name in ("messages", "runs", "steps")), idempotency):
            connection.execute(table.delete().where(table.c.thread_id == object_id))
    return gone


def remembered(connection: Connection, key: str) -> tuple[str, str] | None:
    """Return the digest and the run that an idempotency key stands for, or `None`."""
    query = select(idempotency.c.digest, idempotency.c.run_id).where(idempotency.c.key == key)
    found = connection.execute(query).first()
    return None if found is None else (found.digest, found.run_id)


def _is(kind: Kind, namespace: str, **filters: str) -> list[ColumnElement[bool]]:
    """Build the conditions of every query: one namespace, and columns that must be equal."""
    columns = TABLES[kind].c
    return [columns[name] == value for name, value in {"namespace": namespace, **filters}.items()]


def _bodies(rows: Any) -> list[JSON]:
    return [msgspec.json.decode(body) for body in rows]
