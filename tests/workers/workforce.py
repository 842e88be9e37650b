"""The workers of one Celery application, as real processes, and the test that sends them tasks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil
from worker_app import SETTINGS, make

from orchestrator.journal import SQLJournal
from orchestrator.workers.celery import NAME, RunAssistant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from brokers import Broker
    from celery import Celery
    from stage import Stage

HERE = Path(__file__).parent
PATIENCE_S = 60.0


@dataclass(kw_only=True)
class Worker:
    """One `celery worker`, with the processes of its pool."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    ended: bool = field(default=False)

    def pids(self) -> set[int]:
        """Its processes, the pool's included."""
        main = psutil.Process(self.process.pid)
        return {self.process.pid, *(child.pid for child in main.children(recursive=True))}

    def kill(self) -> None:
        """Kill every process of it, at once."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)


class Workforce:
    """A broker, a journal, and those who work with them.

    Args:
        stage: The server.
        broker: The broker.
        journal: The journal's URL.
        directory: For logs, results, and what the tools write.
        lease_s: The journal's.
        drain_s: How long a worker's runs have when it is told to end.
        conf: Celery's settings.
    """

    def __init__(
        self,
        stage: Stage,
        broker: Broker,
        journal: str,
        directory: Path,
        *,
        lease_s: float = 2.0,
        drain_s: float = 0.5,
        **conf: Any,
    ) -> None:
        results = directory / "results"
        results.mkdir()
        self.broker = broker.name
        self.calls = directory / "calls"
        self.stage = stage
        self.workers: list[Worker] = []
        self._directory = directory
        self._settings = {
            "broker": broker.url,
            "backend": broker.url if broker.name == "redis" else f"file://{results}",
            "server": stage.server.base_url,
            "key": stage.server.api_key,
            "journal": journal,
            "calls": str(self.calls),
            "lease_s": lease_s,
            "drain_s": drain_s,
            "conf": conf,
        }
        self.app: Celery = make(self._settings)
        self.task = cast("RunAssistant", self.app.tasks[NAME])
        self.journal = SQLJournal(journal)

    def hire(self, pool: str, *, concurrency: int = 4) -> Worker:
        """Start a worker; returns at once."""
        name = f"w{len(self.workers)}"
        log = self._directory / f"{name}.log"
        options = (
            "-P",
            pool,
            "-c",
            str(concurrency),
            "-n",
            f"{name}@test",
            "-l",
            "info",
            "-O",
            "fair",
            "--without-mingle",
        )
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "worker_app", "worker", *options],
                cwd=HERE,
                env={**os.environ, SETTINGS: json.dumps(self._settings), "C_FORCE_ROOT": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        worker = Worker(name=name, process=process, log=log)
        self.workers.append(worker)
        return worker

    def dismiss(self) -> None:
        """End what still runs."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()

    def logs(self) -> str:
        return "\n".join(f"== {worker.name}\n{worker.log.read_text()}" for worker in self.workers)


@contextmanager
def workforce(
    stage: Stage, broker: Broker, journal: str, directory: Path, **options: Any
) -> Iterator[Workforce]:
    """A workforce without workers; ends those that it hired, and shows their logs when a test fails."""
    at_work = Workforce(stage, broker, journal, directory, **options)
    try:
        yield at_work
    except BaseException:
        print(at_work.logs())  # noqa: T201 - pytest shows it with the failure
        raise
    finally:
        at_work.dismiss()
        at_work.app.close()


def wait_until(holds: Callable[[], bool], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Wait for what no event of this process tells of."""
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.05)
