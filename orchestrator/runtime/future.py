"""Futures that can be awaited: Pykka's, with callbacks where Pykka has get hooks.

It owns waiting: with a thread (`get`), with a coroutine (`await`), or with neither (`add_done_callback`). It
refuses to wait on the actors' loop thread, and knows nothing of actors or mailboxes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import pykka

from orchestrator.runtime.loop import fork_count, refuse_waiting_on_loop
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from types import TracebackType

__all__ = ["DerivedFuture", "LoopFuture"]

T = TypeVar("T")
J = TypeVar("J")
M = TypeVar("M")
R = TypeVar("R")

if TYPE_CHECKING:
    ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
    Outcome = tuple[T, None] | tuple[None, ExcInfo]

log = get_logger(__name__)


class LoopFuture(pykka.Future[T]):
    """A value that an actor will send, or the exception it ended in.

    Everything here may be called from any thread. Its slots keep an unresolved future at some 200 bytes; what
    it takes to wait is made when somebody waits.
    """

    __slots__ = ("_callbacks", "_forks", "_get_hook", "_lock", "_outcome")

    _sealed: ClassVar[bool] = False

    def __init__(self) -> None:
        # Pykka's own constructor makes an instance dictionary for fields that are slots here.
        self._lock = threading.Lock()
        self._outcome: Outcome[T] | None = None
        self._callbacks: list[Callable[[LoopFuture[T]], object]] | None = None
        self._get_hook: Callable[[float | None], T] | None = None
        self._forks = fork_count()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'resolved' if self.done() else 'pending'}>"

    def done(self) -> bool:
        """Whether the value or exception is there, so that `get()` would not wait."""
        return self._outcome is not None

    def get(self, *, timeout: float | None = None) -> T:
        """Return the value or raise the exception; wait for it if need be.

        Blocks the calling thread, so on the actors' loop thread it raises at once unless the future is
        resolved or `timeout` is 0: await it in a task there, or have the answer told. Repeatable.

        Args:
            timeout: The most seconds to wait; None waits as long as it takes.

        Raises:
            pykka.Timeout: Nothing came in time.
            pykka.ActorDeadError: The future was made before this process was forked.
            RuntimeError: The call would block the actors' loop thread.
            BaseException: What the actor answered with.
        """
        if self._outcome is None:
            self.wait(timeout)
        return self._unwrapped()

    def wait(self, timeout: float | None = None) -> None:
        """Do as `get` does, for a caller who does not want the value or the exception yet.

        Args:
            timeout: The most seconds to wait; None waits as long as it takes.

        Raises:
            pykka.Timeout: Nothing came in time.
            pykka.ActorDeadError: The future was made before this process was forked.
            RuntimeError: The call would block the actors' loop thread.
        """
        if self._outcome is not None:
            return
        refuse_waiting_on_loop(timeout)
        if self._get_hook is not None:
            self._outcome = (self._get_hook(timeout), None)
        elif self._forks != fork_count():
            raise pykka.ActorDeadError("this process is a fork; the future's actor stayed with its parent")
        else:
            self._wait_for_callback(timeout)

    def set(self, value: T | None = None) -> None:
        """Resolve the future with a value.

        Raises:
            queue.Full: It is resolved already.
        """
        self._resolve((value, None))  # type: ignore[arg-type]  # Pykka's signature lets None stand for any T

    def set_exception(self, exc_info: ExcInfo | None = None) -> None:
        """Resolve the future with an exception, by default the one being handled.

        Raises:
            queue.Full: It is resolved already.
        """
        self._resolve((None, sys.exc_info() if exc_info is None else exc_info))

    def set_get_hook(self, func: Callable[[float | None], T]) -> None:
        """Have `get` call a function for the value, with the timeout; for Pykka's sake, nothing here uses it.

        Awaiting such a future calls the function in a thread of the loop's executor.

        Raises:
            queue.Full: The future is resolved already.
        """
        with self._lock:
            if self._outcome is not None or self._sealed:
                raise queue.Full
            self._get_hook = func

    def add_done_callback(self, callback: Callable[[LoopFuture[T]], object]) -> None:
        """Call `callback(self)` once when the future is resolved, or now if it is.

        It runs in the thread that resolves the future, for an actor's answer the actors' loop thread, and
        must not block. What it raises is logged.
        """
        with self._lock:
            if self._outcome is None:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(callback)
                return
        self._call(callback)

    def map(self, func: Callable[[T], M]) -> LoopFuture[M]:
        """Return a future of `func(value)`; `func` runs once, where the result is first asked for."""
        return DerivedFuture((self,), lambda: func(self.get(timeout=0)))

    def join(self, *futures: pykka.Future[Any]) -> LoopFuture[Iterable[Any]]:
        """Return a future of the list of all values, this one's first."""
        sources = (self, *futures)
        return DerivedFuture(sources, lambda: [future.get(timeout=0) for future in sources])

    def filter(self: LoopFuture[Iterable[J]], func: Callable[[J], bool]) -> LoopFuture[Iterable[J]]:
        """Return a future of the list of those items for which `func(item)` is true."""
        return DerivedFuture((self,), lambda: list(filter(func, self.get(timeout=0))))

    def reduce(self: LoopFuture[Iterable[J]], func: Callable[[R, J], R], *args: R) -> LoopFuture[R]:
        """Return a future of the items folded by `func(so_far, item)`, from `args[0]` if given."""
        return DerivedFuture((self,), lambda: functools.reduce(func, self.get(timeout=0), *args))

    def __await__(self) -> Generator[Any, None, T]:
        """Suspend the coroutine until the future is resolved; on any asyncio loop, in any thread."""
        if self._outcome is None:
            yield from self.suspend()
        return self.get(timeout=0)

    __iter__ = __await__

    def suspend(self) -> Generator[Any, None, None]:
        """Suspend the coroutine as `await` does, for who does not want the value or the exception yet."""
        loop = asyncio.get_running_loop()
        if self._get_hook is not None:
            yield from loop.run_in_executor(None, self.wait)
            return
        waiter: asyncio.Future[None] = loop.create_future()

        def wake(_: object) -> None:
            loop.call_soon_threadsafe(_wake, waiter)

        self.add_done_callback(wake)
        try:
            yield from waiter
        finally:
            self._remove_callback(wake)

    def _wait_for_callback(self, timeout: float | None) -> None:
        gate = threading.Lock()
        gate.acquire()

        def wake(_: object) -> None:
            gate.release()

        self.add_done_callback(wake)
        try:
            gate.acquire(timeout=-1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX))
        finally:
            self._remove_callback(wake)
        if self._outcome is None:
            raise pykka.Timeout(f"{timeout} seconds")

    def _remove_callback(self, callback: Callable[[LoopFuture[T]], object]) -> None:
        with self._lock:
            if self._callbacks is not None and callback in self._callbacks:
                self._callbacks.remove(callback)

    def _resolve(self, outcome: Outcome[T]) -> None:
        with self._lock:
            if self._outcome is not None or self._get_hook is not None or self._sealed:
                raise queue.Full
            self._outcome = outcome
            callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            self._call(callback)

    def _call(self, callback: Callable[[LoopFuture[T]], object]) -> None:
        try:
            callback(self)
        except Exception:  # whoever resolves a future must not suffer from who waits for it
            log.exception("future.callback_failed", callback=callback)

    def _unwrapped(self) -> T:
        assert self._outcome is not None
        value, failure = self._outcome
        if failure is None:
            return cast("T", value)
        kind, error, traceback = failure
        if error is None:
            assert kind is not None
            error = kind()
        # From the start each time, or the traceback would grow with every call.
        raise error.with_traceback(traceback)


class DerivedFuture(LoopFuture[T]):
    """The result of a function of other futures, computed once they are resolved.

    Pykka computes it in a get hook, which blocks an event loop that awaits it. Here waiting and computing
    are apart: the sources are waited for like any future, and the function, which is the user's and does
    not belong on the actors' loop, runs in the thread that first asks for the result.
    """

    __slots__ = ("_compute", "_computing", "_sources")

    _sealed = True  # the value comes from the sources and from nobody else

    def __init__(self, sources: tuple[pykka.Future[Any], ...], compute: Callable[[], T]) -> None:
        """Wait for all `sources`, then call `compute()`, which reads them with a timeout of 0."""
        super().__init__()
        self._sources = sources
        self._compute = compute
        self._computing = threading.RLock()

    def done(self) -> bool:
        """Whether all sources are resolved, so that `get()` would not wait."""
        return self._outcome is not None or all(map(_is_done, self._sources))

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all sources are resolved, as `LoopFuture.wait` does, and compute the result."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for source in self._sources:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            _wait_for(source, left)
        with self._computing:
            if self._outcome is None:
                self._outcome = self._computed()

    def add_done_callback(self, callback: Callable[[LoopFuture[T]], object]) -> None:
        """Call `callback(self)` once all sources are resolved; the function itself has not run then.

        Raises:
            TypeError: A source is not a `LoopFuture`, and cannot be watched without a thread.
        """
        for source in self._sources:
            if not isinstance(source, LoopFuture):
                raise TypeError(f"{type(source).__name__} takes no callbacks; wait for it or await it")
            if not source.done():
                source.add_done_callback(lambda _: self.add_done_callback(callback))
                return
        self._call(callback)

    def suspend(self) -> Generator[Any, None, None]:
        """Suspend the coroutine until all sources are resolved."""
        for source in self._sources:
            if not isinstance(source, LoopFuture):
                # Any other future can only be waited for with a thread: not with this one.
                yield from asyncio.get_running_loop().run_in_executor(None, _wait_for, source, None)
            elif not source.done():
                yield from source.suspend()

    def _computed(self) -> Outcome[T]:
        try:
            return self._compute(), None
        except Exception:  # noqa: BLE001 - it is the outcome, and `get` raises it
            return None, sys.exc_info()


def _wake(waiter: asyncio.Future[None]) -> None:
    # The coroutine may have been cancelled since the wake-up was sent to its loop.
    if not waiter.done():
        waiter.set_result(None)


def _wait_for(source: pykka.Future[Any], timeout: float | None) -> None:
    if isinstance(source, LoopFuture):
        source.wait(timeout)
    elif not _is_done(source):
        refuse_waiting_on_loop(timeout)
        with contextlib.suppress(Exception):
            source.get(timeout=timeout)
        if not _is_done(source):
            raise pykka.Timeout(f"{timeout} seconds")


def _is_done(source: pykka.Future[Any]) -> bool:
    if isinstance(source, LoopFuture):
        return source.done()
    try:
        source.get(timeout=0)
    except pykka.Timeout:
        return False
    except Exception:  # noqa: BLE001 - an exception is an outcome too
        return True
    return True
