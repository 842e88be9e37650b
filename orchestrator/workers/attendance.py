"""What the processes of a Celery worker do beside their tasks: take up what others left, and let go in time.

Owns the threads for that, and how a pool's processes learn that their worker is told to end: Celery tells
them when their last task has ended, which is too late. Runs and messages are handed to others.
"""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from celery.concurrency.prefork import TaskPool as Prefork
from celery.signals import (
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from kombu.exceptions import OperationalError

from orchestrator.errors import JournalError, OrchestratorClosed
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.workers.process import PerProcess

__all__ = ["Attendance"]

log = get_logger(__name__)

_RETRY_S: Final = 2.0
"""The pause before another try of a journal or a broker that cannot be reached."""


class Attendance:
    """Attends to the orchestrators of one worker's processes.

    With some brokers the message of a worker that died comes back after an hour. So each process looks for
    runs that nobody conducts any more, takes them up, and sends another message for each: whoever gets it
    finds the outcome.

    Args:
        processes: The orchestrators.
        wake_up: Sends a message for a run; blocks.
        drain_s: The most seconds that open runs have at a shutdown.
    """

    def __init__(self, processes: PerProcess, *, wake_up: Callable[[str], object], drain_s: float) -> None:
        self._processes = processes
        self._wake_up = wake_up
        self._drain_s = drain_s
        self._ending = threading.Event()
        self._taken_up: SimpleQueue[str | None] = SimpleQueue()
        self._begun_in: int | None = None
        self._pid = 0
        self._reading = self._writing = -1

    def expect_processes(self) -> None:
        """Be told what becomes of this worker and of the processes that it will fork; on its main thread."""
        self._pid = os.getpid()
        # The end of file is the news: it reaches every process, those that are busy too.
        self._reading, self._writing = os.pipe()
        worker_process_init.connect(self._process_begins, weak=False)
        worker_ready.connect(self._worker_is_ready, weak=False)
        worker_shutting_down.connect(self._worker_is_told_to_end, weak=False)
        for ends in (worker_process_shutdown, worker_shutdown):
            ends.connect(self._process_ends, weak=False)

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than until this process is told to end."""
        self._ending.wait(seconds)

    def _process_begins(self, **_: Any) -> None:
        if os.getpid() != self._pid:
            os.close(self._writing)
        self._begin()

    def _worker_is_ready(self, sender: Any, **_: Any) -> None:
        if not isinstance(sender.pool, Prefork):  # a process that forks must not have threads
            self._begin()

    def _begin(self) -> None:
        if self._begun_in == os.getpid():
            return
        self._begun_in = os.getpid()
        # Threads, as Celery gives a process four seconds to begin, and a database may take longer.
        for name, target in (("attendance", self._attend), ("shutdown", self._await_end)):
            threading.Thread(target=target, name=f"orchestrator-{name}", daemon=True).start()

    def _worker_is_told_to_end(self, **_: Any) -> None:
        """Pass it on; in the handler of a signal, which may come twice."""
        writing, self._writing = self._writing, -1
        if writing >= 0:
            os.close(writing)

    def _await_end(self) -> None:
        os.read(self._reading, 1)
        self._process_ends()

    def _process_ends(self, **_: Any) -> None:
        self._ending.set()
        self._taken_up.put(None)
        self._processes.close(self._drain_s)

    def _attend(self) -> None:
        """Take up what is left, now and later, and have each run's task look after it."""
        while not self._resumed():
            if self._ending.wait(_RETRY_S):
                return
        while (key := self._taken_up.get()) is not None:
            while not self._woken_up(key):
                if self._ending.wait(_RETRY_S):
                    return

    def _resumed(self) -> bool:
        """Take up what is left; say whether there is nothing to be tried again."""
        try:
            self._processes.orchestrator.resume(on_taken_up=lambda handle: self._taken_up.put(handle.key))
        except OrchestratorClosed:
            return True
        except JournalError as error:
            log.warning("celery.not_resumed", reason=str(error))
            return False
        return True

    def _woken_up(self, key: str) -> bool:
        try:
            self._wake_up(key)
        except OperationalError as error:
            log.warning("celery.not_woken_up", run_key=key, reason=type(error).__name__)
            return False
        log.info("celery.woken_up", run_key=key)
        return True
