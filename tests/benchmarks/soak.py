"""Half an hour of mixed runs, faults and cancels: whether every run comes out right, and what grows.

`python tests/benchmarks/soak.py [--minutes 30] [--runs 300] [--every 10] [--seed 1] [--json FILE]` keeps so
many runs open, streamed and polled, a quarter of them in an orchestrator with a journal. Between them and the
run server is `bad_weather`; actors are killed now and then; runs are cancelled before they are sent, while
they are under way and after their end. Every so many seconds a line tells what the process holds. In the end
each figure is judged by `trends`, against the bounds below, and each run by `soak_runs`. The exit status is 1
if a figure grew or a run came out wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import heapq
import json
import logging
import os
import queue
import random
import sqlite3
import sys
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import psutil
from bad_weather import Weather, weather
from fleet import ask_server, our_threads, resident_bytes
from pykka import ActorRegistry
from run_server import run_server
from soak_runs import Inquest, Plan, Workshop, plan
from stub_server import allow_many_files
from trends import Bound, Trend, trend

from orchestrator import Orchestrator, RestartPolicy, RunHandle, Timing
from orchestrator.client import RetryPolicy
from orchestrator.journal import SQLJournal
from orchestrator.runtime import LoopThread, acquire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PATIENCE_S: Final = 120.0
ACTOR_LIFE_S: Final = 60.0
PRUNED_AFTER_S: Final = 5.0

THINK_MS: Final = 2500

TOOL_THREADS: Final = 4
"""Few enough for all of them to be there soon: a thread is made when no other is free."""

TIMING: Final = Timing(
    retry=RetryPolicy(attempts=60, base_s=0.05, cap_s=0.5, settle_s=0.5), poll_min_s=0.2, poll_max_s=1.0
)
"""Attempts enough for any weather, so that an error of a run is a defect."""

BOUNDS: Final[Mapping[str, Bound]] = {
    "threads": Bound(per_hour=2, step=2),
    "tasks": Bound(per_hour=60, step=10),
    "actors": Bound(per_hour=60, step=10),
    "residents": Bound(per_hour=60, step=10),
    "files": Bound(per_hour=60, step=10),
    "sockets": Bound(per_hour=60, step=10),
    "journal_rows": Bound(per_hour=2_000, step=500),
    "journal_kb": Bound(per_hour=20_000, step=1_000),
    "rss_mb": Bound(per_hour=24.0, step=4.0),
    "objects": Bound(per_hour=50_000, step=5_000),
    "blocks": Bound(per_hour=200_000, step=20_000),
}
"""What may grow, and by how much.

A soak sees some 200,000 runs an hour through. For each of them the bounds allow 120 bytes, or a quarter of an
object; a thread for one in 100,000, a socket, a task or an actor for one in 3,000. What a run always leaves
behind, or one in a thousand, is more than that; and so a process takes days to grow by a gigabyte. Memory and
the journal's file never shrink: a moment with more to do than any before raises both for good, by a step.
"""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at the process.

    Attributes:
        at_s: Seconds since the soak began.
        ended: How many runs had ended.
        open: How many were open.
        figures: By the names of `BOUNDS`.
    """

    at_s: float
    ended: int
    open: int
    figures: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a soak showed.

    Attributes:
        samples: The looks, in order.
        trends: What became of each figure.
        found: How many runs ended how.
        faults: What the weather did.
        strikes: How many actors were killed.
        wrong: Runs that came out wrong, and what was left at the end.
        ended: How many runs there were.
        seconds: How long it took.
        cpu_s: This process's share of that.
    """

    samples: list[Sample] = field(repr=False)
    trends: dict[str, Trend]
    found: dict[str, int]
    faults: dict[str, int]
    strikes: int
    wrong: list[str]
    ended: int
    seconds: float
    cpu_s: float

    @property
    def grown(self) -> list[str]:
        """The figures that are not flat."""
        return [name for name, one in self.trends.items() if not one.is_flat]


class Soak:
    """The runs that are open, and the looks that were had.

    Args:
        plain: Where runs without a journal are started.
        journalled: Where the others are.
        inquest: Judges them.
        rng: Draws them.
        journal: The journal's file.
        think_ms: The longest that a run's model thinks at a time.
    """

    def __init__(
        self,
        plain: Orchestrator,
        journalled: Orchestrator,
        inquest: Inquest,
        rng: random.Random,
        journal: Path,
        think_ms: int,
    ) -> None:
        self.samples: list[Sample] = []
        self.ended = 0
        self._orchestrators = plain, journalled
        self._inquest = inquest
        self._rng = rng
        self._journal = journal
        self._think_ms = think_ms
        self._open: dict[int, tuple[Plan, RunHandle]] = {}
        self._over: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._cancels: list[tuple[float, int]] = []
        self._started = 0
        self._events = 0

    def go_on(self, for_s: float, *, runs: int, warm_s: float, every_s: float, loop: LoopThread) -> None:
        """Keep so many runs open for so long, and then see them through.

        Args:
            for_s: For how long.
            runs: How many.
            warm_s: When the first look is had.
            every_s: The pause between that and the next one.
            loop: The actors' loop.
        """
        begun = time.monotonic()
        look_at = begun + warm_s
        while (now := time.monotonic()) < begun + for_s:
            for _ in range(runs - len(self._open)):
                self._start()
            self._cancel_due(now)
            if now >= look_at:
                self._look(now - begun, loop)
                look_at += every_s
            due = self._cancels[0][0] if self._cancels else look_at
            self._take_one(max(0.0, min(due, look_at, begun + for_s) - now))
        while self._open:
            self._cancel_due(time.monotonic())
            if not self._take_one(0.1) and time.monotonic() > begun + for_s + PATIENCE_S:
                self._inquest.wrong += [f"{plan}: it never ended" for plan, _ in self._open.values()]
                return

    def _start(self) -> None:
        self._started += 1
        drawn = plan(self._rng, self._started, self._think_ms)
        handle = self._orchestrators[drawn.journalled].start(
            "asst_1",
            messages="go",
            metadata=drawn.metadata,
            watch=drawn.watch,
            deadline_s=drawn.deadline_s,
            stream_to=self._hear if drawn.told else None,
        )
        self._open[drawn.number] = drawn, handle
        if drawn.cancel == "before":
            handle.cancel()
        elif drawn.cancel == "while":
            heapq.heappush(self._cancels, (time.monotonic() + drawn.cancel_after_s, drawn.number))
        handle.future.add_done_callback(lambda _: self._over.put(drawn.number))

    def _hear(self, _: object) -> None:
        self._events += 1

    def _cancel_due(self, now: float) -> None:
        while self._cancels and self._cancels[0][0] <= now:
            _, number = heapq.heappop(self._cancels)
            if number in self._open:
                self._open[number][1].cancel()

    def _take_one(self, wait_s: float) -> bool:
        """Examine a run that is over; say whether there was one in time."""
        try:
            number = self._over.get(timeout=wait_s)
        except queue.Empty:
            return False
        plan, handle = self._open.pop(number)
        self.ended += 1
        if plan.cancel == "after":
            handle.cancel()
        self._inquest.examine(plan, handle)
        return True

    def _look(self, at_s: float, loop: LoopThread) -> None:
        process = psutil.Process()
        # What is quick to count comes first: while the rest is, runs end and no others are started.
        figures: dict[str, float] = {
            "threads": process.num_threads(),
            "tasks": _tasks(loop),
            "actors": len(ActorRegistry.get_all()),
            "residents": len(loop.residents),
            "files": process.num_fds(),
            "sockets": len(process.net_connections("inet")),
        }
        self._inquest.settle()
        journal = self._orchestrators[True].journal
        assert isinstance(journal, SQLJournal)
        journal.prune(PRUNED_AFTER_S)
        figures |= {
            "journal_rows": _rows(self._journal),
            "journal_kb": sum(path.stat().st_size for path in self._journal.parent.iterdir()) / 1e3,
            "rss_mb": resident_bytes() / 1e6,
            "objects": len(gc.get_objects()),
            "blocks": sys.getallocatedblocks(),
        }
        sample = Sample(at_s=at_s, ended=self.ended, open=len(self._open), figures=figures)
        self.samples.append(sample)
        print(sample_row(sample), flush=True)


def _rows(journal: Path) -> int:
    """How many rows the journal has for its runs, of all kinds."""
    with closing(sqlite3.connect(journal)) as connection:
        tables = ("runs", "tool_calls", "submissions", "events")
        counts = (connection.execute(f"SELECT count(*) FROM journal_{name}").fetchone() for name in tables)
        return sum(count for (count,) in counts)


def _tasks(loop: LoopThread) -> int:
    """How many tasks there are on the actors' loop, counted there."""
    counted: queue.SimpleQueue[int] = queue.SimpleQueue()
    loop.call_soon(lambda: counted.put(len(asyncio.all_tasks())))
    return counted.get(timeout=PATIENCE_S)


@contextmanager
def striking(seed: int) -> Iterator[list[int]]:
    """Kill actors of runs at random; yields what holds the number of strikes after the block."""
    sys.path.append(str(Path(__file__).parents[1] / "actors"))
    from storm import Lightning

    strikes: list[int] = []
    with Lightning(seed, ACTOR_LIFE_S).striking() as lightning:
        yield strikes
    strikes.append(lightning.strikes)


def soak(
    seconds: float,
    *,
    runs: int,
    warm_s: float,
    every_s: float,
    seed: int,
    think_ms: int = THINK_MS,
    leak_bytes: int = 0,
) -> Findings:
    """Go through it.

    Args:
        seconds: For how long runs are started.
        runs: How many are open at any time.
        warm_s: When the first look is had.
        every_s: The pause between two looks.
        seed: Decides what runs and faults there are.
        think_ms: The longest that a run's model thinks at a time.
        leak_bytes: What each call of one of the tools keeps for ever.
    """
    rng = random.Random(seed)
    workshop = Workshop(keeps=leak_bytes)
    print(HEAD)
    with ExitStack() as around:
        server_url = around.enter_context(run_server())
        bad = around.enter_context(weather(server_url, seed))
        directory = Path(around.enter_context(tempfile.TemporaryDirectory()))
        around.enter_context(_logs_to_nowhere())
        inquest = Inquest(workshop, server_url)
        loop = acquire()
        begun, cpu = time.monotonic(), time.process_time()
        plain = _orchestrator(bad, workshop, runs)
        journal = directory / "soak.sqlite"
        journalled = _orchestrator(bad, workshop, runs, journal=f"sqlite:///{journal}")
        going = Soak(plain, journalled, inquest, rng, journal, think_ms)
        try:
            with striking(seed) as strikes:
                going.go_on(seconds, runs=runs, warm_s=warm_s, every_s=every_s, loop=loop)
        finally:
            plain.close()
            journalled.close()
            loop.release()
        inquest.settle()
        inquest.finish(ask_server(server_url, "report"))
        inquest.wrong += _left(bad)
        took_s, cpu = time.monotonic() - begun, time.process_time() - cpu
    times = [sample.at_s for sample in going.samples]
    return Findings(
        samples=going.samples,
        trends={
            name: trend(times, [sample.figures[name] for sample in going.samples], bound)
            for name, bound in BOUNDS.items()
        },
        found=dict(inquest.found),
        faults=bad.faults,
        strikes=strikes[0],
        wrong=inquest.wrong,
        ended=going.ended,
        seconds=took_s,
        cpu_s=cpu,
    )


def _orchestrator(bad: Weather, workshop: Workshop, runs: int, **options: Any) -> Orchestrator:
    return Orchestrator(
        base_url=bad.base_url,
        api_key="k",
        tools=workshop.tools,
        check_tools="off",
        timing=TIMING,
        restart=RestartPolicy(max_restarts=10_000, backoff_s=0.005, backoff_cap_s=0.05),
        max_concurrent_runs=runs,
        tool_threads=TOOL_THREADS,
        **options,
    )


@contextmanager
def _logs_to_nowhere() -> Iterator[None]:
    """Have every line of the logs written, at the level that users choose, and read by nobody."""
    logger = logging.getLogger("orchestrator")
    handler = logging.FileHandler(os.devnull)
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates
        handler.close()


def _left(bad: Weather) -> list[str]:
    """What orchestrators left behind that are closed."""
    threads = {kind: count for kind, count in our_threads().items() if kind.startswith("orchestrator-")}
    port = urlsplit(bad.base_url).port
    sockets = [
        one for one in psutil.Process().net_connections("inet") if one.raddr and one.raddr.port == port
    ]
    actors = ActorRegistry.get_all()
    return [f"after close() there are {what} left" for what in (threads, sockets, actors) if what]


HEAD: Final = "\n".join(
    (
        f"| at | ended | open | {' | '.join(BOUNDS)} |",
        f"|---|---|---|{'---|' * len(BOUNDS)}",
    )
)


def sample_row(sample: Sample) -> str:
    """Put a look into a line of the table."""
    figures = (
        f"{value:,.1f}" if name.endswith("_mb") else f"{value:,.0f}" for name, value in sample.figures.items()
    )
    return f"| {sample.at_s:,.0f} s | {sample.ended:,} | {sample.open} | {' | '.join(figures)} |"


def verdict(findings: Findings) -> str:
    """Say what was found."""
    lines = [
        "| figure | at first | at last | rise | an hour | error | allowed | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in findings.trends.items():
        numbers = (one.first, one.last, one.rise, one.per_hour, one.error_per_hour, one.bound.per_hour)
        shown = " | ".join(f"{number:,.1f}" for number in numbers)
        lines.append(f"| {name} | {shown} | {'flat' if one.is_flat else '**grows**'} |")
    pace = findings.ended / findings.seconds
    lines += [
        "",
        f"{findings.ended:,} runs in {findings.seconds:,.0f} s, {pace:.0f} a second",
        f"CPU: {1e3 * findings.cpu_s / findings.ended:.1f} ms a run, the looks included",
        f"ended: {findings.found}",
        f"weather: {findings.faults}; actors killed: {findings.strikes}",
        f"wrong: {len(findings.wrong)}",
        *findings.wrong[:20],
    ]
    return "\n".join(lines)


def main() -> int:
    """Print the table and the verdict; return the exit status."""
    parser = argparse.ArgumentParser(description="A soak of runs, faults and cancels.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--runs", type=int, default=300, help="how many are open at any time")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two looks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write all samples and what they come to")
    given = parser.parse_args()
    allow_many_files()
    findings = soak(
        given.minutes * 60, runs=given.runs, warm_s=given.every, every_s=given.every, seed=given.seed
    )
    print("", verdict(findings), sep="\n")
    if given.json is not None:
        is_flat = {name: one.is_flat for name, one in findings.trends.items()}
        given.json.write_text(json.dumps(asdict(findings) | {"is_flat": is_flat}, indent=1))
    return 1 if findings.wrong or findings.grown else 0


if __name__ == "__main__":
    sys.exit(main())
