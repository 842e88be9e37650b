"""What may be tried again, and when: the one place of retry policy, as pure functions.

Two drivers use it: the clients (through tenacity) for direct calls, and `orchestrator.runs.lifecycle` for
supervised runs. It reads no clock, draws no random number and sends nothing: all three are arguments.

The rules, in order:

1. *Never sent*: the transport states that no byte left. Always again.
2. *Refused*: 429. The server did nothing. Again, unless it says `x-should-retry: false`.
3. *Rejected*: any other status below 500 except 408 and 409. Final: the same request gets the same answer.
4. What is left may have taken effect (408, 409, 5xx, a cut connection, an unreadable answer). Again when the
   operation is repeatable and the server does not say `x-should-retry: false`; else *ambiguous*. A hint such
   as `Retry-After` decides when, never whether, an unrepeatable request is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from orchestrator.errors import APIConnectionError, APIError, APIStatusError, RateLimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "ALWAYS",
    "NONCE_KEY",
    "NO_RETRIES",
    "RetryPolicy",
    "Verdict",
    "When",
    "delay_s",
    "judge",
    "retry_after_s",
    "when_error",
    "when_status",
]

NONCE_KEY = "orchestrator_nonce"
"""The metadata key that marks what one create request made, so that its outcome can be looked up."""


class Verdict(StrEnum):
    """What a failed request allows."""

    AGAIN = "again"
    """Nothing was done, or doing it twice does no harm."""
    AMBIGUOUS = "ambiguous"
    """It may have taken effect, and doing it twice would do harm: look before anything else."""
    FINAL = "final"
    """The server decided: the same request gets the same answer."""


@dataclass(frozen=True, slots=True)
class When:
    """A condition on a failure, to be combined with `&`, `|` and `~`.

    Attributes:
        holds: Says whether the condition holds for a failure; called on the call's thread, must not block.
    """

    holds: Callable[[APIError], bool]

    def __call__(self, error: APIError) -> bool:
        """Say whether the condition holds."""
        return self.holds(error)

    def __and__(self, other: When) -> When:
        """Return the condition that both hold."""
        return When(lambda error: self(error) and other(error))

    def __or__(self, other: When) -> When:
        """Return the condition that at least one holds."""
        return When(lambda error: self(error) or other(error))

    def __invert__(self) -> When:
        """Return the opposite condition."""
        return When(lambda error: not self(error))


ALWAYS = When(lambda _: True)
"""Holds for every failure."""


def when_status(*statuses: int) -> When:
    """Return the condition that the server answered with one of these statuses."""
    return When(lambda error: isinstance(error, APIStatusError) and error.status in statuses)


def when_error(*kinds: type[APIError]) -> When:
    """Return the condition that the failure is of one of these classes."""
    return When(lambda error: isinstance(error, kinds))


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how patiently a request is tried.

    Attributes:
        attempts: The most requests sent for one call, the first included.
        base_s: The upper bound of the first backoff, in seconds; it doubles with each further one.
        cap_s: The upper bound of every backoff, in seconds.
        retry_after_cap_s: The longest server hint that is obeyed, in seconds; a longer one ends the call.
        deadline_s: Seconds for the call with all its attempts and waits.
        settle_s: Seconds between the two looks that settle an ambiguous create or submission.
        when: Which failures are worth another attempt, of those that the rules above allow it for; it can
            forbid an attempt, never allow one.
    """

    attempts: int = 4
    base_s: float = 0.5
    cap_s: float = 8.0
    retry_after_cap_s: float = 120.0
    deadline_s: float = 120.0
    settle_s: float = 2.0
    when: When = ALWAYS

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")
        for name in ("base_s", "cap_s", "retry_after_cap_s", "deadline_s", "settle_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


NO_RETRIES = RetryPolicy(attempts=1)
"""One attempt per call."""


def judge(error: APIError, *, repeatable: bool) -> Verdict:
    """Say what a failed request allows.

    Args:
        error: The failure, as the client raised it.
        repeatable: Whether doing the operation twice equals doing it once.
    """
    if isinstance(error, APIConnectionError) and not error.sent:
        return Verdict.AGAIN
    if isinstance(error, APIStatusError):
        stopped = error.headers.get("x-should-retry") == "false"
        if isinstance(error, RateLimitError):
            return Verdict.FINAL if stopped else Verdict.AGAIN
        if error.status < 500 and error.status not in (408, 409):
            return Verdict.FINAL
        if repeatable and stopped:
            return Verdict.FINAL
    return Verdict.AGAIN if repeatable else Verdict.AMBIGUOUS


def delay_s(policy: RetryPolicy, *, failures: int, error: APIError, jitter: float, unix_now: float) -> float:
    """Seconds to wait before the next attempt; infinite when the server asks for more than the cap.

    The server's hint is a floor: full jitter is added on top of it only as far as the backoff reaches, so
    that a fleet that was refused together does not come back together.

    Args:
        policy: The bounds.
        failures: How many attempts failed so far, at least 1.
        error: The last failure; its headers may carry a hint.
        jitter: A number in [0, 1), drawn by the caller.
        unix_now: Seconds since the epoch, for hints that are dates.
    """
    doublings = min(failures - 1, 64)  # far past every cap; a float overflows at 1,024
    backoff = min(policy.cap_s, policy.base_s * 2.0**doublings) * jitter
    hint = retry_after_s(error.headers, unix_now) if isinstance(error, APIStatusError) else None
    if hint is None:
        return backoff
    return float("inf") if hint > policy.retry_after_cap_s else hint + backoff


def retry_after_s(headers: Mapping[str, str], unix_now: float) -> float | None:
    """Read `retry-after-ms` or `Retry-After` (seconds, a float, or an HTTP date); `None` without either.

    Args:
        headers: Header names in lower case.
        unix_now: Seconds since the epoch, for a date.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    text = headers.get("retry-after")
    if text is None:
        return None
    seconds = _number(text)
    if seconds is not None:
        return max(0.0, seconds)
    try:
        date = parsedate_to_datetime(text)
        # RFC 9110, 5.6.7: a recipient must accept asctime dates too, which name no zone and mean UTC.
        date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        return max(0.0, date.timestamp() - unix_now)
    except (TypeError, ValueError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else None
    except ValueError:
        return None
    return None if number is None or number != number else number  # noqa: PLR0124 - NaN is no hint
