"""Brokers for the tests: from the machine's own packages, on loopback ports, gone afterwards."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PATIENCE_S = 60.0


class Broker(Protocol):
    """A broker that keeps its messages over a restart."""

    name: str

    @property
    def url(self) -> str:
        """For `Celery(broker=…)`."""

    def restart(self) -> None:
        """End it as its own service would, and start it again; blocks until it answers."""


class Redis:
    """A Redis server that keeps what it was told in a file.

    Args:
        directory: An empty directory, the server's own.
    """

    name = "redis"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        options = ("--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(self._directory))
        kept = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
        self._process = _started(["redis-server", *options, *kept], self._directory / "log")
        wait_until(lambda: _answers(self._port), "redis-server", self._directory / "log")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE_S)

    def restart(self) -> None:
        self.stop()
        self.start()


class RabbitMQ:
    """A RabbitMQ node of its own, with a name daemon of its own.

    Args:
        programs: Where the programs are that take their settings from the environment.
        directory: An empty directory, the node's own.
    """

    name = "rabbitmq"

    def __init__(self, programs: Path, directory: Path) -> None:
        self._programs = programs
        self._directory = directory
        self._port = free_port()
        self._log = directory / "log"
        (directory / "plugins").write_text("[].\n")
        (directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.default = 127.0.0.1:{self._port}\nloopback_users = none\n"
        )
        cookie = directory / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(10))
        cookie.chmod(0o400)
        self._environment = {
            "PATH": os.defpath,
            "HOME": str(directory),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"test-{os.getpid()}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "logs"),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            # Its schedulers would otherwise look for work in a busy loop.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self._port}//"

    def start(self) -> None:
        program = str(self._programs / "rabbitmq-server")
        self._process = _started([program], self._log, env=self._environment)
        wait_until(lambda: _answers(self._port), "rabbitmq-server", self._log)

    def stop(self) -> None:
        """End the node, and wait until it has written what it has."""
        process, self._process = self._process, None
        if process is not None:
            # The virtual machine is a child of the script, and is told by the node's own means.
            process.terminate()
            process.wait(PATIENCE_S)

    def end(self) -> None:
        """End the node and its name daemon."""
        self.stop()
        wait_until(lambda: self._epmd("-kill") == 0, "the end of epmd", self._log)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _epmd(self, *arguments: str) -> int:
        return subprocess.run(
            ["epmd", *arguments],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=False,
        ).returncode


def rabbitmq_programs() -> Path | None:
    """Where RabbitMQ's programs are; those in the path work for its own user only."""
    programs = Path("/usr/lib/rabbitmq/bin")
    return programs if (programs / "rabbitmq-server").exists() and shutil.which("epmd") else None


@contextmanager
def redis() -> Iterator[Redis]:
    """Start a server in a directory of its own; both are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="orchestrator-redis-") as directory:
        server = Redis(Path(directory))
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextmanager
def rabbitmq(programs: Path) -> Iterator[RabbitMQ]:
    """Start a node in a directory of its own; both are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="orchestrator-rabbitmq-") as directory:
        node = RabbitMQ(programs, Path(directory))
        try:
            node.start()
            yield node
        finally:
            node.end()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def wait_until(holds: Callable[[], bool], what: str, log: Path) -> None:
    """Wait for what a program tells nobody of."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, (what, log.read_text())
        time.sleep(0.05)


def _started(
    command: Sequence[str], log: Path, *, env: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env
        )


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
