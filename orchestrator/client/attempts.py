"""One call and its attempts: what tenacity is told, and what the last failure means.

The decisions are `orchestrator.client.retry`'s; tenacity drives them. This module keeps count, reads the
clock it was given, writes one log line per failed attempt, and turns an uncertain end into
`AmbiguousOutcome`, unless the call has a reconciler that settles it. Both clients use it.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar

from msgspec.structs import replace

from orchestrator.client.retry import NONCE_KEY, Verdict, delay_s, judge, retry_after_s
from orchestrator.errors import (
    AmbiguousOutcome,
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeout,
    NotFoundError,
    OrchestratorClosed,
    RateLimitError,
)
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tenacity import RetryCallState

    from orchestrator.client.call import Call
    from orchestrator.client.reconciliation import Plan
    from orchestrator.client.settings import Settings

__all__ = ["Attempts", "Clocks"]

T = TypeVar("T")
V = TypeVar("V")

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Where a client takes time and chance from; tests bring their own.

    Attributes:
        monotonic: Seconds on a clock that never goes back, for deadlines.
        unix: Seconds since the epoch, for hints that are dates.
        jitter: A number in [0, 1).
    """

    monotonic: Callable[[], float] = time.monotonic
    unix: Callable[[], float] = time.time
    jitter: Callable[[], float] = random.random


class Controls(TypedDict):
    """What both of tenacity's drivers take."""

    retry: Callable[[RetryCallState], bool]
    wait: Callable[[RetryCallState], float]
    stop: Callable[[RetryCallState], bool]
    before_sleep: Callable[[RetryCallState], None]
    reraise: bool


class Attempts(Generic[T]):
    """The attempts of one call, within its deadline; the `Case` of its reconciler.

    Args:
        call: The call.
        settings: The client's; the call's own options stand over them.
        clocks: The clocks.
        echoing: The base URLs of the servers that were seen to keep metadata, known to the whole client.
        deadline: When to give up, on the monotonic clock; by default what the policy allows from now.
    """

    def __init__(
        self,
        call: Call[T],
        settings: Settings,
        clocks: Clocks,
        *,
        echoing: set[str],
        deadline: float | None = None,
    ) -> None:
        self._call = call
        self._client_settings = settings
        settings = settings.with_options(call.options)
        self._server = settings.base_url
        self._policy = settings.retry
        self._timeout_s = settings.timeout_s
        self._clocks = clocks
        self._echoing = echoing
        self._deadline = clocks.monotonic() + self._policy.deadline_s if deadline is None else deadline
        self._made = 0
        self._failures = 0
        self._may_be_done = False

    def next(self) -> Call[T]:
        """Return the call for the next attempt: it may take what is left until the deadline.

        Raises:
            APITimeout: Nothing is left; nothing was sent.
        """
        left_s = self._left_s()
        if left_s <= 0:
            raise APITimeout(
                "the call's deadline passed", method=self._call.method, path=self._call.path, sent=False
            )
        self._made += 1
        timeout_s = min(self._timeout_s, left_s)
        return replace(self._call, options={**self._call.options, "timeout": timeout_s})

    def controls(self) -> Controls:
        """Return the policy in tenacity's terms."""
        return {
            "retry": self._is_worth_another,
            "wait": self._wait_s,
            "stop": self._is_over,
            "before_sleep": self._log_retry,
            "reraise": True,
        }

    def looking(self, call: Call[V]) -> Attempts[V]:
        """Return the attempts of a call that this one's outcome depends on, within the same deadline."""
        return Attempts(
            call, self._client_settings, self._clocks, echoing=self._echoing, deadline=self._deadline
        )

    def learn(self, made: object) -> None:
        """Take note of whether what the server made of a request with a nonce shows it."""
        metadata = getattr(made, "metadata", None) or {}
        if self._call.nonce is not None and metadata.get(NONCE_KEY) == self._call.nonce:
            self.see_metadata()

    def log_failure(self, error: APIError) -> None:
        """Log the last attempt, which no further one follows at once."""
        log.debug("request.failed", operation=self._call.operation, attempt=self._made, **_reason(error))

    def not_sent(self, closed: OrchestratorClosed) -> APIConnectionError:
        """Return what a client that was closed meanwhile means to a plan: the outcome stays open."""
        call = self._call
        error = APIConnectionError(
            f"nothing was sent ({closed})", method=call.method, path=call.path, sent=False
        )
        error.__cause__ = closed
        return error

    def settle(self, error: APIError) -> Plan[T]:
        """Plan what the last failure comes to.

        Raises:
            AmbiguousOutcome: The request may have taken effect, and may not be repeated.
            APIError: The failure itself.
        """
        call = self._call
        if self._may_be_done and call.if_gone is not None and isinstance(error, NotFoundError):
            return call.if_gone
        uncertain = self._may_be_done or judge(error, repeatable=False) is Verdict.AMBIGUOUS
        if uncertain and call.reconciler is not None:
            return (yield from call.reconciler.settle(error, self))
        if uncertain and not call.repeatable:
            raise self.ambiguous(error, "it was not repeated")
        raise error

    def pause_s(self, error: APIError) -> float:
        """Seconds from the first look to the second; infinite when that is more than the policy waits."""
        hint = (
            retry_after_s(error.headers, self._clocks.unix()) if isinstance(error, APIStatusError) else None
        )
        seconds = max(self._policy.settle_s, hint or 0.0)
        is_patient = (hint or 0.0) <= self._policy.retry_after_cap_s and seconds < self._left_s()
        return seconds if is_patient else float("inf")

    @property
    def keeps_metadata(self) -> bool:
        """Whether the server was ever seen to answer with metadata it was sent."""
        return self._server in self._echoing

    def see_metadata(self) -> None:
        """Take note that the server keeps metadata."""
        self._echoing.add(self._server)

    def may_repeat(self, error: APIError) -> bool:
        """Whether the policy and the server allow one more attempt after this failure."""
        stopped = judge(error, repeatable=True) is Verdict.FINAL
        return not stopped and self._made < self._policy.attempts and self._policy.when(error)

    def report_twins(self, ids: Sequence[str]) -> None:
        """Report that one request took effect more than once."""
        call = self._call
        log.error("request.duplicated", operation=call.operation, thread_id=call.thread_id, ids=list(ids))

    def ambiguous(self, error: APIError, why: str) -> AmbiguousOutcome:
        """Return the error that says that the outcome could not be settled."""
        call = self._call
        where = f" on thread {call.thread_id}" if call.thread_id else ""
        mark = f", nonce {call.nonce}" if call.nonce else ""
        outcome = AmbiguousOutcome(
            f"{call.operation}{where}{mark} may or may not have taken effect: {error}; {why}:"
            " look at the server before you start again",
            operation=call.operation,
            thread_id=call.thread_id,
            nonce=call.nonce,
        )
        outcome.__cause__ = error
        return outcome

    def _left_s(self) -> float:
        return self._deadline - self._clocks.monotonic()

    def _is_worth_another(self, state: RetryCallState) -> bool:
        error = _error(state)
        if error is None:
            return False
        again = judge(error, repeatable=self._call.repeatable) is Verdict.AGAIN
        self._may_be_done |= again and not _did_nothing(error)
        self._failures += 1
        return again and self.may_repeat(error)

    def _wait_s(self, state: RetryCallState) -> float:
        error = _error(state)
        assert error is not None
        return delay_s(
            self._policy,
            failures=self._failures,
            error=error,
            jitter=self._clocks.jitter(),
            unix_now=self._clocks.unix(),
        )

    def _is_over(self, state: RetryCallState) -> bool:
        # tenacity asks for the wait first; one that ends past the deadline is not begun.
        resumes = self._clocks.monotonic() + state.upcoming_sleep
        return resumes >= self._deadline

    def _log_retry(self, state: RetryCallState) -> None:
        error = _error(state)
        assert error is not None
        log.info(
            "request.retried",
            operation=self._call.operation,
            attempt=self._made,
            delay_s=round(state.upcoming_sleep, 3),
            **_reason(error),
        )


def _error(state: RetryCallState) -> APIError | None:
    error = state.outcome.exception() if state.outcome is not None else None
    return error if isinstance(error, APIError) else None


def _did_nothing(error: APIError) -> bool:
    return isinstance(error, RateLimitError) or (isinstance(error, APIConnectionError) and not error.sent)


def _reason(error: APIError) -> dict[str, Any]:
    """Describe a failure for the log: never a body, whose text is the server's."""
    status = error.status if isinstance(error, APIStatusError) else None
    return {"reason": type(error).__name__, "status": status, "request_id": error.request_id}
