"""Everything the server remembers, in one SQLite file, behind one thread.

Owns the connection, the order of writes and their durability. Knows the protocol's objects as JSON bodies
with ids, and none of their rules.

- All database work runs on the store's own thread, so that no fsync ever stalls the server's loop.
- `save` returns at once. Saves of one object made before the thread gets to them collapse into the last.
- The thread works in batches: everything saved, then every query asked for, then one commit (SQLite WAL,
  `synchronous=FULL`). Queries are answered after that commit: **what was answered is stored**, a query sees
  every earlier save, and a crowd of requests shares one fsync.
- The file is held exclusively: a second server on it fails at start instead of corrupting run locks.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import msgspec
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, select
from sqlalchemy.dialects.sqlite import Insert, insert
from sqlalchemy.pool import NullPool

from orchestrator.protocol.objects import ACTIVE_STATUSES
from orchestrator.server.objects import page
from orchestrator.server.schema import TABLES, Kind, idempotency, prepare

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Table

    from orchestrator.protocol.objects import JSON

__all__ = ["Store", "UnknownCursorError", "find", "listed"]

T = TypeVar("T")
_Job: TypeAlias = "tuple[Callable[[Connection], Any], Future[Any]]"
_Rows: TypeAlias = "dict[tuple[str, str], JSON]"
"""Rows to be written, by table and primary key."""

_RETRY_S: Final = 0.2
"""How long a batch whose commit failed (a full disk) waits before its saves are tried again."""


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


class Store:
    """The server's memory; made and opened anywhere, then used on one event loop.

    Args:
        path: The SQLite file; created with mode 0600 when it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine: Engine | None = None
        self._thread: threading.Thread | None = None
        self._condition = threading.Condition()
        self._fresh: _Rows = {}
        self._saves: _Rows = {}
        self._jobs: list[_Job] = []
        self._closing = False
        self._seq = 0

    def open(self) -> None:
        """Open or create the file and start the thread; blocks for some milliseconds.

        Raises:
            OSError: The file cannot be created or written.
            SchemaMismatchError: The file holds another version's tables.
            sqlalchemy.exc.SQLAlchemyError: The file is no database, or another server holds it.
        """
        self._path.touch(mode=0o600)
        self._engine = _engine(self._path)
        try:
            with self._engine.begin() as connection:
                prepare(connection)
                self._seq = max(_last_seq(connection, table) for table in TABLES.values())
            connection = self._engine.connect()
        except BaseException:
            self._engine.dispose()
            raise
        self._thread = threading.Thread(
            target=self._work, args=(connection,), name="orchestrator-server-store", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Write what was saved, stop the thread and close the file; blocks, may be repeated."""
        if self._thread is None or self._engine is None:
            return
        self._closing = True
        self._hand_over()
        self._thread.join()
        self._engine.dispose()
        self._thread = None

    def save(self, kind: Kind, body: JSON) -> None:
        """Write an object as it is now, soon; never blocks.

        What one turn of the loop saves is stored together or not at all. An object's place in lists is that
        of its first save.
        """
        table = TABLES[kind]
        self._seq += 1
        row = {column.name: body[column.name] for column in table.c if column.name not in ("seq", "body")}
        row |= {"seq": self._seq, "body": msgspec.json.encode(body)}
        self._add(kind, body["id"], row)

    def remember(self, key: str, *, digest: str, run_id: str, thread_id: str) -> None:
        """Note which run an idempotency key made; like `save`, and stored together with it."""
        row = {"key": key, "digest": digest, "run_id": run_id, "thread_id": thread_id}
        self._add(idempotency.name, key, row)

    def _add(self, table: str, row_id: str, row: JSON) -> None:
        if not self._fresh:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._fresh[table, row_id] = row

    def _hand_over(self, *jobs: _Job) -> None:
        """Give the thread what this turn of the loop saved, all at once: a transition is stored whole."""
        with self._condition:
            self._saves.update(self._fresh)
            self._fresh = {}
            self._jobs.extend(jobs)
            self._condition.notify()

    async def settle(self) -> None:
        """Wait until everything saved so far is on disk."""
        await self.perform(lambda _: None)

    async def perform(self, job: Callable[[Connection], T]) -> T:
        """Run a query on the store's thread, after all earlier saves; what it saw is durable when it returns.

        Args:
            job: Called with a connection inside a transaction. It must not write and then raise: it shares
                the transaction with others.
        """
        if self._closing:
            raise RuntimeError("the store is closed")
        future: Future[T] = Future()
        self._hand_over((job, future))
        return await asyncio.wrap_future(future)

    async def get(self, kind: Kind, object_id: str) -> JSON | None:
        """Return one object, or `None`."""
        return await self.perform(lambda connection: find(connection, kind, object_id))

    async def page(
        self,
        kind: Kind,
        *,
        limit: int,
        descending: bool,
        after: str | None = None,
        before: str | None = None,
        **filters: str,
    ) -> JSON:
        """Return one page of a list.

        Args:
            kind: Which objects.
            limit: The most objects on the page.
            descending: Newest first.
            after: The page starts behind this id, in the list's order.
            before: The page ends right before this id; with `after` too, both bound it and the start wins.
            **filters: Columns that must be equal, such as `thread_id`.

        Raises:
            UnknownCursorError: `after` or `before` is not in the list.
        """
        result = await self.perform(
            lambda connection: _page(
                connection,
                kind,
                filters=filters,
                limit=limit,
                descending=descending,
                after=after,
                before=before,
            )
        )
        if isinstance(result, UnknownCursorError):
            raise result
        return result

    async def all(self, kind: Kind, **filters: str) -> list[JSON]:
        """Return every object of a kind whose columns equal the filters, oldest first."""
        return await self.perform(lambda connection: listed(connection, kind, **filters))

    async def active_runs(self) -> list[JSON]:
        """Return the runs that are not terminal, oldest first."""
        table = TABLES["runs"]
        query = select(table.c.body).where(table.c.status.in_(ACTIVE_STATUSES)).order_by(table.c.seq)
        return await self.perform(lambda connection: _bodies(connection.scalars(query).all()))

    async def change(self, kind: Kind, object_id: str, change: Callable[[JSON], None]) -> JSON | None:
        """Change one stored object and return it, or `None`; nothing comes between reading and writing.

        `change` changes the object in place, on the store's thread, but no field that is a column. What it
        raises is raised here, and nothing is written.
        """
        return await self.perform(lambda connection: _change(connection, kind, object_id, change))

    async def delete(self, kind: Kind, object_id: str) -> bool:
        """Remove one object, and with a thread all it holds; say whether it existed."""
        return await self.perform(lambda connection: _delete(connection, kind, object_id))

    async def remembered(self, key: str) -> tuple[str, str] | None:
        """Return the digest and the run that an idempotency key stands for, or `None`."""
        query = select(idempotency.c.digest, idempotency.c.run_id).where(idempotency.c.key == key)

        def look(connection: Connection) -> tuple[str, str] | None:
            row = connection.execute(query).first()
            return None if row is None else (row.digest, row.run_id)

        return await self.perform(look)

    def _work(self, connection: Connection) -> None:
        with connection:
            while True:
                with self._condition:
                    while not (self._saves or self._jobs or self._closing):
                        self._condition.wait()
                    saves, self._saves = self._saves, {}
                    jobs, self._jobs = self._jobs, []
                    if not saves and not jobs:
                        return
                self._batch(connection, saves, jobs)

    def _batch(
        self,
        connection: Connection,
        saves: _Rows,
        jobs: list[_Job],
    ) -> None:
        outcomes: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            with connection.begin():
                _write(connection, saves)
                for job, future in jobs:
                    outcomes.append((future, *_outcome(job, connection)))
        except Exception as error:  # noqa: BLE001 - whatever the database raised belongs to those who wait for it
            for _, future in jobs:
                _settle(future, None, error)
            self._keep(saves)
            return
        for future, result, problem in outcomes:
            _settle(future, result, problem)

    def _keep(self, saves: _Rows) -> None:
        """Put unwritten saves back, under newer ones; when closing they are given up."""
        with self._condition:
            if not self._closing:
                self._saves = {**saves, **self._saves}
                self._condition.wait(_RETRY_S)


def _engine(path: Path) -> Engine:
    engine = create_engine(
        # Not a string: in one, a question mark in the path would begin options, and open another file.
        URL.create("sqlite", database=str(path.absolute())),
        poolclass=NullPool,
        connect_args={"check_same_thread": False, "timeout": 1.0, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _last_seq(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.max(table.c.seq))).scalar() or 0


def _outcome(job: Callable[[Connection], T], connection: Connection) -> tuple[T | None, Exception | None]:
    try:
        return job(connection), None
    except Exception as error:  # noqa: BLE001 - it is raised where the job was asked for
        return None, error


def _settle(future: Future[Any], result: Any, error: Exception | None) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _write(connection: Connection, saves: _Rows) -> None:
    rows: dict[str, list[JSON]] = {}
    for (table, _), row in saves.items():
        rows.setdefault(table, []).append(row)
    for name, batch in rows.items():
        connection.execute(_UPSERTS[name], batch)


def _upsert(table: Table) -> Insert:
    statement = insert(table)
    changed = {column.name: statement.excluded[column.name] for column in table.c if column.name in _CHANGING}
    return statement.on_conflict_do_update(index_elements=["id"], set_=changed)


_CHANGING: Final = ("body", "status")
_UPSERTS: Final[dict[str, Insert]] = {
    idempotency.name: insert(idempotency).on_conflict_do_nothing(),
    **{kind: _upsert(table) for kind, table in TABLES.items()},
}


def _bodies(rows: Any) -> list[JSON]:
    return [msgspec.json.decode(body) for body in rows]


def find(connection: Connection, kind: Kind, object_id: str) -> JSON | None:
    """Return one object, or `None`; for jobs that look at several things at once."""
    table = TABLES[kind]
    body = connection.execute(select(table.c.body).where(table.c.id == object_id)).scalar()
    return None if body is None else msgspec.json.decode(body)


def listed(connection: Connection, kind: Kind, **filters: str) -> list[JSON]:
    """Return all objects whose columns equal the filters, oldest first; for jobs like `find`."""
    table = TABLES[kind]
    query = select(table.c.body).where(*(table.c[name] == value for name, value in filters.items()))
    return _bodies(connection.scalars(query.order_by(table.c.seq)).all())


def _page(
    connection: Connection,
    kind: Kind,
    *,
    filters: dict[str, str],
    limit: int,
    descending: bool,
    after: str | None,
    before: str | None,
) -> JSON | UnknownCursorError:
    table = TABLES[kind]
    conditions = [table.c[name] == value for name, value in filters.items()]
    query = select(table.c.body).where(*conditions)
    for parameter, cursor in (("after", after), ("before", before)):
        if cursor is None:
            continue
        seq = connection.execute(select(table.c.seq).where(table.c.id == cursor, *conditions)).scalar()
        if seq is None:
            return UnknownCursorError(parameter, cursor)
        older = (parameter == "after") == descending
        query = query.where(table.c.seq < seq if older else table.c.seq > seq)
    backwards = before is not None and after is None
    order = table.c.seq.desc() if descending != backwards else table.c.seq.asc()
    rows = _bodies(connection.scalars(query.order_by(order).limit(limit + 1)).all())
    data = rows[:limit]
    return page(data[::-1] if backwards else data, has_more=len(rows) > limit)


def _change(
    connection: Connection, kind: Kind, object_id: str, change: Callable[[JSON], None]
) -> JSON | None:
    body = find(connection, kind, object_id)
    if body is not None:
        change(body)
        table = TABLES[kind]
        where = table.c.id == object_id
        connection.execute(table.update().where(where).values(body=msgspec.json.encode(body)))
    return body


def _delete(connection: Connection, kind: Kind, object_id: str) -> bool:
    if kind == "threads":
        for other in (*(TABLES[name] for name in ("messages", "runs", "steps")), idempotency):
            connection.execute(other.delete().where(other.c.thread_id == object_id))
    table = TABLES[kind]
    return connection.execute(table.delete().where(table.c.id == object_id)).rowcount > 0
