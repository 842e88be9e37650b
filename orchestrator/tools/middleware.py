"""What stands around every tool call: middleware of both kinds around tools of both kinds.

A plain function runs in a thread and an `async def` on the tools' loop, whichever of the two the tool is.
Owns how one kind calls the other, and how what one of them waits for is given up. It does not know when a
call runs, nor what becomes of its result.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from orchestrator.tools.signature import is_async

if TYPE_CHECKING:
    from orchestrator.tools.context import ToolContext
    from orchestrator.tools.declaration import Tool
    from orchestrator.tools.threads import Job, ThreadPool

__all__ = ["Bridge", "Invocation", "Layer", "Middleware", "layered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One execution of one call, as middleware sees it.

    Attributes:
        tool: The tool.
        arguments: The validated arguments, by the parameters' names. To change them, hand on
            `dataclasses.replace(invocation, arguments=…)` with the same names.
        context: The call.
    """

    tool: Tool[..., Any]
    arguments: Mapping[str, Any] = field(repr=False)
    context: ToolContext


Middleware: TypeAlias = Callable[[Invocation, Callable[[Invocation], Any]], Any]
"""`def around(invocation, call_next)`, or the same as an `async def`, which awaits `call_next`. It returns
the tool's result or one of its own, and raises to have none."""


class Layer(NamedTuple):
    """Something that takes an invocation: the tool, or a middleware around another layer."""

    function: Callable[[Invocation], Any]
    is_async: bool


def layered(tool: Tool[..., Any], middleware: Sequence[Middleware], bridge: Bridge | None) -> Layer:
    """Return the outermost layer of a call; the first middleware is the outermost.

    Args:
        tool: The tool.
        middleware: What stands around it.
        bridge: Leads from one kind to the other, and elsewhere; `None` where there is nothing but the tool.
    """
    if bridge is None:
        return Layer(_call_tool, tool.is_async)
    layer = Layer(_call_tool if tool.options.executor is None else bridge.call_elsewhere, tool.is_async)
    for around in reversed(middleware):
        kind = is_async(around)
        inner = layer.function
        if kind is not layer.is_async:
            inner = partial(bridge.call_in_thread if kind else bridge.call_on_loop, inner)
        layer = Layer(partial(_call_around, around, inner), kind)
    return layer


def _call_around(around: Middleware, inner: Callable[[Invocation], Any], invocation: Invocation) -> Any:
    return around(invocation, inner)


def _call_tool(invocation: Invocation) -> Any:
    positional, named = _placed(invocation)
    return invocation.tool.function(*positional, **named)


def _placed(invocation: Invocation) -> tuple[list[object], dict[str, object]]:
    from orchestrator.tools.arguments import placed

    return placed(invocation.tool.described, invocation.arguments, invocation.context)


class Bridge:
    """Leads one execution from threads to the loop and back, and to other executors.

    A thread that waits for the loop does the work that is sent back from there. Were that to take another
    one, the threads of a pool could all wait for each other.

    Args:
        pool: The threads.
        loop: Returns the loop.
    """

    def __init__(self, pool: ThreadPool, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._pool = pool
        self._loop = loop
        self._lock = threading.Lock()
        self._interrupted = False
        self._outcomes: set[Future[Any]] = set()
        self._jobs: set[Job] = set()
        self._lent: list[SimpleQueue[Callable[[], None] | None]] = []

    def interrupt(self) -> None:
        """Give up what any layer waits for, now and from now on. From any thread; repeatable."""
        with self._lock:
            self._interrupted = True
            outcomes, jobs = tuple(self._outcomes), tuple(self._jobs)
        for job in jobs:
            job.abandon()
        for outcome in outcomes:
            outcome.cancel()

    def call_on_loop(self, inner: Callable[[Invocation], Any], invocation: Invocation) -> Any:
        """Run an asynchronous layer on the loop and wait for it; on a thread of the pool's."""
        work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        with self._lending(work):
            outcome = self._run_on_loop(inner(invocation))
            outcome.add_done_callback(lambda _: work.put(None))
            with self._interruptible(outcome):
                while (job := work.get()) is not None:
                    job()
        return outcome.result()

    @contextmanager
    def _lending(self, work: SimpleQueue[Callable[[], None] | None]) -> Iterator[None]:
        """Within, this thread takes its work from there."""
        with self._lock:
            self._lent.append(work)
        try:
            yield
        finally:
            with self._lock:
                self._lent.remove(work)
            while not work.empty():  # of a task that goes on after the layer has returned
                if (job := work.get()) is not None:
                    self._pool.submit(job)

    def _run_on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop())
        except BaseException:
            coroutine.close()  # the loop is closed: nobody will run it
            raise

    async def call_in_thread(self, inner: Callable[[Invocation], Any], invocation: Invocation) -> Any:
        """Run a synchronous layer in a thread of the pool's and wait for it; on the loop."""
        outcome: Future[Any] = Future()
        work = partial(_settle, outcome, partial(contextvars.copy_context().run, inner, invocation))
        job: Job | None = None
        with self._lock:
            if self._interrupted:
                raise asyncio.CancelledError
            if self._lent:
                self._lent[-1].put(work)
            else:
                job = self._pool.submit(work)
                self._jobs.add(job)
        try:
            return await asyncio.wrap_future(outcome)
        finally:
            if job is not None:
                with self._lock:
                    self._jobs.discard(job)
                if not outcome.done() or outcome.cancelled():
                    job.abandon()

    def call_elsewhere(self, invocation: Invocation) -> Any:
        """Call the function in the tool's own executor and wait for it; on a thread of the pool's."""
        source = invocation.tool.options.executor
        assert source is not None
        executor = source if hasattr(source, "submit") else source()
        positional, named = _placed(invocation)
        remote: Future[Any] = executor.submit(invocation.tool.portable, *positional, **named)
        # What runs elsewhere cannot be cancelled, but the thread that waits for it can be freed.
        outcome: Future[Any] = Future()
        outcome.add_done_callback(lambda _: remote.cancel())
        remote.add_done_callback(partial(_copy, outcome))
        with self._interruptible(outcome):
            return outcome.result()

    @contextmanager
    def _interruptible(self, outcome: Future[Any]) -> Iterator[None]:
        """Within, `interrupt` cancels the outcome that is waited for."""
        with self._lock:
            self._outcomes.add(outcome)
            interrupted = self._interrupted
        if interrupted:
            outcome.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._outcomes.discard(outcome)


def _settle(outcome: Future[Any], work: Callable[[], Any]) -> None:
    if not outcome.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - it goes on where the outcome is awaited
        outcome.set_exception(error)
    else:
        outcome.set_result(result)


def _copy(outcome: Future[Any], remote: Future[Any]) -> None:
    if not outcome.set_running_or_notify_cancel():
        return
    if remote.cancelled():
        outcome.set_exception(CancelledError())
    elif (error := remote.exception()) is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(remote.result())
