"""Thousands of polled runs under one budget of requests: whether it is kept, and whether any run is starved.

`python tests/benchmarks/polling.py [RUNS] [BUDGET] [SECONDS]` (default 5,000, 200 a second as shipped, and
three times as long as the budget takes for a look at each run) opens so many runs that do not end, and then
counts at the server, by the time at which each request arrives. A run is starved if two looks at it, or the
measurement's begin or end and the next look, are further apart than `fair_s`. `test_polling.py` holds smaller
figures to the same bounds.
"""

from __future__ import annotations

import math
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from fleet import all_open, ask_server, percentile
from run_server import run_server
from stub_server import allow_many_files

from orchestrator import Orchestrator, ServerLimits, Timing

BURST_S = 0.1
"""What the limiter lets go at once, as seconds of the budget; see `orchestrator.supervision.limiter`."""

LATE_S = 0.5
"""By how much the arrival of a request may be late, as far as that is not the orchestrator's doing."""

UNFAIR = 1.5
"""By how much more than its share a run may wait."""


@dataclass(frozen=True, kw_only=True)
class Polled:
    """What was measured.

    Attributes:
        runs: How many were open.
        budget: The most looks in a second.
        per_second: How many arrived in each whole second.
        gaps_s: For each run the longest time without a look, sorted.
        unseen: Runs that were not looked at once.
        cpu_s: This process's CPU time for each second.
        ended: How the runs ended that were cancelled then, and how many did so.
    """

    runs: int
    budget: float
    per_second: list[int] = field(repr=False)
    gaps_s: list[float] = field(repr=False)
    unseen: int
    cpu_s: float
    ended: dict[str, int]

    @property
    def fair_s(self) -> float:
        """The longest that a run may be left alone: its share of the budget, or the longest pause."""
        return UNFAIR * max(self.runs / self.budget, 1.1 * Timing().poll_max_s)


def measure(runs: int, budget: float, seconds: float) -> Polled:
    """Open runs that are polled, and count the looks at them for so many seconds."""
    with run_server() as base_url:
        fleet = Orchestrator(
            base_url=base_url,
            api_key="k",
            watch="poll",
            max_concurrent_runs=runs,
            limits=ServerLimits(polls_per_s=budget),
            check_tools="off",
        )
        handles = [fleet.start("asst_1", messages="go", metadata={"until": "cancelled"}) for _ in range(runs)]
        all_open(base_url, handles, streams=0)
        # The pauses grow with a run's age: at their longest they are the same for all.
        pause = threading.Event()
        pause.wait(runs / budget)
        ask_server(base_url, "looks")
        begun, cpu = time.monotonic(), time.process_time()
        pause.wait(seconds)
        over, cpu = time.monotonic(), time.process_time() - cpu
        looks: dict[str, list[float]] = ask_server(base_url, "looks")
        cancelled = fleet.cancel_all()
        ended = Counter(handle.result(120).status for handle in cancelled)
        fleet.close()
    arrivals = Counter(math.floor(at - begun) for one in looks.values() for at in one)
    gaps = [max(after - before for before, after in pairwise([begun, *one, over])) for one in looks.values()]
    return Polled(
        runs=runs,
        budget=budget,
        per_second=[arrivals[second] for second in range(math.floor(over - begun))],
        gaps_s=sorted(gaps),
        unseen=runs - len(looks),
        cpu_s=cpu / (over - begun),
        ended=dict(ended),
    )


def failures(measured: Polled) -> list[str]:
    """Say what was not kept."""
    wrong = []
    most = measured.budget * (1 + BURST_S + LATE_S)
    if max(measured.per_second) > most:
        wrong.append(f"{max(measured.per_second)} looks in one second, more than {most:.0f}")
    mean = statistics.fmean(measured.per_second)
    if mean > measured.budget * 1.02:
        wrong.append(f"{mean:.1f} looks a second, more than {measured.budget}")
    if measured.unseen:
        wrong.append(f"{measured.unseen} runs were not looked at")
    if measured.gaps_s[-1] > measured.fair_s:
        wrong.append(f"a run was left alone for {measured.gaps_s[-1]:.1f} s, more than {measured.fair_s:.1f}")
    if measured.ended != {"cancelled": measured.runs}:
        wrong.append(f"they ended as {measured.ended}")
    return wrong


def table(measured: Polled) -> str:
    """Put it into tables."""
    rates, gaps = measured.per_second, measured.gaps_s
    shown = (percentile(gaps, 0.5), percentile(gaps, 0.99), gaps[-1])
    return "\n".join(
        (
            "| runs | budget | looks a second | least | most | longest without a look, p50 | p99 | max |",
            "|---|---|---|---|---|---|---|---|",
            (
                f"| {measured.runs:,} | {measured.budget:.0f} | {statistics.fmean(rates):.1f} | {min(rates)}"
                f" | {max(rates)} | {' | '.join(f'{seconds:.1f} s' for seconds in shown)} |"
            ),
            "",
            (
                f"each run's share of the budget: a look every {measured.runs / measured.budget:.1f} s; "
                f"starved beyond {measured.fair_s:.1f} s; CPU {measured.cpu_s:.2f} of a second each second"
            ),
            f"in each second: {' '.join(map(str, rates))}",
        )
    )


def main() -> int:
    """Print the tables; return 1 if a bound was broken."""
    allow_many_files()
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    budget = float(sys.argv[2]) if len(sys.argv) > 2 else ServerLimits().polls_per_s
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 3 * runs / budget
    measured = measure(runs, budget, seconds)
    wrong = failures(measured)
    print(table(measured), *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
