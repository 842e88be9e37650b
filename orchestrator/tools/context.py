"""What a tool may know about the call it serves."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from orchestrator.telemetry import Logger

__all__ = ["ToolContext"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """The call that a tool serves. A parameter annotated with this class receives it.

    The model never sees such a parameter. Every attribute may be read from any thread, and nothing blocks.
    The defaults let a test of a tool build one with the ids alone.

    Attributes:
        run_id: The run that asked.
        thread_id: The run's thread.
        call_id: The tool call; unique within its round only.
        tool: The name under which the model called.
        attempt: 1 for the first execution of this call, more when it is run again.
        deadline: When the outcome is a timeout, on the clock of `time.monotonic()`; infinite without a bound.
        state: What the user gave to `start(context=…)`.
    """

    run_id: str
    thread_id: str
    call_id: str
    tool: str
    attempt: int = 1
    deadline: float = math.inf
    state: Any = None
    stop: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)
    """Set when nobody waits for the outcome any more; `cancelled` reads it. A tool may wait on it."""

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the outcome any more, after a cancel or a timeout.

        A thread cannot be stopped from outside: a long synchronous tool looks here from time to time and
        returns when it is true. An asynchronous tool is cancelled by its event loop as well.
        """
        return self.stop.is_set()

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline, never negative; infinite without a bound."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def log(self) -> Logger:
        """A logger whose events carry the tool, the call, the run and its thread."""
        return get_logger("orchestrator.tool").bind(
            tool=self.tool,
            call_id=self.call_id,
            run_id=self.run_id,
            thread_id=self.thread_id,
            attempt=self.attempt,
        )
