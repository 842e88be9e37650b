"""How the server's database is reached, and that it belongs to one server at a time.

Owns the two kinds of database, their connections, the hold that keeps a second server out, and who may read
the files. Knows no tables but the one-row `tenure`, by which a server learns that another has taken over.

- SQLite: the file is locked exclusively while it is open; it, its `-wal` and `-shm` are its owner's alone.
- PostgreSQL: an advisory lock of the session, for the current schema of the database. It falls with the
  session. A server whose session was cut off takes the lock again, and goes on only if nobody had it
  meanwhile. A pooler that lends one session to several clients breaks this: connect directly.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.pool import NullPool

from orchestrator.server.schema import tenure

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["Database", "DatabaseHeldError", "DatabaseURLError", "Tenancy", "shown"]

Database: TypeAlias = Path | str
"""A SQLite file, or the URL of a PostgreSQL database: `postgresql+psycopg://user@host/name`."""

_DRIVER: Final = "postgresql+psycopg"
_SQLITE_WAIT_S: Final = 1.0
_POSTGRESQL_WAIT: Final = "2s"
"""How long a starting server waits for the hold: one that was killed a moment ago may still be noticed."""

_LOCK: Final = 0x6F726368
"""What our advisory locks are told from others' by, beside the hash of the schema's name."""

_LINK: Final = {
    "client_encoding": "utf8",
    "connect_timeout": 5,
    # A server that is cut off from its database learns of it within seconds, and not from TCP's own patience.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "application_name": "orchestrator-server",
}
"""What the client library is told, where the URL does not say otherwise."""

# The other way round: when this machine is gone, its session and hold fall within half a minute.
_SESSION: Final = (
    f"SET lock_timeout = '{_POSTGRESQL_WAIT}'",
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 3",
)

_HELD: Final = "another server holds it: stop that one, or give this one a database of its own"


class DatabaseHeldError(Exception):
    """Another server works on the database, or has done so since this one lost its connection."""


class DatabaseURLError(ValueError):
    """The URL is none, or one of a database that the server does not work on."""


def shown(database: Database) -> str:
    """Return a database's name for messages: a path, or a URL without its password."""
    if isinstance(database, Path):
        return str(database)
    try:
        return make_url(database).render_as_string(hide_password=True)
    except ArgumentError:
        return "given"


class Tenancy:
    """The hold on a database, over all connections that one server makes to it.

    Args:
        database: The file or URL; nothing is opened yet.

    Raises:
        DatabaseURLError: The URL cannot be used, or its driver is not installed.
    """

    def __init__(self, database: Database) -> None:
        self._token = ""
        self._path = database if isinstance(database, Path) else None
        self.engine = _sqlite(database) if isinstance(database, Path) else _postgresql(database)
        event.listen(self.engine, "connect", self._hold)
        if self._path is not None:
            event.listen(self.engine, "begin", _begin)

    def connect(self) -> Connection:
        """Connect and take hold; blocks for at most some seconds.

        Raises:
            DatabaseHeldError: Another server has it.
            OSError: The file cannot be created, or made private.
            sqlalchemy.exc.SQLAlchemyError: It is no database, or cannot be reached.
        """
        if self._path is not None:
            _make_private(self._path)
        try:
            connection = self.engine.connect()
            try:
                connection.begin().rollback()  # SQLite locks its file with the first transaction
            except BaseException:
                connection.close()
                raise
        except OperationalError as error:
            if _is_busy(error):
                raise DatabaseHeldError(_HELD) from None
            raise
        return connection

    def begin(self, connection: Connection) -> None:
        """Leave a token in the tables, in the caller's transaction, to be found after a lost session."""
        token = secrets.token_hex(16)
        connection.execute(tenure.delete())
        connection.execute(tenure.insert().values(token=token))
        self._token = token

    def _hold(self, connection: Any, _record: object) -> None:
        """Configure a new connection of the driver's."""
        try:
            if self._path is not None:
                for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
                    connection.execute(f"PRAGMA {pragma}").close()
            else:
                self._hold_session(connection)
        except BaseException:
            connection.close()
            raise

    def _hold_session(self, connection: Any) -> None:
        with connection.cursor() as cursor:
            for setting in _SESSION:
                cursor.execute(setting)
            cursor.execute("SELECT pg_advisory_lock(%s, hashtext(current_schema()))", (_LOCK,))
            if self._token:
                cursor.execute(f"SELECT token FROM {tenure.name}")  # noqa: S608 - a name of ours
                if cursor.fetchone() != (self._token,):
                    raise DatabaseHeldError("another server has worked on it since: restart this one")
        connection.commit()


def _sqlite(path: Path) -> Engine:
    # Parameters are hidden here and below: errors are logged, and what users wrote is not.
    return create_engine(
        # Not a string: in one, a question mark in the path would begin options, and open another file.
        URL.create("sqlite", database=str(path.absolute())),
        poolclass=NullPool,
        connect_args={"check_same_thread": False, "timeout": _SQLITE_WAIT_S, "isolation_level": None},
        hide_parameters=True,
    )


def _postgresql(text: str) -> Engine:
    try:
        url = make_url(text)
    except ArgumentError:
        raise DatabaseURLError("it is neither a file nor a URL") from None
    if url.drivername != _DRIVER:
        raise DatabaseURLError(f"a URL must begin with {_DRIVER}:// (for SQLite, give the file)")
    settings = {name: value for name, value in _LINK.items() if name not in url.query}
    try:
        return create_engine(url, poolclass=NullPool, connect_args=settings, hide_parameters=True)
    except ImportError:
        raise DatabaseURLError(
            "PostgreSQL needs another extra: pip install 'run-orchestrator[server,postgres]'"
        ) from None


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _make_private(path: Path) -> None:
    """Create a file that only its owner reads, and make an older one so, with what belongs to it."""
    path.touch(mode=0o600)
    for file in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))):
        # SQLite gives the files beside it the mode of the database; those of a killed server are there still.
        if file.exists() and file.stat().st_mode & 0o077:
            file.chmod(0o600)


def _is_busy(error: OperationalError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    return code == _SQLITE_BUSY or getattr(error.orig, "sqlstate", "") == _LOCK_NOT_AVAILABLE


_SQLITE_BUSY: Final = 5
_LOCK_NOT_AVAILABLE: Final = "55P03"
