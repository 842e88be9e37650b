"""Whether a server is worth asking: a circuit breaker, without I/O and without a clock.

Owns the count of failures in a row, the pause that follows too many of them, and the one request that finds
out whether the server is back. Refuses to know what a request is, and who waits: its owner asks `wait_s`
before a request leaves, says so with `enter`, and tells what came of it. Every `now` is in seconds of one
monotonic clock.

The rules:

1. *Closed*: everything goes. `failures` failures in a row open it; any success begins the count anew.
2. *Open*: nothing goes for `open_s`. Then exactly one request goes, the probe; the others wait for what comes
   of it. A probe that is given up without an outcome is replaced by the next request.
3. The probe fails: the pause doubles, up to `cap_s`, and those who waited fail with it. A pause and a probe
   are thus one attempt to them, however many requests there are.
4. Any success closes it, be it the probe's, a cancel's, which nobody holds back, or a late answer's. Failures
   of others than the probe are counted while it is open, and decide nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.runs.request import require_kind, require_patience

__all__ = ["Breaker", "BreakerPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a server is left alone for a while, and for how long.

    A failure is a request without a complete answer, or with one of status 500 and above.

    Attributes:
        failures: How many failures in a row open the breaker.
        open_s: Seconds of the first pause; it doubles with each probe that fails.
        cap_s: The longest pause, in seconds.

    Raises:
        ValueError: A bound makes no sense.
        TypeError: A value is of another type.
    """

    failures: int = 10
    open_s: float = 1.0
    cap_s: float = 30.0

    def __post_init__(self) -> None:
        require_kind("failures", self.failures, int)
        require_patience("open_s", self.open_s)
        require_patience("cap_s", self.cap_s)
        if self.failures < 1:
            raise ValueError(f"failures must be at least 1, got {self.failures}")
        if not 0 < self.open_s <= self.cap_s < math.inf:
            raise ValueError(
                f"open_s must be positive and not more than cap_s, got {self.open_s} and {self.cap_s}"
            )


class Breaker:
    """The breaker of one server and key.

    Args:
        policy: When it opens, and for how long.

    Attributes:
        failures: Failures in a row, up to now.
        last_error: The class of the last one, by name.
        pause_s: The current pause; 0 while it is closed.
    """

    def __init__(self, policy: BreakerPolicy) -> None:
        self.failures = 0
        self.last_error = ""
        self.pause_s = 0.0
        self._policy = policy
        self._until = 0.0
        self._probes = 0
        self._probe: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests are held back."""
        return self.pause_s > 0

    def wait_s(self, now: float) -> float:
        """Seconds until the next request may go; infinite while a probe is under way."""
        if not self.is_open:
            return 0.0
        return math.inf if self._probe is not None else max(0.0, self._until - now)

    def enter(self) -> int | None:
        """A request that need not wait goes: the number of the probe that it is, or `None`."""
        if not self.is_open:
            return None
        self._probes += 1
        self._probe = self._probes
        return self._probe

    def leave(self, probe: int) -> None:
        """A request that was a probe is over: without an outcome, the next one takes its place."""
        if self._probe == probe:
            self._probe = None

    def succeed(self) -> bool:
        """A request was answered, whichever; return whether that closed the breaker."""
        was_open = self.is_open
        self.failures, self.pause_s, self._probe = 0, 0.0, None
        return was_open

    def fail(self, error: str, now: float, *, probe: int | None = None) -> bool:
        """A request failed.

        Args:
            error: The error's class, by name.
            now: The time.
            probe: What `enter` returned for it.

        Returns:
            Whether it was the probe, so that those who wait fail with it.
        """
        self.failures += 1
        self.last_error = error
        was_probe = self.is_open and probe is not None and probe == self._probe
        if was_probe:
            self._probe = None
            self._pause(min(self._policy.cap_s, 2 * self.pause_s), now)
        elif not self.is_open and self.failures >= self._policy.failures:
            self._pause(self._policy.open_s, now)
        return was_probe

    def _pause(self, seconds: float, now: float) -> None:
        self.pause_s = seconds
        self._until = now + seconds
