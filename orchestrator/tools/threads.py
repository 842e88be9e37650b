"""Threads for tools: a bounded pool for synchronous ones, one event loop for asynchronous ones.

Both start with their first use and consist of daemon threads. `concurrent.futures.ThreadPoolExecutor` is no
choice: the interpreter joins its threads at exit, so one tool that never returns would keep the process
alive for ever. Neither class knows what a tool is.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["ThreadPool", "ToolLoop"]

_log = get_logger(__name__)


class ThreadPool:
    """Runs jobs in at most `limit` threads, in the order in which they came.

    Args:
        limit: The most threads, at least 1. One is added only when no other is idle.
        name: Threads are called `<name>-1`, `<name>-2`, and so on.
    """

    def __init__(self, limit: int, name: str) -> None:
        if limit < 1:
            raise ValueError(f"a pool needs at least 1 thread, got {limit}")
        self._limit = limit
        self._name = name
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job as soon as a thread is free; what it raises is logged. Never waits.

        Raises:
            RuntimeError: The system refuses to start the pool's first thread.
        """
        with self._lock:
            if not self._idle.acquire(blocking=False) and len(self._threads) < self._limit:
                self._add_thread()
            self._jobs.put(job)

    def close(self, timeout_s: float) -> None:
        """End the threads once the queue is empty; wait at most `timeout_s` for them. Repeatable."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            threads = list(self._threads)
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            if thread is not threading.current_thread():  # a job may be what closes the pool
                thread.join(max(0.0, deadline - time.monotonic()))

    def _add_thread(self) -> None:
        name = f"{self._name}-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise  # with other threads, the job waits for one of those
        else:
            self._threads.append(thread)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException:  # noqa: BLE001 - a user's callback may raise SystemExit; the others need the thread
                _log.exception("pool.job_failed", thread=threading.current_thread().name)
            del job  # else the last one is kept alive while this thread waits
            self._idle.release()


class ToolLoop:
    """An event loop on a thread of its own, for asynchronous tools."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop, started if need be; one that a task brought down with `SystemExit` is replaced.

        Never waits: callbacks may be scheduled before the thread is up.
        """
        with self._lock:
            if self._loop is None or self._thread is None or not self._thread.is_alive():
                self._loop = self._start()
            return self._loop

    def close(self, timeout_s: float) -> None:
        """Cancel what is left on the loop and end it; wait at most `timeout_s`. Repeatable."""
        with self._lock:
            thread, loop, stop = self._thread, self._loop, self._stop
        if thread is None or loop is None or stop is None:
            return
        with suppress(RuntimeError):  # it is closed already
            loop.call_soon_threadsafe(stop)
        thread.join(timeout_s)

    def _start(self) -> asyncio.AbstractEventLoop:
        import asyncio

        loop = asyncio.new_event_loop()
        stopped = asyncio.Event()

        def run() -> None:
            try:
                # It cancels the tasks that are left, and ends async generators and the default executor.
                with asyncio.Runner(loop_factory=lambda: loop) as runner:
                    runner.run(_until(stopped))
            except BaseException as error:  # noqa: BLE001 - a task left behind may raise SystemExit
                _log.error("loop_thread.failed", thread=self._name, exc_info=error)

        thread = threading.Thread(target=run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            loop.close()
            raise
        self._thread, self._stop = thread, stopped.set
        return loop


async def _until(stopped: asyncio.Event) -> None:
    await stopped.wait()
