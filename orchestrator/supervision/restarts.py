"""How often a run's actor is started again, and how soon: OTP's intensity, as plain reckoning."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.runs.request import require_patience

__all__ = ["RestartPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How often a run's actor is started again after it died.

    Attributes:
        max_restarts: The most restarts within the window.
        within_s: The window, in seconds.
        backoff_s: Seconds before the first restart; it doubles with each further one in the window.
        backoff_cap_s: The longest pause, in seconds.
    """

    max_restarts: int = 5
    within_s: float = 60.0
    backoff_s: float = 0.1
    backoff_cap_s: float = 5.0

    def __post_init__(self) -> None:
        for name in ("max_restarts", "within_s", "backoff_s", "backoff_cap_s"):
            require_patience(name, getattr(self, name))

    def pause_s(self, deaths: list[float], now: float) -> float | None:
        """Count one more death; return the seconds until the restart, or `None` when there is none.

        Args:
            deaths: When the earlier ones were; those before the window are dropped.
            now: Seconds of the same clock.
        """
        deaths.append(now)
        while deaths[0] < now - self.within_s:
            del deaths[0]
        if len(deaths) > self.max_restarts:
            return None
        return min(self.backoff_cap_s, self.backoff_s * 2.0 ** (len(deaths) - 1))
