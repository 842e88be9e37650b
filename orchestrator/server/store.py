"""Everything the server remembers, in SQLite or PostgreSQL, behind one thread.

Owns the order of writes and their durability. Knows the protocol's objects as JSON bodies with ids, and none
of their rules; the statements are those of `orchestrator.server.queries`.

- All database work runs on the store's own thread, so that no fsync and no round trip ever stalls the
  server's loop.
- `save` returns at once. Saves of one object made before the thread gets to them collapse into the last.
- The thread works in batches: everything saved, then every query asked for, then one commit (SQLite:
  WAL with `synchronous=FULL`). Queries are answered after that commit: **what was answered is stored**, a
  query sees every earlier save, and a crowd of requests shares one fsync.
- A batch that fails is tried again in parts, on a new connection if the old one is gone: saves are never
  given up while the server lives, and a query that cannot be answered fails alone.
- A `Shelf` is what one namespace sees of all this; nothing of another's can be reached through it.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from orchestrator.server import queries
from orchestrator.server.database import Database, Tenancy
from orchestrator.server.schema import Kind, idempotency, prepare
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from orchestrator.protocol.objects import JSON

__all__ = ["Shelf", "Store"]

_log = get_logger(__name__)

T = TypeVar("T")
_Job: TypeAlias = "tuple[Callable[[Connection], Any], Future[Any]]"
_Rows: TypeAlias = "dict[tuple[str, str], JSON]"
"""Rows to be written, by table and primary key."""

_RETRY_S: Final = 0.2
"""How long saves that could not be written (a full disk, a database that restarts) wait to be tried again."""


class Store:
    """The server's memory; made and opened anywhere, then used on one event loop.

    Args:
        database: A SQLite file, created with mode 0600 when it does not exist; or the URL of a PostgreSQL
            database, `postgresql+psycopg://…`.
        heir: The namespace that inherits objects from before there were namespaces.
    """

    def __init__(self, database: Database, *, heir: str = "") -> None:
        self._database = database
        self._heir = heir
        self._thread: threading.Thread | None = None
        self._condition = threading.Condition()
        self._fresh: _Rows = {}
        self._saves: _Rows = {}
        self._jobs: list[_Job] = []
        self._closing = False
        self._failing = False
        self._seq = 0

    def open(self) -> None:
        """Take hold of the database, make or migrate its tables and start the thread; does nothing if open.

        Blocks for some milliseconds, and for a few seconds where another server may be about to let go.

        Raises:
            OSError: The file cannot be created or written.
            DatabaseURLError: The URL cannot be used, or its driver is not installed.
            DatabaseHeldError: Another server works on it.
            SchemaMismatchError: It holds the tables of a newer version or of another program.
            sqlalchemy.exc.SQLAlchemyError: It is no database, or cannot be reached.
        """
        if self._thread is not None:
            return
        tenancy = Tenancy(self._database)
        connection = tenancy.connect()
        try:
            with connection.begin():
                prepare(connection, heir=self._heir)
                tenancy.begin(connection)
                self._seq = queries.last_seq(connection)
        except BaseException:
            connection.close()
            raise
        self._closing = self._failing = False
        self._thread = threading.Thread(
            target=self._work, args=(connection,), name="orchestrator-server-store", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Write what was saved, stop the thread and let go of the database; blocks, may be repeated."""
        if self._thread is None:
            return
        self._closing = True
        self._hand_over()
        self._thread.join()
        self._thread = None

    def within(self, namespace: str) -> Shelf:
        """Return what one namespace sees of the store."""
        return Shelf(self, namespace)

    async def namespaces_at_work(self) -> list[str]:
        """Return the namespaces that hold runs which are not terminal."""
        return await self.perform(queries.namespaces_at_work)

    def save(self, namespace: str, kind: Kind, body: JSON) -> None:
        """Write an object as it is now, soon; never blocks.

        What one turn of the loop saves is stored together or not at all. An object's place in lists is that
        of its first save.
        """
        self._seq += 1
        self._add(kind, body["id"], queries.row(namespace, kind, body, self._seq))

    def remember(self, key: str, *, digest: str, run_id: str, thread_id: str) -> None:
        """Note which run an idempotency key made; like `save`, and stored together with it."""
        row = {"key": key, "digest": digest, "run_id": run_id, "thread_id": thread_id}
        self._add(idempotency.name, key, row)

    def _add(self, table: str, row_id: str, row: JSON) -> None:
        if not self._fresh:
            asyncio.get_running_loop().call_soon(self._hand_over)
        _merge(self._fresh, {(table, row_id): row})

    def _hand_over(self, *jobs: _Job) -> None:
        """Give the thread what this turn of the loop saved, all at once: a transition is stored whole."""
        with self._condition:
            _merge(self._saves, self._fresh)
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
                the transaction with others. It is called again when the transaction was lost.
        """
        if self._closing:
            raise RuntimeError("the store is closed")
        future: Future[T] = Future()
        self._hand_over((job, future))
        return await asyncio.wrap_future(future)

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
                if self._batch(connection, saves, jobs) is not None:
                    self._salvage(connection, saves, jobs)

    def _batch(self, connection: Connection, saves: _Rows, jobs: list[_Job]) -> Exception | None:
        """Write, ask, commit, and only then answer; or return why nothing of it was done."""
        outcomes: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            with connection.begin():
                queries.write(connection, saves)
                for job, future in jobs:
                    outcomes.append((future, *_outcome(job, connection)))
        except Exception as error:  # noqa: BLE001 - whatever the database raised belongs to those who wait for it
            return error
        for future, result, problem in outcomes:
            _settle(future, result, problem)
        return None

    def _salvage(self, connection: Connection, saves: _Rows, jobs: list[_Job]) -> None:
        """Do what failed as a whole in parts: the saves, then each job in a transaction of its own."""
        error = self._batch(connection, saves, [])
        if error is not None:
            self._keep(saves, error)
            for _, future in jobs:
                _settle(future, None, error)
            self._pause()
            return
        self._failing = False
        for job in jobs:
            # Where there is no connection any more, the others need not wait for it one by one.
            problem = self._batch(connection, {}, [job]) if error is None else error
            error = problem if connection.invalidated else None
            if problem is not None:
                _settle(job[1], None, problem)

    def _keep(self, saves: _Rows, error: Exception) -> None:
        """Put unwritten saves back, under newer ones; when closing they are given up."""
        if not self._failing:
            # By its kind alone: what a database says of a statement may hold what users wrote.
            _log.error("server.store_failed", reason=type(error).__name__, unwritten=len(saves))
        self._failing = True
        with self._condition:
            if not self._closing:
                _merge(saves, self._saves)
                self._saves = saves

    def _pause(self) -> None:
        with self._condition:
            if not self._closing:
                self._condition.wait(_RETRY_S)


class Shelf:
    """What one namespace sees of a store; used on the store's loop.

    Args:
        store: The store; opened before anything is asked.
        namespace: Whose objects these are.

    Attributes:
        namespace: Whose objects these are.
    """

    def __init__(self, store: Store, namespace: str) -> None:
        self._store = store
        self.namespace = namespace

    def save(self, kind: Kind, body: JSON) -> None:
        """Write an object as it is now, soon; as `Store.save`."""
        self._store.save(self.namespace, kind, body)

    def remember(self, key: str, *, digest: str, run_id: str, thread_id: str) -> None:
        """Note which run an idempotency key made; as `Store.remember`."""
        self._store.remember(key, digest=digest, run_id=run_id, thread_id=thread_id)

    async def settle(self) -> None:
        """Wait until everything saved so far is on disk."""
        await self._store.settle()

    async def perform(self, job: Callable[[Connection, str], T]) -> T:
        """Look at several things at once; as `Store.perform`, the job is told the namespace, too."""
        return await self._store.perform(lambda connection: job(connection, self.namespace))

    async def get(self, kind: Kind, object_id: str) -> JSON | None:
        """Return one object, or `None`."""
        return await self.perform(lambda connection, own: queries.find(connection, own, kind, object_id))

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
        return await self.perform(
            lambda connection, own: queries.paged(
                connection,
                own,
                kind,
                filters=filters,
                limit=limit,
                descending=descending,
                after=after,
                before=before,
            )
        )

    async def all(self, kind: Kind, **filters: str) -> list[JSON]:
        """Return every object of a kind whose columns equal the filters, oldest first."""
        return await self.perform(lambda connection, own: queries.listed(connection, own, kind, **filters))

    async def change(self, kind: Kind, object_id: str, change: Callable[[JSON], None]) -> JSON | None:
        """Change one stored object and return it, or `None`; nothing comes between reading and writing.

        `change` changes the object in place, on the store's thread, but no field that is a column. What it
        raises is raised here, and nothing is written.
        """
        return await self.perform(
            lambda connection, own: queries.changed(connection, own, kind, object_id, change)
        )

    async def delete(self, kind: Kind, object_id: str) -> bool:
        """Remove one object, and with a thread all it holds; say whether it existed."""
        return await self.perform(lambda connection, own: queries.deleted(connection, own, kind, object_id))

    async def remembered(self, key: str) -> tuple[str, str] | None:
        """Return the digest and the run that an idempotency key stands for, or `None`."""
        return await self.perform(lambda connection, _: queries.remembered(connection, key))


def _merge(rows: _Rows, newer: _Rows) -> None:
    """Put newer rows over older ones, which have decided where they are in lists."""
    for key, row in newer.items():
        older = rows.get(key, row)
        rows[key] = row | {"seq": older["seq"]} if "seq" in row else row


def _outcome(job: Callable[[Connection], T], connection: Connection) -> tuple[T | None, Exception | None]:
    try:
        return job(connection), None
    except SQLAlchemyError:
        raise
    except Exception as error:  # noqa: BLE001 - it is raised where the job was asked for
        return None, error


def _settle(future: Future[Any], result: Any, error: Exception | None) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
