"""How a journal's database is reached: its kind, its connections, its clock, and who may read its files.

Owns what differs between SQLite and PostgreSQL, and what a failure is called. Several processes share one
database, so that nothing here is held for longer than a transaction. Knows no tables.

- SQLite: write-ahead log, `synchronous=FULL`; a transaction that writes takes the file's lock when it begins.
  The file, its `-wal` and `-shm` are their owner's alone.
- PostgreSQL: rows are locked as they are read for writing; a pooler in transaction mode is fine.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    URL,
    ColumnElement,
    Engine,
    Table,
    create_engine,
    event,
    func,
    literal_column,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from orchestrator.errors import JournalError
from orchestrator.journal import schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Executable

__all__ = ["Database"]

_DRIVER: Final = "postgresql+psycopg"

_SQLITE_WAIT_S: Final = 5.0
"""How long a transaction waits for those of other processes."""

_LINK: Final = {
    "client_encoding": "utf8",
    "connect_timeout": 5,
    # A process that is cut off from its database learns of it within seconds, not by TCP's own patience.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "application_name": "orchestrator-journal",
}
"""What the client library is told, where the URL does not say otherwise."""

_MIGRATING: Final = 0x6F6A726E
"""What the advisory lock of a migration is told from others' by."""


class Database:
    """A journal's database. Nothing is opened before it is used; every connection is the caller's own.

    Args:
        url: `sqlite:///runs.db` or `postgresql+psycopg://user@host/name`.

    Attributes:
        shown: The URL for messages, without its password.

    Raises:
        ValueError: It is no such URL.
        JournalError: Its driver is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):
            raise ValueError(
                "a journal's URL is sqlite:///runs.db or postgresql+psycopg://user@host/database"
            ) from None
        self.shown: Final = parsed.render_as_string(hide_password=True)
        self._path: Path | None = None
        if parsed.drivername == "sqlite" and parsed.database and parsed.database != ":memory:":
            self._path = Path(parsed.database).absolute()
            self._engine = _sqlite(self._path)
        elif parsed.drivername == _DRIVER:
            self._engine = _postgresql(parsed)
        else:
            raise ValueError(
                f"{self.shown}: a journal's URL is sqlite:///runs.db, a file, or "
                f"postgresql+psycopg://user@host/database"
            )
        self._prepared = False
        self._compiled: dict[Executable, tuple[str, list[str] | None]] = {}

    @property
    def place(self) -> URL:
        """What is the same for everybody who works on this database."""
        return self._engine.url

    @property
    def now(self) -> ColumnElement[float]:
        """The database's clock, in seconds since the Unix epoch, at the moment it is asked."""
        if self._path is not None:
            return literal_column("(julianday('now') - 2440587.5) * 86400.0")
        return literal_column("extract(epoch from clock_timestamp())::double precision")

    def insert_new(self, table: Table, unique: str) -> Any:
        """An INSERT that leaves what it finds under the same name as it is."""
        kind = sqlite if self._path is not None else postgresql
        return kind.insert(table).on_conflict_do_nothing(index_elements=[unique])

    def lock(self, connection: Connection, name: int) -> None:
        """Until the transaction ends, nobody else passes here; one that writes to SQLite is alone anyway."""
        if self._path is None:
            connection.execute(select(func.pg_advisory_xact_lock(name)))

    @cache  # noqa: B019 - a few statements, for as long as the database is used
    def upsert(self, table: Table, *changed: str) -> Any:
        """An INSERT that replaces these columns where the row exists, or with none leaves it as it is."""
        kind = sqlite if self._path is not None else postgresql
        insert = kind.insert(table)
        keys = [column.name for column in table.primary_key]
        if not changed:
            return insert.on_conflict_do_nothing()
        return insert.on_conflict_do_update(
            index_elements=keys, set_={name: insert.excluded[name] for name in changed}
        )

    def execute_many(self, connection: Connection, statement: Any, rows: list[dict[str, Any]]) -> None:
        """Execute a statement for each of the rows, which all have the same names.

        It is compiled once, and the driver is given the values as they are: what SQLAlchemy does to each of
        them costs more than the database.
        """
        if statement not in self._compiled:
            compiled = statement.compile(dialect=self._engine.dialect, column_keys=list(rows[0]))
            self._compiled[statement] = str(compiled), compiled.positiontup
        text, order = self._compiled[statement]
        if order is None:
            connection.exec_driver_sql(text, rows)
        else:
            connection.exec_driver_sql(text, [tuple(map(row.__getitem__, order)) for row in rows])

    def connect(self) -> Connection:
        """Connect, and see once that the tables are there; blocks.

        Raises:
            JournalError: It cannot be reached or used, or its tables are a newer version's.
        """
        with self.explained("opened"):
            connection = self._connect()
        try:
            if not self._prepared:
                self._prepare(connection)
                self._prepared = True
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads, on a connection of its own; blocks."""
        with self.connect() as connection, self.explained("read"), self.read(connection):
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes, on a connection of its own; blocks."""
        with self.connect() as connection, self.explained("written"), self.write(connection):
            yield connection

    @contextmanager
    def read(self, connection: Connection) -> Iterator[None]:
        """A transaction that only reads, on this connection."""
        connection.execution_options(writes=False)
        with connection.begin():
            yield

    @contextmanager
    def write(self, connection: Connection) -> Iterator[None]:
        """A transaction that writes, on this connection."""
        connection.execution_options(writes=True)
        with connection.begin():
            yield

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Have the database's errors say what could not be done, and what may help.

        Raises:
            JournalError: In place of SQLAlchemy's and the file system's.
        """
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            raise self.error(what, error) from error

    def error(self, what: str, error: Exception) -> JournalError:
        """What to raise in place of a database's error."""
        reason = _reason(error)
        return JournalError(f"the journal {self.shown} cannot be {what}: {reason}; {_remedy(reason)}")

    def _connect(self) -> Connection:
        if self._path is not None:
            _make_private(self._path)
        return self._engine.connect()

    def _prepare(self, connection: Connection) -> None:
        # A database that is up to date is only read, and may be read-only.
        with self.explained("read"), self.read(connection):
            version = schema.version(connection)
        if version == schema.SCHEMA_VERSION:
            return
        with self.explained("prepared"), self.write(connection):
            self.lock(connection, _MIGRATING)
            schema.prepare(connection)


def _sqlite(path: Path) -> Engine:
    # Parameters are hidden here and below: errors are logged, and what users wrote is not.
    engine = create_engine(
        # Not a string: in one, a question mark in the path would begin options, and open another file.
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        connect_args={"check_same_thread": False, "timeout": _SQLITE_WAIT_S, "isolation_level": None},
        hide_parameters=True,
    )
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: object) -> None:
    try:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()
    except BaseException:
        connection.close()
        raise


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _postgresql(url: URL) -> Engine:
    settings = {name: value for name, value in _LINK.items() if name not in url.query}
    try:
        return create_engine(url, poolclass=NullPool, connect_args=settings, hide_parameters=True)
    except ImportError:
        raise JournalError(
            "a journal in PostgreSQL needs another extra: pip install 'run-orchestrator[journal,postgres]'"
        ) from None


def _make_private(path: Path) -> None:
    """Create a file that only its owner reads; SQLite gives the files beside it the same mode."""
    if not path.exists():
        path.touch(mode=0o600)


def _reason(error: Exception) -> str:
    """What the database said, in one line; never a value that was to be written."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return str(original).strip().partition("\n")[0] or type(error).__name__


_REMEDIES: Final = {
    "disk is full": "free some space: what was not written yet is tried again",
    "readonly": "make the file and its directory writable for this user",
    "read-only": "make the database writable for this user",
    "unable to open": "see that the directory exists and is writable",
    "not a database": "choose another file",
    "locked": "another process holds it for long: look for a long transaction",
}


def _remedy(reason: str) -> str:
    found = (remedy for words, remedy in _REMEDIES.items() if words in reason)
    return next(found, "see that the database is reachable, and that its user may write")
