"""An orchestrator that lives as long as a worker process of a web application.

Owns when it is made, what is taken up at the start, and how it is left when the process is told to end. Of
the application it knows only that it has a `state`; requests, routes and servers are none of its business.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from orchestrator.orchestrator import Orchestrator
from orchestrator.runs.request import require_patience

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.applications import Starlette

__all__ = ["lifespan"]

Lifespan: TypeAlias = "Callable[[Starlette], AbstractAsyncContextManager[None]]"
"""What `Starlette(lifespan=)` and `FastAPI(lifespan=)` take."""


def lifespan(factory: Callable[[], Orchestrator], *, drain_s: float = 10.0) -> Lifespan:
    """Return a lifespan that gives each worker process an orchestrator, as `app.state.orchestrator`.

    It is made once the process accepts work, so after any fork, also where a server imports the application
    before it forks. With a journal that survives, the runs of processes that died are taken up, now and for
    as long as this one lives. `async` tools run on the application's loop.

    When the process is told to end and its last request is answered, the open runs have `drain_s` seconds to
    end; the rest is left to the server, and to whoever resumes it. Nothing is cancelled. A server that kills
    its workers after a grace of its own must be given a longer one.

    To use it within a lifespan of your own: `async with lifespan(factory)(app): …`.

    Args:
        factory: Makes the orchestrator; called on the application's loop, where it must not block.
        drain_s: The most seconds that open runs have at the end.

    Raises:
        TypeError: `drain_s` is no number, or, when the process starts, `factory` made something else.
        ValueError: `drain_s` is negative.
    """
    require_patience("drain_s", drain_s)

    @asynccontextmanager
    async def living(app: Starlette) -> AsyncIterator[None]:
        orchestrator = factory()
        if not isinstance(orchestrator, Orchestrator):
            raise TypeError(f"the factory must make an Orchestrator, it made {type(orchestrator).__name__}")
        async with orchestrator:
            if orchestrator.journal.survives:
                await _on_a_thread(orchestrator.resume)
            app.state.orchestrator = orchestrator
            try:
                yield
            finally:
                await _on_a_thread(partial(orchestrator.drain, drain_s))
                await _on_a_thread(partial(orchestrator.close, on_active="detach"))

    return living


async def _on_a_thread(function: Callable[[], object]) -> None:
    """Call what blocks on a thread of its own: those of the loop's executor may all wait for runs."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="orchestrator-lifespan")
    try:
        called = partial(contextvars.copy_context().run, function)
        await asyncio.get_running_loop().run_in_executor(executor, called)
    finally:
        executor.shutdown(wait=False)
