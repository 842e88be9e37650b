"""Threads for tools: a bounded pool for synchronous ones, one event loop for asynchronous ones.

Both start with their first use and consist of daemon threads. `concurrent.futures.ThreadPoolExecutor` is no
choice: the interpreter joins its threads at exit, so one tool that never returns would keep the process
alive for ever. Neither class knows what a tool is.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Job", "ThreadPool", "ToolLoop"]

_log = get_logger(__name__)


class Job:
    """Work given to a pool. Made by `ThreadPool.submit`."""

    __slots__ = ("_pool", "abandoned", "function", "running")

    def __init__(self, pool: ThreadPool, function: Callable[[], object]) -> None:
        self._pool = pool
        self.function = function
        self.running = self.abandoned = False

    def abandon(self) -> None:
        """Say that nobody waits for it any more. Repeatable; too late, this does nothing.

        If it waits, it is never done; if it is being done, its thread counts as stuck until it returns.
        """
        self._pool.abandon(self)


def _nothing() -> None:
    """What is left to do of a job that is done: its function may be what holds the job."""


class ThreadPool:
    """Does jobs in at most `limit` threads, in the order in which they came.

    A thread that is stuck in an abandoned job is replaced, but no more than `limit` of them at a time are:
    what never returns takes a bounded number of threads with it.

    Args:
        limit: The most threads that are not stuck, at least 1. One is added only when no other is idle.
        name: Threads are called `<name>-1`, `<name>-2`, and so on.
    """

    def __init__(self, limit: int, name: str) -> None:
        if limit < 1:
            raise ValueError(f"a pool needs at least 1 thread, got {limit}")
        self._limit = limit
        self._name = name
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._threads: set[threading.Thread] = set()
        self._made = self._idle = self._stuck = 0
        self._closing = False

    @property
    def stuck(self) -> int:
        """How many threads are held by jobs that nobody waits for."""
        return self._stuck

    def submit(self, function: Callable[[], object]) -> Job:
        """Do a job as soon as a thread is free; what it raises is logged. Never waits.

        Raises:
            RuntimeError: The system refuses to start the pool's first thread. The job is not taken.
        """
        job = Job(self, function)
        with self._changed:
            self._jobs.append(job)
            try:
                self._serve()
            except RuntimeError:
                self._jobs.remove(job)
                raise
        return job

    def abandon(self, job: Job) -> None:
        """See `Job.abandon`."""
        with self._changed:
            if job.abandoned:
                return
            job.abandoned = True
            if job.running:
                self._stuck += 1
                if self._jobs:
                    self._serve()
            else:
                job.function = _nothing

    def close(self, timeout_s: float) -> None:
        """End the threads once the queue is empty; wait at most `timeout_s` for them. Repeatable."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            threads = tuple(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():  # a job may be what closes the pool
                thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def _allowed(self) -> int:
        return self._limit + min(self._stuck, self._limit)

    def _serve(self) -> None:
        """Have a thread take the last job up, a new one if there may be one and none is idle."""
        if self._idle >= len(self._jobs) or len(self._threads) >= self._allowed:
            self._changed.notify()
        else:
            self._add_thread()

    def _add_thread(self) -> None:
        name = f"{self._name}-{self._made + 1}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise  # with other threads, the job waits for one of those
        else:
            self._made += 1
            self._threads.add(thread)

    def _run(self) -> None:
        while (job := self._take()) is not None:
            try:
                job.function()
            except BaseException:  # noqa: BLE001 - a user's callback may raise SystemExit; the others need the thread
                _log.exception("pool.job_failed", thread=threading.current_thread().name)
            self._give_back(job)
            del job  # else the last one is kept alive while this thread waits

    def _take(self) -> Job | None:
        with self._changed:
            while len(self._threads) <= self._allowed:
                while self._jobs:
                    job = self._jobs.popleft()
                    if not job.abandoned:
                        job.running = True
                        return job
                if self._closing:
                    break
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            self._threads.discard(threading.current_thread())
            return None

    def _give_back(self, job: Job) -> None:
        with self._changed:
            job.running = False
            self._stuck -= job.abandoned
            job.function = _nothing


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
