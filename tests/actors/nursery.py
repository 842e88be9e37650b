"""Processes that are forked from a warm interpreter: dozens, each of which costs milliseconds to start.

As a script it is that interpreter: it has imported what the children do, listens on a Unix socket, and forks
a child for every connection, whose job is one line of JSON. It has no thread of its own, so a child begins as
if it had just imported everything. A child answers its process id, and in the end its exit code. Knows
nothing of what children do.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Child:
    """A process that has begun.

    Attributes:
        pid: Its id.
    """

    pid: int
    _connection: socket.socket
    _answers: TextIO

    def wait(self) -> int:
        """Wait for its end; returns its exit code, or minus the signal that killed it."""
        with self._connection, self._answers:
            return int(self._answers.readline())


class Nursery:
    """Where children come from.

    Args:
        address: The path of the socket.
        log: Where the children write what they have to say.
    """

    def __init__(self, address: Path, log: Path) -> None:
        self._address = address
        self.log = log

    def spawn(self, job: dict[str, Any]) -> Child:
        """Start a child; returns once it has begun."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE_S)
        connection.connect(str(self._address))
        connection.sendall(json.dumps(job).encode() + b"\n")
        answers = connection.makefile()
        pid = int(answers.readline())
        connection.settimeout(None)  # how long it takes from now on is for the test to say
        return Child(pid, connection, answers)

    def run(self, job: dict[str, Any]) -> int:
        """Start a child and wait for its end; returns its exit code."""
        return self.spawn(job).wait()


@contextmanager
def nursery(directory: Path, module: str) -> Iterator[Nursery]:
    """Start the interpreter; it is killed on leaving, with all its children.

    Args:
        directory: Where its socket and its log are.
        module: What it imports: `warm_up()` is called there once, and `perform(job)` by every child.
    """
    address, log = directory / "nursery", directory / "nursery.log"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with (
        log.open("w") as output,
        subprocess.Popen(
            [sys.executable, __file__, str(address), module],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", log.read_text()
            yield Nursery(address, log)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    """Fork a child for each connection."""
    module = importlib.import_module(sys.argv[2])
    module.warm_up()
    # A full round of the collector would write to all that the children share with this.
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(100)
        print("ready", flush=True)  # noqa: T201 - to whoever started this
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _attend(connection, module.perform)
                os._exit(0)
            connection.close()


def _attend(connection: socket.socket, perform: Any) -> None:
    """Have a child do its job, and tell how it ended; the child itself has nothing to do with the socket."""
    with connection.makefile() as asked:
        job = json.loads(asked.readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        code = 1
        try:
            perform(job)
            code = 0
        except BaseException:  # noqa: BLE001 - it is this process's last word
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
