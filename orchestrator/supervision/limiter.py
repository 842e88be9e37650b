"""How fast a server may be asked, on one key: from what its answers say, without I/O and without a clock.

Owns the arithmetic of waiting. Refuses to know what a request is beyond its urgency, who waits, and how:
its owner asks `reserve` before a request leaves, and has it `learn` from every answer. Every `now` is in
seconds of one monotonic clock.

The rules:

1.  A cancel never waits.
2.  *Told when*: after a 429 with `retry-after-ms` or `Retry-After`, everything else waits for that long.
3.  *Nothing left*: where `x-ratelimit-remaining-*` is 0, everything else waits for its `reset`.
4.  *Polls first*: the fleet's polls together never come faster than `polls_per_s`, but for a burst of what a
    tenth of a second allows; looks that a run's end or outputs hang on are of them, and go first. Once less
    than half of a limit is left, they share what is left above a tenth of it, evenly over the time to its
    reset.
5.  *Then creates*: once less than a tenth is left, they share what is left above a fiftieth, likewise. What
    finishes a run (outputs, listings, the transcript) is held back by rules 2 and 3 alone.
6.  *Refused*: a 429, of those within a second the first, halves the pace of the polls, as it was of late but
    of ten a second at least, and where they are slowed already, or there are none, that of the creates too:
    also after a hint, which says when to come back and not how many. Other answers below 500 give it back
    evenly, in some twenty seconds.
7.  Slowing is not stopping: one poll and one create may go in five seconds under rules 4 to 6, so that there
    is an answer to learn from.
8.  Nothing that an answer says holds for longer than `WAIT_CAP_S`, and `reserve` never asks for more. What
    is waited for the fleet's own budget is bounded by its runs, which have one poll each under way.

A request is taken to cost what the last ones did, by the fall of `remaining`: that is how many tokens one
needs, and how many requests of other processes on the same key go with it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from orchestrator.client.retry import retry_after_s

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["WAIT_CAP_S", "Limiter", "Urgency", "reset_s"]

WAIT_CAP_S: Final = 120.0
"""The longest that a server's word holds a request back, in seconds."""

BURST_S: Final = 0.1
CUT_EVERY_S: Final = 1.0
RECOVERY_S: Final = 20.0
SLOWEST_PER_S: Final = 0.2
EASY_PER_S: Final = 10.0

_HEADERS: Final = tuple(
    tuple(f"x-ratelimit-{part}-{unit}" for part in ("remaining", "limit", "reset"))
    for unit in ("requests", "tokens")
)


class Urgency(IntEnum):
    """What a request is for; the smaller, the more urgent."""

    CANCEL = 0
    """It ends a run."""
    FINISH = 1
    """It brings a run further that exists."""
    CREATE = 2
    """It makes a run, or a thread for one."""
    LOOK = 3
    """It looks at a run whose end or whose outputs hang on that; of the polls' budget, and first."""
    POLL = 4
    """It looks at a run."""
    ASIDE = 5
    """No run waits for it; of the polls' budget, and last."""


class Limiter:
    """The limiter of one server and key.

    Args:
        polls_per_s: The most polls per second, over the fleet.
        unix_time: Seconds since the epoch; read only to understand a `Retry-After` that is a date.
    """

    def __init__(self, polls_per_s: float, *, unix_time: Callable[[], float]) -> None:
        self._unix_time = unix_time
        self._held_until = -math.inf
        self._cut_at = -math.inf
        self._windows: dict[str, _Window] = {}
        self._polls = _Pace(polls_per_s)
        self._creates = _Pace(math.inf)

    def reserve(self, urgency: Urgency, now: float) -> float:
        """Book a request, if it may go.

        Returns:
            0 when it may, and is booked. Else the seconds after which to ask again: nothing is booked, and
            any answer may shorten them.
        """
        if urgency is Urgency.CANCEL:
            return 0.0
        wait_s = self._held_until - now
        if wait_s <= 0:
            wait_s = self._wait_s(urgency, now)
        if wait_s > 0:
            return min(wait_s, WAIT_CAP_S)
        for window in self._windows.values():
            window.sent += 1
        return 0.0

    def learn(self, status: int, headers: Mapping[str, str], now: float) -> None:
        """Take note of an answer; what cannot be understood is ignored.

        Args:
            status: The HTTP status.
            headers: By lower-case name.
            now: The time.
        """
        for names in _HEADERS:
            if names[0] in headers:
                self._learn_window(names, headers, now)
        if status == 429:
            hint_s = retry_after_s(headers, self._unix_time())
            if hint_s is not None:
                self._held_until = max(self._held_until, now + min(hint_s, WAIT_CAP_S))
            self._slow(now)
        elif status < 500:
            self._polls.recover(now)
            self._creates.recover(now)

    def _learn_window(self, names: tuple[str, ...], headers: Mapping[str, str], now: float) -> None:
        remaining, limit = (_number(headers.get(name)) for name in names[:2])
        seconds = reset_s(headers.get(names[2]))
        if remaining is None or limit is None or limit <= 0 or seconds is None:
            return
        cost = 1.0
        known = self._windows.get(names[0])
        if known is not None:
            spent = (known.remaining - remaining) / max(1, known.sent)
            # A rise is another window, or an older answer.
            cost = known.cost if spent <= 0 else 0.8 * known.cost + 0.2 * min(max(1.0, spent), limit)
        self._windows[names[0]] = _Window(
            limit=limit, remaining=remaining, reset_at=now + min(seconds, WAIT_CAP_S), cost=cost
        )

    def _wait_s(self, urgency: Urgency, now: float) -> float:
        share = math.inf
        changes_s = math.inf
        for name, window in tuple(self._windows.items()):
            left_s = window.reset_at - now
            if left_s <= 0:
                del self._windows[name]
            elif window.remaining < 1:
                return left_s
            elif window.is_low(urgency):
                share = min(share, window.share(urgency, left_s))
                changes_s = min(changes_s, left_s)
        if urgency is Urgency.FINISH:
            return 0.0
        pace = self._creates if urgency is Urgency.CREATE else self._polls
        return min(pace.take(now, share), changes_s)

    def _slow(self, now: float) -> None:
        if now - self._cut_at < CUT_EVERY_S:
            return  # answers to what left before the last cut
        self._cut_at = now
        if self._polls.is_slowed or not self._polls.is_used(now):
            self._creates.cut(now)
        self._polls.cut(now)


# How much of a limit is left when an urgency is slowed, and how much of it is kept for the more urgent.
_LOW: Final = {Urgency.FINISH: 0.0, Urgency.CREATE: 0.1} | dict.fromkeys(
    (Urgency.LOOK, Urgency.POLL, Urgency.ASIDE), 0.5
)
_KEPT: Final = {Urgency.FINISH: 0.0, Urgency.CREATE: 0.02} | dict.fromkeys(
    (Urgency.LOOK, Urgency.POLL, Urgency.ASIDE), 0.1
)


@dataclass(slots=True, kw_only=True)
class _Window:
    """What a server said of one of its limits.

    Attributes:
        limit: What there is after a reset.
        remaining: What was left.
        reset_at: When its word no longer counts.
        cost: What one request takes of it.
        sent: How many requests were let go since.
    """

    limit: float
    remaining: float
    reset_at: float
    cost: float
    sent: int = 0

    def is_low(self, urgency: Urgency) -> bool:
        return self._left < self.limit * _LOW[urgency]

    def share(self, urgency: Urgency, left_s: float) -> float:
        """Requests per second that what is left allows."""
        return max(SLOWEST_PER_S, (self._left - self.limit * _KEPT[urgency]) / self.cost / left_s)

    @property
    def _left(self) -> float:
        return self.remaining - self.sent * self.cost


class _Pace:
    """A pace that is halved, and recovers; and the bucket that meters it.

    Args:
        budget: Requests per second when it is not slowed.
    """

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self._rate = budget
        self._full = budget
        self._raised_at = 0.0
        self._of_late = 0.0
        self._went_at = 0.0
        self._level = math.inf
        self._at = 0.0

    @property
    def is_slowed(self) -> bool:
        return self._rate < self._budget

    def is_used(self, now: float) -> bool:
        """Whether there was a request within the last seconds."""
        return self._observed(now) > 0.1

    def take(self, now: float, share: float) -> float:
        """Let one request go, no faster than a share; else the seconds until one may."""
        rate = min(self._rate, share)
        if rate < math.inf:
            most = max(1.0, rate * BURST_S)
            self._level = min(most, self._level + (now - self._at) * rate)
            self._at = now
            if self._level < 1 - 1e-9:
                return (1 - self._level) / rate
            self._level -= 1
        self._of_late = self._observed(now) + 1
        self._went_at = now
        return 0.0

    def cut(self, now: float) -> None:
        if not self.is_slowed:
            # Of a trickle, half would be next to nothing.
            self._rate = min(self._budget, max(EASY_PER_S, self._observed(now)))
            self._full = min(self._budget, 2 * self._rate)
        self._rate = min(self._budget, max(SLOWEST_PER_S, self._rate / 2))
        self._raised_at = now

    def recover(self, now: float) -> None:
        if not self.is_slowed:
            return
        # An answer stands for a second at most: where none come, nothing is known to be better.
        self._rate += min(1.0, now - self._raised_at) * self._full / RECOVERY_S
        self._raised_at = now
        if self._rate >= self._full:
            self._rate = self._budget

    def _observed(self, now: float) -> float:
        """Requests per second of late: a count that forgets two thirds of itself each second."""
        return self._of_late * math.exp(self._went_at - now)


_UNITS: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(d|h|ms|m|s|us|ns)")
_DURATION: Final = re.compile(rf"(?:{_PART.pattern})+")


def reset_s(text: str | None) -> float | None:
    """Read how long a limit takes to its reset: `"1s"`, `"6m0s"`, `"20ms"`, or plain seconds.

    Returns:
        Seconds, finite and not negative; `None` for anything else.
    """
    if text is None:
        return None
    if _DURATION.fullmatch(text):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
        return seconds if seconds < math.inf else None
    return _number(text)


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None
