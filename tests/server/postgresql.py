"""A PostgreSQL server for the tests: from the machine's own packages, on a loopback port, gone afterwards."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

USER = "orchestrator"
PATIENCE_S = 60.0


def programs() -> Path | None:
    """Where `initdb` and `pg_ctl` are: Debian keeps them out of the path."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    return versions[-1].parent if versions else None


class PostgreSQL:
    """A server with one database, in which every test gets a schema of its own.

    Args:
        programs: Where its programs are.
        directory: An empty directory, the server's own.
    """

    def __init__(self, programs: Path, directory: Path) -> None:
        self.password = secrets.token_hex(8)
        self._programs = programs
        self._data = directory / "data"
        self._log = directory / "log"
        self._password_file = directory / "password"
        self._schemas = count(1)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    @property
    def url(self) -> str:
        """The database's URL, with the password."""
        return f"postgresql+psycopg://{USER}:{self.password}@127.0.0.1:{self.port}/postgres"

    def make(self) -> None:
        self._password_file.write_text(self.password)
        self._password_file.chmod(0o644)
        self._do(
            "initdb",
            "--username",
            USER,
            "--pwfile",
            str(self._password_file),
            "--auth=scram-sha-256",
            "--encoding=UTF8",
        )

    def start(self) -> None:
        """Start; blocks until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        self._do("pg_ctl", "--wait", "--log", str(self._log), "--options", options, "start")

    def stop(self) -> None:
        """Stop at once, as a crash does; blocks until it is gone."""
        self._do("pg_ctl", "--wait", "--mode=immediate", "stop")

    def schema(self) -> str:
        """Create an empty schema; return the URL that leads to it."""
        name = f"test_{next(self._schemas)}"
        self.execute(f"CREATE SCHEMA {name}")
        return f"{self.url}?options={quote(f'-csearch_path={name}', safe='')}"

    def execute(self, statement: str) -> list[Any]:
        """Execute one statement as another client; return its rows, if it has any."""
        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _do(self, program: str, *arguments: str) -> None:
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        done = subprocess.run(
            [str(self._programs / program), "--pgdata", str(self._data), *arguments],
            # Neither program works for root.
            user="postgres" if root else None,
            group="postgres" if root else None,
            extra_groups=[] if root else None,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            # Into a file: the server would hold a pipe open for as long as it lives.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, (program, arguments, self._log.exists() and self._log.read_text())


@contextmanager
def running(programs: Path) -> Iterator[PostgreSQL]:
    """Start a server in a directory of its own; both are gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="orchestrator-postgresql-"))
    try:
        server = PostgreSQL(programs, directory)
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            shutil.chown(directory, "postgres", "postgres")
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory)
