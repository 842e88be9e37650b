"""The actors' loop thread: one event loop, on one daemon thread, shared by every actor of a process.

It owns the thread's life: started with the first lease, ended with the last, never carried across a fork.
It refuses to know what runs on it. Nothing of the user's may: whatever blocks here delays every mailbox of
the process, so the blocking calls of this package ask `refuse_blocking` before they wait, and so do Pykka's
own futures (`foreign_futures`). What else is slow is named afterwards (`actor.slow_handler`).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import time
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple

from pykka import ActorRegistry

from orchestrator.errors import OrchestratorClosed
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = [
    "SLOW_HANDLER_S",
    "LoopThread",
    "Resident",
    "acquire",
    "fork_count",
    "on_loop_thread",
    "refuse_blocking",
    "refuse_blocking_on_running_loop",
    "refuse_waiting_on_loop",
]

SLOW_HANDLER_S = 0.1
"""Seconds after which a handler or callback is reported as slow, unless a `LoopThread` is told otherwise."""

JOIN_TIMEOUT_S = 10.0
"""Seconds that the last `release` waits for child tasks which do not heed their cancellation."""

EXIT_TIMEOUT_S = 5.0
"""Seconds that the actors left alive at interpreter exit get, all together, for their `on_stop`."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

log = get_logger(__name__)
_pykka_lock = ActorRegistry._actor_refs_lock  # noqa: SLF001 - held across a fork, see _Process._hold_still


class Resident(Protocol):
    """What lives on the loop thread and wants to be asked to leave before the interpreter exits."""

    def evict(self) -> Callable[[float], object]:
        """Ask it to stop; return what waits for that, for at most the seconds given."""


class LoopThread:
    """An event loop and the daemon thread `orchestrator-actors` that runs it; made by `acquire`.

    Attributes:
        loop: The event loop, uvloop's where uvloop is installed. Only its own thread may use it, save for
            `call_soon_threadsafe`.
        slow_handler_s: Seconds after which a handler or callback is reported as `actor.slow_handler`.
        residents: The actors that live here; only for those who start and end them, under no lock but
            the interpreter's.
        inherited: True in a forked child: the thread is the parent's and does not run here.
        context: An empty one, for callbacks that set no variables: what one sets, the others would see.
    """

    def __init__(self) -> None:
        self.context = Context()
        self.loop = _new_loop()
        self.slow_handler_s = SLOW_HANDLER_S
        self.residents: set[Resident] = set()
        self.inherited = False
        self._pid = os.getpid()
        self._leases = 0
        self._ending = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="orchestrator-actors", daemon=True)

    def __repr__(self) -> str:
        return f"<LoopThread of process {self._pid}, {self._leases} leases>"

    def is_current_thread(self) -> bool:
        """Whether the caller runs on this thread."""
        return _process.running.get(threading.get_ident()) is self

    def is_alive(self) -> bool:
        """Whether the thread still runs; it does for a moment after the last lease was released on it."""
        return not self.inherited and self._thread.is_alive()

    def call_soon(self, callback: Callable[[*Ts], object], *args: *Ts) -> None:
        """Have `callback(*args)` run on this thread, soon and in order; from any thread, never blocking.

        What it raises is logged as `actor.callback_failed`; what it delays as `actor.slow_handler`.

        Raises:
            OrchestratorClosed: The thread has ended, or belongs to the parent of this forked process.
        """
        self.schedule(self._call, callback, args)

    def schedule(self, callback: Callable[[*Ts], object], *args: *Ts) -> None:
        """Do as `call_soon` does, for a callback that lets nothing escape and times its own parts.

        Raises:
            OrchestratorClosed: The thread has ended, or belongs to the parent of this forked process.
        """
        if self.inherited:
            raise OrchestratorClosed(
                f"the loop thread belongs to process {self._pid}, and this is its fork {os.getpid()}: "
                "make new actors and a new Orchestrator here"
            )
        try:
            # An empty context: the sender's variables (a request, a trace, a tenant) are none of the actor's.
            # Waking the selector costs a system call, and is needed only from outside.
            if self.is_current_thread():
                self.loop.call_soon(callback, *args, context=Context())
            else:
                self.loop.call_soon_threadsafe(callback, *args, context=Context())
        except RuntimeError as error:
            raise OrchestratorClosed("the actors' loop thread has ended") from error

    def create_task(self, coro: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run a coroutine here, kept alive until it ends and cancelled with the thread at the latest.

        Only on this thread. An exception other than the cancellation is logged as `actor.task_failed`: a
        child task is expected to catch what it can explain and tell its actor.

        Args:
            coro: What to run.
            name: What to call it in logs.

        Raises:
            RuntimeError: Called on another thread.
        """
        if not self.is_current_thread():
            coro.close()
            raise RuntimeError("create_task() belongs on the actors' loop thread; elsewhere use call_soon()")
        task = self.loop.create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._forget_task)
        return task

    def release(self) -> None:
        """Give one lease back; with the last one the thread's tasks are cancelled and it ends.

        Threadsafe. The last release waits for that (`JOIN_TIMEOUT_S` at most), except on the thread itself;
        a coroutine of another loop therefore hands it to `asyncio.to_thread`. In a forked child it does
        nothing.

        Raises:
            RuntimeError: There is no lease left to give back.
        """
        if self.inherited:
            return
        with _process.lock:
            if self._leases == 0:
                raise RuntimeError("release() without a lease")
            self._leases -= 1
            if self._leases > 0:
                return
            if _process.thread is self:
                _process.thread = None
        self.stop()
        if not self.is_current_thread():
            self.join(JOIN_TIMEOUT_S)

    def join(self, timeout_s: float) -> bool:
        """Wait until the thread has ended; return whether it has. Blocks, so never on the thread itself."""
        refuse_blocking("LoopThread.join()", "let the last lease go and return")
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.warning("actor.loop_still_running", waited_s=timeout_s, tasks=len(self._tasks))
        return not self._thread.is_alive()

    def stop(self) -> None:
        """End the thread whatever leases there are: for the last `release` and for interpreter exit."""
        with contextlib.suppress(OrchestratorClosed):
            self.schedule(self._end)

    def lease(self) -> None:
        """Count one more lease, and start with the first; the caller holds the process's lock."""
        if self._leases == 0:
            self._thread.start()
        self._leases += 1

    def _call(self, callback: Callable[[*Ts], object], args: tuple[*Ts]) -> None:
        started = time.perf_counter()
        try:
            callback(*args)
        except BaseException:  # SystemExit would leave the loop and delay every actor
            log.exception("actor.callback_failed", callback=callback)
        took_s = time.perf_counter() - started
        if took_s > self.slow_handler_s:
            log.warning("actor.slow_handler", callback=callback, took_s=round(took_s, 3))

    def _forget_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("actor.task_failed", task=task.get_name(), exc_info=error)

    def _run(self) -> None:
        _process.running[threading.get_ident()] = self
        try:
            # The runner contributes its ending: tasks cancelled, async generators, executor and loop closed.
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                runner.get_loop()
                while not self._ending:
                    self._run_until_stopped()
        finally:
            del _process.running[threading.get_ident()]

    def _run_until_stopped(self) -> None:
        try:
            self.loop.run_forever()
        except BaseException:  # asyncio lets the SystemExit and KeyboardInterrupt of a task through
            log.exception("actor.loop_survived")

    def _end(self) -> None:
        self._ending = True
        self.loop.stop()


class _Process:
    """What there is once in a process: the shared loop thread and the lock around its leases."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: LoopThread | None = None
        self.running: dict[int, LoopThread] = {}
        self.forks = 0
        self._hooked = False
        self._still = False
        self._inherited: list[LoopThread] = []

    def lease(self) -> LoopThread:
        with self.lock:
            if not self._hooked:
                self._hooked = True
                os.register_at_fork(
                    before=self._hold_still,
                    after_in_parent=self._go_on,
                    after_in_child=self._forget_parent,
                )
                atexit.register(self._evict_residents)
            if self.thread is None:
                self.thread = LoopThread()
            self.thread.lease()
            return self.thread

    def _hold_still(self) -> None:
        # A fork copies a lock that another thread holds, and nobody there releases it. The loop thread
        # takes Pykka's for every actor that starts or stops.
        self.lock.acquire()
        _pykka_lock.acquire()
        self._still = True

    def _go_on(self) -> None:
        # Not held if the first lease, in another thread, announced these hooks to a fork under way.
        if self._still:
            self._still = False
            _pykka_lock.release()
            self.lock.release()

    def _forget_parent(self) -> None:
        # The parent's loop stays referenced and untouched: closing it here would disturb what both share.
        for thread in {*self.running.values(), *filter(None, [self.thread])}:
            thread.inherited = True
            self._inherited.append(thread)
        self.thread = None
        self.running = {}
        self.forks += 1
        self._go_on()

    def _evict_residents(self) -> None:
        thread = self.thread
        if thread is None:
            return
        deadline = time.monotonic() + EXIT_TIMEOUT_S
        for wait in [resident.evict() for resident in list(thread.residents)]:
            wait(max(0.0, deadline - time.monotonic()))
        thread.stop()
        thread.join(max(0.0, deadline - time.monotonic()))


_process = _Process()


def acquire() -> LoopThread:
    """Lease the actors' loop thread of this process, and start it if this is the first lease.

    Threadsafe. Every lease is given back by one `LoopThread.release()`.
    """
    return _process.lease()


def on_loop_thread() -> bool:
    """Whether the caller runs on the actors' loop thread."""
    return threading.get_ident() in _process.running


def fork_count() -> int:
    """How many forks lie between this process and the one that leased a loop thread first."""
    return _process.forks


def refuse_blocking(what: str, instead: str) -> None:
    """Raise if the caller runs on the actors' loop thread, which no call may block.

    Args:
        what: The call that is about to block, such as `"ActorRef.stop()"`.
        instead: What to do on that thread, as an imperative.

    Raises:
        RuntimeError: The caller runs there.
    """
    if on_loop_thread():
        raise RuntimeError(f"{what} would block the actors' loop thread and every actor on it: {instead}")


def refuse_waiting_on_loop(timeout: float | None) -> None:
    """Raise if waiting for an answer this long would block the actors' loop thread.

    Raises:
        RuntimeError: It would; a timeout of 0 does not.
    """
    if timeout is None or timeout > 0:
        refuse_blocking("Waiting for a future", "await it in a task, or have the answer told to you")


def refuse_blocking_on_running_loop(what: str, instead: str) -> None:
    """Raise if an event loop runs on the calling thread, be it the actors' or one of the user's.

    Args:
        what: The call that is about to block, such as `"RunHandle.result()"`.
        instead: What to do in a coroutine, as an imperative, such as ``"use `await handle`"``.

    Raises:
        RuntimeError: A loop runs on this thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{what} would block the event loop that runs on this thread: {instead}")


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
