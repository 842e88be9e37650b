"""Pykka's own futures, on the actors' loop thread: they refuse to wait there as ours do.

A handler that waits for a `pykka.ThreadingActor` holds up every actor of the process, and for ever where that
actor asks one of ours in turn. Pykka has no extension point for it: `ask`, `stop` and setting an attribute of
a proxy all end in `ThreadingFuture.get`, so that method is replaced, once, when the first `LoopActor` starts.
On every other thread it does what it did.
"""

from __future__ import annotations

import functools
from typing import Any

import pykka

from orchestrator.runtime.loop import on_loop_thread, refuse_waiting_on_loop

__all__ = ["refuse_to_wait_for_foreign_actors"]


@functools.cache
def refuse_to_wait_for_foreign_actors() -> None:
    """Have `pykka.ThreadingFuture.get` raise on the actors' loop thread where it would wait. Repeatable."""
    get_anywhere = pykka.ThreadingFuture.get

    @functools.wraps(get_anywhere)
    def get(self: pykka.ThreadingFuture[Any], *, timeout: float | None = None) -> Any:
        if not on_loop_thread():
            return get_anywhere(self, timeout=timeout)
        try:
            return get_anywhere(self, timeout=0)
        except pykka.Timeout:
            refuse_waiting_on_loop(timeout)
            raise

    pykka.ThreadingFuture.get = get  # type: ignore[method-assign]
