"""The calls of one run that wait for somebody to approve or deny them.

Owns who decides first: a person, from any thread, the deadline, or the run's end. It does not know what
comes of a decision, nor whether a call needs one.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = ["ApprovalHook", "ApprovalRequest", "Approvals", "Decision", "decision_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequest:
    """A call that waits for approval.

    Attributes:
        run_id: The run that asked for it.
        thread_id: The run's thread.
        call_id: The call; what `RunHandle.approve()` and `deny()` take.
        tool: The tool's name.
        arguments: The validated arguments, by the parameters' names. Do not change them.
        state: What the user gave to `start(context=…)`.
        doubtful: A process that died may have made this call already (`on_unknown="ask"`).
    """

    run_id: str
    thread_id: str
    call_id: str
    tool: str
    arguments: Mapping[str, Any] = field(repr=False)
    state: Any = field(default=None, repr=False)
    doubtful: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided of a call.

    Attributes:
        approved: Whether it is made.
        reason: What the model is told of a denial; may be empty.
    """

    approved: bool
    reason: str = ""


Verdict: TypeAlias = bool | str | None
ApprovalHook: TypeAlias = Callable[[ApprovalRequest], Verdict | Awaitable[Verdict]]
"""Decides instead of a person: true approves, false denies, a string denies with that reason, `None` leaves
it to `RunHandle.approve()` and `deny()`."""


def decision_of(verdict: object) -> Decision | None:
    """Return what a hook's answer means; `None` where it leaves the decision to a person.

    Raises:
        TypeError: It is no answer.
    """
    if verdict is None:
        return None
    if isinstance(verdict, bool):
        return Decision(approved=verdict)
    if isinstance(verdict, str):
        return Decision(approved=False, reason=verdict)
    if inspect.iscoroutine(verdict):
        verdict.close()
    raise TypeError(f"an approval hook returns a bool, a reason or None, not {type(verdict).__name__}")


class Approvals:
    """The open questions of one run. Every method may be called from any thread, and none waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, tuple[ApprovalRequest, Callable[[Decision], bool]]] = {}

    @property
    def pending(self) -> tuple[ApprovalRequest, ...]:
        """The calls that wait, in the order in which they were asked about."""
        with self._lock:
            return tuple(request for request, _ in self._open.values())

    def ask(self, request: ApprovalRequest, decide: Callable[[Decision], bool]) -> None:
        """Keep a question open.

        Args:
            request: The call.
            decide: Takes the decision, at most once; false when the call is settled by now.
        """
        with self._lock:
            self._open[request.call_id] = (request, decide)

    def withdraw(self, call_id: str) -> None:
        """Forget a question, if it is open."""
        with self._lock:
            self._open.pop(call_id, None)

    def decide(self, call_id: str, decision: Decision) -> None:
        """Answer a question.

        Raises:
            ValueError: No call of this id waits for approval; the message names those that do.
        """
        with self._lock:
            _, decide = self._open.pop(call_id, (None, None))
        if decide is None or not decide(decision):
            waiting = ", ".join(f"{request.call_id} ({request.tool})" for request in self.pending) or "none"
            raise ValueError(
                f"no call {call_id!r} of this run waits for approval: it was decided, answered or stopped by "
                f"now, or there never was one; waiting: {waiting}"
            )
