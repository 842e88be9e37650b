"""Many runs at once: an actor for each, and a supervisor that admits, watches, restarts and gives up."""

from __future__ import annotations

from orchestrator.supervision.breaker import BreakerPolicy
from orchestrator.supervision.gate import ServerLimits
from orchestrator.supervision.outcomes import Completed, Failed, Stopped
from orchestrator.supervision.restarts import RestartPolicy
from orchestrator.supervision.state import RunSnapshot, RunState
from orchestrator.supervision.supervisor import Supervisor

__all__ = [
    "BreakerPolicy",
    "Completed",
    "Failed",
    "RestartPolicy",
    "RunSnapshot",
    "RunState",
    "ServerLimits",
    "Stopped",
    "Supervisor",
]
