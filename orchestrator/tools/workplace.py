"""Where all tool calls of one orchestrator run, and by which rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from orchestrator.tools.approval import ApprovalHook
    from orchestrator.tools.deadlines import Deadlines
    from orchestrator.tools.limits import ConcurrencyLimits
    from orchestrator.tools.middleware import Middleware
    from orchestrator.tools.threads import ThreadPool

__all__ = ["Workplace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """The means of one executor.

    Attributes:
        pool: Runs synchronous functions.
        loop: Returns the loop for asynchronous ones.
        deadlines: Bounds every call, and calls back when no thread of a tool's is there to do it.
        limits: The places of tools that may not run too often at once.
        middleware: What stands around every call, the outermost first.
        approve: Decides of calls that need approval, before anybody is asked.
        max_output_bytes: The longest output, in bytes of UTF-8.
    """

    pool: ThreadPool
    loop: Callable[[], asyncio.AbstractEventLoop]
    deadlines: Deadlines
    limits: ConcurrencyLimits
    middleware: Sequence[Middleware]
    approve: ApprovalHook | None
    max_output_bytes: int
