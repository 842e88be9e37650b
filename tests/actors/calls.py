"""Tool calls without runs: an executor, what it is asked for, and what comes of it."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from orchestrator.protocol.objects import FunctionCall, ToolCall
from orchestrator.tools import Approvals, ToolExecutor, ToolNotice, ToolOutcome, ToolRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.tools import ToolExecution

__all__ = ["PATIENCE_S", "Calls", "called", "tool_threads", "wait_until"]

PATIENCE_S = 10.0
"""How long a test waits for what must come; never reached when all is well."""


class Calls:
    """Starts calls and hands out their outcomes in the order in which they come."""

    def __init__(self, executor: ToolExecutor) -> None:
        self.executor = executor
        self.approvals = Approvals()
        self.notices: SimpleQueue[ToolNotice] = SimpleQueue()
        self.outcomes: SimpleQueue[ToolOutcome] = SimpleQueue()
        self.started = 0

    def start(
        self, function: Callable[..., Any] | None, arguments: Any = None, **options: Any
    ) -> ToolExecution:
        registry = ToolRegistry([] if function is None else [function])
        name = registry.names[0] if function is not None else "unknown"
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
        self.started += 1
        starting = threading.get_ident()
        inside = True

        def on_done(outcome: ToolOutcome) -> None:
            assert not (inside and threading.get_ident() == starting), "told from within start()"
            self.outcomes.put(outcome)

        about: dict[str, Any] = {"run_id": "run_1", "thread_id": "thread_1", "approvals": self.approvals}
        call = ToolCall(id=f"call_{self.started}", function=FunctionCall(name=name, arguments=text))
        execution = self.executor.start(
            call, registry, on_done=on_done, on_notice=self.notices.put, **(about | options)
        )
        inside = False
        return execution

    def next(self) -> ToolOutcome:
        return self.outcomes.get(timeout=PATIENCE_S)

    def notice(self) -> ToolNotice:
        return self.notices.get(timeout=PATIENCE_S)

    def run(self, function: Callable[..., Any] | None, arguments: Any = None, **options: Any) -> ToolOutcome:
        self.start(function, arguments, **options)
        return self.next()


def tool_threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("orchestrator-tool")}


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for a state that nothing announces; its end is asserted, not its duration."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "it did not come true"
        threading.Event().wait(0.001)


@contextmanager
def called(**options: Any) -> Iterator[Calls]:
    """An executor that is closed at the end, when nothing of it may be left."""
    made = Calls(ToolExecutor(**({"threads": 4} | options)))
    yield made
    assert made.executor.close(timeout_s=PATIENCE_S) == []
    assert made.outcomes.empty(), "an outcome too many"
    assert made.executor.stuck_threads == 0
    assert made.approvals.pending == ()
    assert made.executor._workplace.limits._places == {}
    assert tool_threads() == set()
