"""What an idle actor costs: ours on the shared loop beside Pykka's with a thread each.

`python tests/benchmarks/actors.py` measures each kind and number in a process of its own and prints a table.
Memory is what the process's resident set grew by; a start is counted from the call until `on_start` has run,
all actors being started one after the other and the last one waited for. The best of a few repetitions
counts, being the one that other programs disturbed least. `test_actors.py` holds ours to what is promised.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import psutil
import pykka

from orchestrator.runtime import LoopActor

REPETITIONS = 3
PATIENCE_S = 120.0
LOOP, THREADING = "LoopActor", "ThreadingActor"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one actor costs.

    Attributes:
        start_s: Seconds to start it.
        idle_bytes: Resident memory while it waits.
    """

    start_s: float
    idle_bytes: float


class _Started:
    """Counts the actors that have started."""

    def __init__(self, expected: int) -> None:
        self._left = expected
        self._lock = threading.Lock()
        self._all = threading.Event()

    def count(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._all.set()

    def wait(self) -> None:
        assert self._all.wait(PATIENCE_S)


class OnLoop(LoopActor):
    def __init__(self, started: _Started) -> None:
        super().__init__()
        self._started = started

    def on_start(self) -> None:
        self._started.count()


class OnThread(pykka.ThreadingActor):
    def __init__(self, started: _Started) -> None:
        super().__init__()
        self._started = started

    def on_start(self) -> None:
        self._started.count()


KINDS: dict[str, type[OnLoop | OnThread]] = {LOOP: OnLoop, THREADING: OnThread}


def measure(kind: str, actors: int) -> Cost:
    """Start so many in this process, look, and stop them."""
    actor = KINDS[kind]
    # What the first one makes once for all is not counted; one that stays keeps the loop thread.
    warm_up = _Started(1)
    keeper = actor.start(warm_up)
    warm_up.wait()
    gc.collect()
    before = psutil.Process().memory_info().rss
    started = _Started(actors)
    begun = time.perf_counter()
    refs: list[pykka.ActorRef[Any]] = [actor.start(started) for _ in range(actors)]
    started.wait()
    took_s = time.perf_counter() - begun
    gc.collect()
    grown = psutil.Process().memory_info().rss - before
    for stopped in [ref.stop(block=False) for ref in (*refs, keeper)]:
        stopped.get(timeout=PATIENCE_S)
    return Cost(start_s=took_s / actors, idle_bytes=grown / actors)


def measured(kind: str, actors: int) -> Cost:
    """Measure in processes of their own; the least of each figure.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    command = [sys.executable, __file__, kind, str(actors)]
    # Coverage would trace our actors' start and not Pykka's.
    environ = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    costs = []
    for _ in range(REPETITIONS):
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=True, env=environ
        )
        costs.append([float(figure) for figure in done.stdout.split()])
    return Cost(start_s=min(cost[0] for cost in costs), idle_bytes=min(cost[1] for cost in costs))


def row(kind: str, actors: int, cost: Cost, ratio_to: Cost) -> str:
    """Put a cost, and how many times less it is than another, into a line of the table."""
    return (
        f"| {kind} | {actors:,} | {1e6 * cost.start_s:.0f} µs ({ratio_to.start_s / cost.start_s:.1f})"
        f" | {cost.idle_bytes / 1e3:.1f} KB ({ratio_to.idle_bytes / cost.idle_bytes:.1f}) |"
    )


def main() -> None:
    """Print the table."""
    print("| idle actor | started | per start (ratio) | memory each (ratio) |\n|---|---|---|---|")
    threading_cost = measured(THREADING, 1_000)
    print(row(THREADING, 1_000, threading_cost, threading_cost), flush=True)
    for actors in (1_000, 10_000):
        print(row(LOOP, actors, measured(LOOP, actors), threading_cost), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        figures = measure(sys.argv[1], int(sys.argv[2]))
        print(figures.start_s, figures.idle_bytes)
    else:
        main()
