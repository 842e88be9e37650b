"""Tools: Python functions that a model may call, described, validated and run.

Importing this package starts nothing and loads neither pydantic nor griffe: the first registered tool does.
"""

from __future__ import annotations

from orchestrator.tools.approval import ApprovalRequest, Approvals
from orchestrator.tools.comparison import SchemaDifference, ToolCheck
from orchestrator.tools.context import ToolContext
from orchestrator.tools.declaration import Tool, tool
from orchestrator.tools.execution import ToolExecution
from orchestrator.tools.executor import ToolExecutor
from orchestrator.tools.middleware import Invocation
from orchestrator.tools.outcome import ToolFailure, ToolNotice, ToolOutcome
from orchestrator.tools.registry import ToolRegistry
from orchestrator.tools.run_tools import RunTools

__all__ = [
    "ApprovalRequest",
    "Approvals",
    "Invocation",
    "RunTools",
    "SchemaDifference",
    "Tool",
    "ToolCheck",
    "ToolContext",
    "ToolExecution",
    "ToolExecutor",
    "ToolFailure",
    "ToolNotice",
    "ToolOutcome",
    "ToolRegistry",
    "tool",
]
