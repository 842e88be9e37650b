"""Commands as real processes: with pipes, or on a terminal of their own; and what they leave behind."""

from __future__ import annotations

import codecs
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[2]
RULES = ROOT / "orchestrator" / "demo" / "rules.yaml"
COMMAND = (sys.executable, "-m", "orchestrator")
SCRIPT = (str(Path(sys.executable).with_name("orchestrator")),)
PATIENCE_S = 60.0

_MARK = "ORCHESTRATOR_TEST_MARK"
_NETWORK = ("OPENAI_", "ORCHESTRATOR_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_TERMINAL = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM", "TTY_")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

# A terminal turns Ctrl-C into a signal only for the session that it controls.
_ON_THE_TERMINAL = (
    "import fcntl, os, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something holds that no output tells of."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.01)


def _let_signals_through() -> None:
    """Undo what `nohup` or a shell's `&` did: a signal that is ignored here is ignored by children, too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


class Traces:
    """The environment of one command, by which all that it leaves behind is found.

    Args:
        directory: Becomes the command's directory for temporary files.
    """

    def __init__(self, directory: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._directory = directory / f"tmp-{self._mark}"
        self._directory.mkdir()

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        """What the machine's own settings cannot change."""
        settings = (*_NETWORK, *_TERMINAL)
        kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(settings)}
        return {**kept, _MARK: self._mark, "TMPDIR": str(self._directory), **extra}

    def processes(self) -> list[psutil.Process]:
        """The command and its children, grandchildren and so on, wherever they moved."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def files(self) -> list[str]:
        """The names of its temporary files."""
        return sorted(path.name for path in self._directory.iterdir())

    def assert_none(self) -> None:
        """Nothing is left: no process, and with it no socket, and no file."""
        assert (self.processes(), self.files()) == ([], [])

    def end(self) -> None:
        """Kill what a failed test left."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str
    elapsed_s: float

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def finished(
    directory: Path,
    *arguments: str,
    command: Sequence[str] = COMMAND,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Finished:
    """Run `orchestrator …` with pipes to its end; it must leave nothing behind."""
    with started(directory, *arguments, command=command, cwd=cwd, env=env) as (process, traces):
        began = time.monotonic()
        out, err = process.communicate(timeout=PATIENCE_S)
        elapsed_s = time.monotonic() - began
        traces.assert_none()
    return Finished(code=process.returncode, out=out, err=complaints(err), elapsed_s=elapsed_s)


def complaints(err: str) -> str:
    """What a command said on stderr, save that the machine was slow: others may be using it, too."""
    return "".join(line for line in err.splitlines(keepends=True) if "actor.slow_handler" not in line)


@contextmanager
def started(
    directory: Path,
    *arguments: str,
    command: Sequence[str] = COMMAND,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[tuple[subprocess.Popen[str], Traces]]:
    """Start a command with pipes; it is killed on leaving, with all that it started."""
    _let_signals_through()
    traces = Traces(directory)
    with subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=traces.environment(env or {}),
    ) as process:
        try:
            yield process, traces
        finally:
            traces.end()


@contextmanager
def serving(
    directory: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `orchestrator serve` on a free port; yields the process and its base URL."""
    arguments = ("serve", "--port", "0", "--log-level", "warning", *arguments)
    with started(directory, *arguments, env=env) as (process, _):
        line = next_line(process)
        assert line.startswith("listening on "), (line, process.communicate())
        yield process, line.removeprefix("listening on ").strip()


def next_line(process: subprocess.Popen[str]) -> str:
    """The next line of a command's output; only as unbounded as the test's own timeout."""
    assert process.stdout is not None
    return process.stdout.readline()


class Terminal:
    """What a command shows on its terminal; made by `on_terminal`."""

    def __init__(self, process: subprocess.Popen[bytes], master: int, traces: Traces) -> None:
        self.traces = traces
        self._process = process
        self._master = master
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._shown = ""

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._master, keys)

    def expect(self, pattern: str) -> None:
        """Read on until something is shown, colours and cursor movements aside."""
        deadline = time.monotonic() + PATIENCE_S
        while not re.search(pattern, plain := _ESCAPES.sub("", self._shown)):
            assert self._read(deadline), f"{pattern!r} is not in …{plain[-2000:]}"

    def finish(self) -> tuple[int, str]:
        """Read to the end; returns the exit code and all that was shown, as it was sent."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read(deadline):
            pass
        return self._process.wait(max(0.0, deadline - time.monotonic())), self._shown.replace("\r\n", "\n")

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:  # Linux's way to say that nobody has the terminal open any more
            data = b""
        self._shown += self._decoder.decode(data)
        return bool(data)


@contextmanager
def on_terminal(
    directory: Path,
    *arguments: str,
    size: tuple[int, int] = (50, 120),
    env: Mapping[str, str] | None = None,
) -> Iterator[Terminal]:
    """Start `orchestrator …` on a terminal of so many rows and columns, as its session's foreground."""
    _let_signals_through()
    traces = Traces(directory)
    master, slave = os.openpty()
    try:
        termios.tcsetwinsize(slave, size)
        with subprocess.Popen(
            [sys.executable, "-c", _ON_THE_TERMINAL, *COMMAND, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=traces.environment({"TERM": "xterm-256color", **(env or {})}),
        ) as process:
            os.close(slave)
            try:
                yield Terminal(process, master, traces)
            finally:
                traces.end()
    finally:
        os.close(master)
