"""Supervised runs of the Threads/Runs protocol (the "Assistants API"): one actor for each run.

```python
from orchestrator import Orchestrator, tool

with Orchestrator(base_url="http://127.0.0.1:8765/v1", tools=[get_weather]) as orchestrator:
    run = orchestrator.start("asst_1", messages="Weather in Oslo and Rome?")
    print(run.result().raise_for_status().text)
```

Importing this package starts nothing: no thread, no loop, no connection.
"""

from __future__ import annotations

from orchestrator.errors import OrchestratorError, Retry, ToolError
from orchestrator.orchestrator import Orchestrator
from orchestrator.runs.machine import Timing
from orchestrator.runs.request import RerunPolicy
from orchestrator.runs.result import Notice, RunResult, ToolCallResult
from orchestrator.supervision import (
    BreakerPolicy,
    Completed,
    Failed,
    RestartPolicy,
    RunSnapshot,
    ServerLimits,
    Stopped,
)
from orchestrator.supervision.handle import RunHandle
from orchestrator.tools import ApprovalRequest, Invocation, Tool, ToolContext, ToolRegistry, tool

__all__ = [
    "ApprovalRequest",
    "BreakerPolicy",
    "Completed",
    "Failed",
    "Invocation",
    "Notice",
    "Orchestrator",
    "OrchestratorError",
    "RerunPolicy",
    "RestartPolicy",
    "Retry",
    "RunHandle",
    "RunResult",
    "RunSnapshot",
    "ServerLimits",
    "Stopped",
    "Timing",
    "Tool",
    "ToolCallResult",
    "ToolContext",
    "ToolError",
    "ToolRegistry",
    "tool",
]
