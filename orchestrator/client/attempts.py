"""One call and its attempts: what tenacity is told, and what the last failure means.

The decisions are `orchestrator.client.retry`'s; tenacity drives them. This module keeps count, reads the
clock it was given, writes one log line per failed attempt, and turns an uncertain end into
`AmbiguousOutcome`. Both clients use it.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypedDict, TypeVar

from orchestrator.client.retry import Verdict, delay_s, judge
from orchestrator.errors import (
    AmbiguousOutcome,
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeout,
    NotFoundError,
    RateLimitError,
)
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity import RetryCallState

    from orchestrator.client.call import Call
    from orchestrator.client.settings import Settings

__all__ = ["Attempts", "Clocks"]

T = TypeVar("T")

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
    """The attempts of one call, within its deadline.

    Args:
        call: The call.
        settings: The client's; the call's own options stand over them.
        clocks: The clocks.
    """

    def __init__(self, call: Call[T], settings: Settings, clocks: Clocks) -> None:
        settings = settings.with_options(call.options)
        self._call = call
        self._policy = settings.retry
        self._timeout_s = settings.timeout_s
        self._clocks = clocks
        self._deadline = clocks.monotonic() + self._policy.deadline_s
        self._may_be_done = False

    def next(self) -> Call[T]:
        """Return the call for the next attempt: it may take what is left until the deadline.

        Raises:
            APITimeout: Nothing is left; nothing was sent.
        """
        left_s = self._deadline - self._clocks.monotonic()
        if left_s <= 0:
            raise APITimeout(
                "the call's deadline passed", method=self._call.method, path=self._call.path, sent=False
            )
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

    def already_done(self, error: APIError) -> T | None:
        """Return the value of a delete that an earlier attempt had done, or `None`."""
        return self._call.if_gone if self._may_be_done and isinstance(error, NotFoundError) else None

    def fail(self, error: APIError) -> NoReturn:
        """Raise what the last failure means.

        Raises:
            AmbiguousOutcome: The request may have taken effect, and may not be repeated.
            APIError: The failure itself.
        """
        call = self._call
        log.debug("request.failed", operation=call.operation, **_reason(error))
        if judge(error, repeatable=call.repeatable) is not Verdict.AMBIGUOUS:
            raise error
        where = f" on thread {call.thread_id}" if call.thread_id else ""
        mark = f", nonce {call.nonce}" if call.nonce else ""
        raise AmbiguousOutcome(
            f"{call.operation}{where}{mark} may or may not have taken effect: {error};"
            " it was not repeated, look at the server before you start again",
            operation=call.operation,
            thread_id=call.thread_id,
            nonce=call.nonce,
        ) from error

    def _is_worth_another(self, state: RetryCallState) -> bool:
        error = _error(state)
        if error is None:
            return False
        again = judge(error, repeatable=self._call.repeatable) is Verdict.AGAIN
        self._may_be_done |= again and not _did_nothing(error)
        return again

    def _wait_s(self, state: RetryCallState) -> float:
        error = _error(state)
        assert error is not None
        return delay_s(
            self._policy,
            failures=state.attempt_number,
            error=error,
            jitter=self._clocks.jitter(),
            unix_now=self._clocks.unix(),
        )

    def _is_over(self, state: RetryCallState) -> bool:
        # tenacity asks for the wait first; one that ends past the deadline is not begun.
        resumes = self._clocks.monotonic() + state.upcoming_sleep
        return state.attempt_number >= self._policy.attempts or resumes >= self._deadline

    def _log_retry(self, state: RetryCallState) -> None:
        error = _error(state)
        assert error is not None
        log.info(
            "request.retried",
            operation=self._call.operation,
            attempt=state.attempt_number,
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
