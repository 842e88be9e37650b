"""Whether a figure that was sampled over time is flat. Pure; knows nothing of what the figures are.

A line is fitted through the last two thirds of the samples: the first third is for what fills once and stays,
such as pools of threads, caches and the allocator's arenas. A figure grows if all of this holds of the line:

- it rises by more than one `step` between its ends, the smallest change that means anything;
- it rises by more than `per_hour`, extrapolated to an hour, which is what a leak comes to;
- it still does with `DOUBT` standard errors taken off, for a short line through scattered samples can be
  extrapolated to anything. The usual two are not enough: samples near each other are alike.

So a short measurement finds large leaks, and a long one small ones.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DOUBT", "FEWEST", "Bound", "Trend", "trend"]

DOUBT = 4.0

FEWEST = 6
"""A line through fewer samples than this says nothing."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How much a figure may rise.

    Attributes:
        per_hour: The most in an hour.
        step: The most between the ends of the line, however short that is.
    """

    per_hour: float
    step: float


@dataclass(frozen=True, kw_only=True)
class Trend:
    """What became of a figure.

    Attributes:
        first: Its mean over the first tenth of the samples that count.
        last: The same of the last tenth.
        rise: How much the line rises over these samples; negative where it falls.
        per_hour: The same, extrapolated to an hour.
        error_per_hour: The standard error of that.
        bound: What was allowed.
    """

    first: float
    last: float
    rise: float
    per_hour: float
    error_per_hour: float
    bound: Bound

    @property
    def is_flat(self) -> bool:
        """Whether it does not grow."""
        surely_per_hour = self.per_hour - DOUBT * self.error_per_hour
        return self.rise <= self.bound.step or surely_per_hour <= self.bound.per_hour


def trend(times_s: Sequence[float], values: Sequence[float], bound: Bound) -> Trend:
    """Fit a line through the last two thirds of some samples.

    Args:
        times_s: When they were taken, in order.
        values: What they were.
        bound: How much they may rise.

    Raises:
        ValueError: There are fewer than `FEWEST` in the last two thirds.
    """
    from_ = len(times_s) // 3
    times, counted = times_s[from_:], values[from_:]
    if len(times) < FEWEST:
        raise ValueError(f"{len(times)} samples are too few for a line: measure longer, or look more often")
    slope, base = statistics.linear_regression(times, counted)
    squares = sum((value - base - slope * at) ** 2 for at, value in zip(times, counted, strict=True))
    mean = statistics.fmean(times)
    spread = sum((at - mean) ** 2 for at in times)
    tenth = max(1, len(counted) // 10)
    return Trend(
        first=statistics.fmean(counted[:tenth]),
        last=statistics.fmean(counted[-tenth:]),
        rise=slope * (times[-1] - times[0]),
        per_hour=3600 * slope,
        error_per_hour=3600 * math.sqrt(squares / (len(times) - 2) / spread),
        bound=bound,
    )
