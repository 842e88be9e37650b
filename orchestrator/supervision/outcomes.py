"""What a watcher is told of a run, once: that it ended, that it failed, or that it was let go of.

Owns the three messages and which of them an outcome is. Knows nothing of how a run came to its end.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import pykka

from orchestrator.errors import OrchestratorClosed
from orchestrator.runs.result import RunResult

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["Completed", "Failed", "Outcome", "Stopped", "tell_outcome"]


@dataclass(frozen=True, slots=True)
class Completed:
    """A run was seen to end on the server, in whatever terminal status.

    Attributes:
        key: The run's key.
        result: Its result; `raise_for_status()` tells success from the rest.
    """

    key: str
    result: RunResult


@dataclass(frozen=True, slots=True)
class Failed:
    """A run could not be conducted to its end.

    Attributes:
        key: The run's key.
        cause: What `RunHandle.result()` raises; it names the ids.
    """

    key: str
    cause: BaseException


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run was let go of before its end was seen: detached, or its orchestrator was closed or died.

    Attributes:
        key: The run's key.
        error: What `RunHandle.result()` raises; it names the ids, by which the run can be adopted.
    """

    key: str
    error: OrchestratorClosed


Outcome: TypeAlias = Completed | Failed | Stopped


def tell_outcome(ref: pykka.ActorRef[Any], key: str, outcome: Future[RunResult]) -> None:
    """Tell a watcher how the run ended; one that is dead is told nothing. Never blocks."""
    with contextlib.suppress(pykka.ActorDeadError):
        ref.tell(_message(key, outcome))


def _message(key: str, outcome: Future[RunResult]) -> Outcome:
    match outcome.exception():
        case None:
            return Completed(key, outcome.result())
        case OrchestratorClosed() as error:
            return Stopped(key, error)
        case cause:
            return Failed(key, cause)
