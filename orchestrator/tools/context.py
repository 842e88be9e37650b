"""What a tool may know about the call it serves."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.telemetry import Logger

__all__ = ["ToolContext"]


def _nobody(detail: str, fraction: float | None) -> None:
    """Where a context is made by hand, nobody is told."""


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
        attempt: 1 for the first execution of this call, one more for each that follows an exception.
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
    report: Callable[[str, float | None], None] = field(default=_nobody, repr=False, compare=False)
    """Takes what `progress` is given."""

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

    def progress(self, detail: str, fraction: float | None = None) -> None:
        """Say how far the call is: a `tool.progress` notice in the run's events. Never waits.

        From any thread, as often as you like: at most ten notices a second are made, the newest word always
        among them, and none once the call is over.

        Args:
            detail: A sentence for people; all but its first 2,000 characters are left out.
            fraction: How much is done, from 0.0 to 1.0, where that is known.

        Raises:
            TypeError: `detail` is no string, or `fraction` no number.
            ValueError: `fraction` is not within 0.0 and 1.0.
        """
        if not isinstance(detail, str):
            raise TypeError(f"progress takes a sentence, got {type(detail).__name__}")
        if fraction is not None and not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction must be within 0.0 and 1.0, got {fraction}")
        self.report(detail, fraction)

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
